//! Thousands of random mutations, raw and with every checksum repaired: the reader never panics,
//! and whatever it accepts stays in bounds. The same entry point is fuzzed in `fuzz/`.

mod support;

use fqbin::{Access, Expr, ExprId, FORMAT_VERSION, Place, Program, to_bytes, verify};
use support::{Random, bind_and_touch, fuzz_entry, open_any, repair, sample_image, sample_program};

const ROUNDS: usize = 10_000;

/// Changes a few bytes, swaps or cuts ranges, with a bias to the head and the plan.
fn mutate(random: &mut Random, bytes: &mut Vec<u8>, hot: &[std::ops::Range<usize>]) {
    for _ in 0..1 + random.below(4) {
        let range = &hot[random.below(hot.len())];
        let at = range.start + random.below(range.len());
        let at = at.min(bytes.len().saturating_sub(9));
        match random.below(8) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.next() as u8,
            2 => bytes[at] = bytes[at].wrapping_add(1),
            3 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            4 => {
                let big = [u64::MAX, 1 << 63, i64::MAX as u64, 1 << 40, 0][random.below(5)];
                bytes[at..at + 8].copy_from_slice(&big.to_le_bytes());
            }
            5 => {
                let small = random.below(64) as u32;
                bytes[at..at + 4].copy_from_slice(&small.to_le_bytes());
            }
            6 => {
                let from = random.below(bytes.len() - 8);
                bytes.copy_within(from..from + 8, at);
            }
            _ if random.below(20) == 0 => bytes.truncate(300 + random.below(bytes.len() - 300)),
            _ => bytes[at] = bytes[at].wrapping_sub(1),
        }
        if bytes.len() < 600 {
            return;
        }
    }
}

#[test]
fn mutated_files_never_panic() {
    let whole = to_bytes(&sample_image(), None).unwrap();
    let file = fqbin::File::open(&whole).unwrap();
    let mut hot = vec![0..256, 256..256 + 128 * file.layout().table.sections.len(), 0..whole.len()];
    for section in &file.layout().table.sections {
        hot.push(section.offset as usize..(section.offset + section.len) as usize);
        if section.kind == fqbin::Kind::Plan {
            hot.extend(vec![hot[hot.len() - 1].clone(); 6]);
        }
    }
    let mut random = Random(0x5eed_cafe);
    let mut opened = [0, 0];
    for _ in 0..ROUNDS {
        let mut bytes = whole.clone();
        mutate(&mut random, &mut bytes, &hot);
        opened[0] += usize::from(bytes != whole && open_any(&bytes));
        repair(&mut bytes);
        opened[1] += usize::from(open_any(&bytes));
    }
    assert_eq!(opened[0], 0, "a damaged file was opened");
    // Many repaired ones must get past the checksums, or the test tests nothing.
    assert!(opened[1] > ROUNDS / 50 && opened[1] < ROUNDS, "{} were opened", opened[1]);
}

fn mutate_program(random: &mut Random, p: &mut Program) {
    let id = ExprId(random.below(p.exprs.len() + 1) as u32);
    let step = random.below(p.steps.len());
    let buffer = random.below(p.buffers.len());
    match random.below(13) {
        0 => {
            let at = random.below(p.exprs.len());
            p.exprs[at] = Expr::Const([0, -1, 1, 63, i64::MAX, 1 << 33][random.below(6)]);
        }
        1 => {
            let (a, b) = (ExprId(random.below(8) as u32), ExprId(random.below(8) as u32));
            let at = random.below(p.exprs.len());
            p.exprs[at] = Expr::Bin(fqbin::BinOp::ALL[random.below(8)], a, b);
        }
        2 => p.buffers[buffer].bytes = id,
        3 => {
            let (first, last) = (random.below(5) as u32, random.below(5) as u32);
            p.buffers[buffer].place = Place::Arena { first, last };
        }
        4 => {
            let (offset, len) = (64 * random.below(40) as u64, 64 * random.below(40) as u64);
            p.buffers[buffer].place = Place::Weight { offset, len };
        }
        5 => p.steps[step].work = id,
        6 => p.steps[step].grain = id,
        7 => p.steps.swap(0, step),
        8 => drop(p.steps.remove(step.max(1))),
        9 => p.batch = Some(fqbin::SymbolId(random.below(4) as u32)),
        _ => {
            let args = &mut p.steps[step].args;
            let arg = random.below(args.len());
            match random.below(4) {
                0 => args[arg].offset = id,
                1 => args[arg].extent = id,
                2 => args[arg].buffer.0 = buffer as u32,
                _ => {
                    let all = [Access::Read, Access::Write, Access::Update];
                    args[arg].access = all[random.below(3)];
                }
            }
        }
    }
}

#[test]
fn mutated_programs_bind_in_bounds_or_not_at_all() {
    let mut random = Random(0xfeed_f00d);
    let weights = vec![0u8; 64 + 30 * 64];
    let mut good = 0;
    for _ in 0..ROUNDS {
        let mut program = sample_program();
        for _ in 0..1 + random.below(2) {
            if program.steps.len() > 1 {
                mutate_program(&mut random, &mut program);
            }
        }
        assert_eq!(Program::decode(&program.encode(), FORMAT_VERSION).unwrap(), program);
        if verify(&program, weights.len() as u64).is_ok() {
            good += 1;
            for size in [0, 1, 5, 1 << 20] {
                bind_and_touch(&program, &weights, size);
            }
        }
    }
    assert!(good > ROUNDS / 50 && good < ROUNDS, "{good} were verified");
}

#[test]
fn the_fuzz_entry_takes_anything() {
    let mut random = Random(0xdead_10cc);
    for _ in 0..ROUNDS {
        let len = random.below(64);
        let data: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
        fuzz_entry(&data);
    }
}
