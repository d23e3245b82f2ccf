//! Gemms whose epilogue takes two columns at once and writes a row of codes with its tail.

use fqc_kernels::gemm::Pairs;

use super::*;

/// A row: codes, of which the last few are the tail's, and padding.
struct Row {
    starts: [usize; 2],
    base: usize,
    /// Channel and digit, from 2 on, of each code of the tail.
    tail: Vec<(usize, u32)>,
    padded: usize,
}

/// Runs the kernel over the items in several parts.
fn run(case: &Case, row: &Row, blob: &Mapped, top: f32) -> Vec<u8> {
    let (n, k) = (case.scale.len(), case.desc.k);
    let mut out = vec![0xa5u8; case.rows * row.padded + GUARD];
    let packed = pack::pack_i8(&case.w, case.k, n, k);
    let signed = case.desc.input == GemmInput::Codes { signed: true };
    let start = pack::accumulator_start(&case.w, case.k, n, signed);
    let scale = pack::pad_columns(&case.scale);
    let below: Vec<f32> = row.tail.iter().map(|&(_, k)| (k - 1) as f32 * top).collect();
    let source: Vec<i32> = row.tail.iter().map(|&(channel, _)| channel as i32).collect();
    let first: Vec<i32> = (0..=row.base / 16)
        .map(|panel| source.iter().filter(|&&c| (c as usize) < 16 * panel).count() as i32)
        .collect();
    let bufs = [
        case.left.as_ptr(),
        packed.as_ptr().cast::<u8>(),
        scale.as_ptr().cast(),
        start.as_ptr().cast(),
        case.inverse.as_ptr().cast(),
        below.as_ptr().cast(),
        source.as_ptr().cast(),
        first.as_ptr().cast(),
        out.as_mut_ptr().cast_const(),
    ];
    assert_eq!(bufs.len(), case.desc.buffers());
    let bufs = bufs.map(<*const u8>::cast_mut);
    let end = (row.base + row.tail.len()) as i64;
    let dims = [case.rows as i64, k as i64, end, row.padded as i64];
    let work = (case.rows.div_ceil(ROW_BLOCK) * case.desc.panels()) as i64;
    let mut scratch = vec![0u128; case.desc.scratch_bytes() as usize / 16 + 1024];
    let scratch = scratch.as_mut_ptr().cast::<u8>();
    let scratch = scratch.wrapping_add(scratch.align_offset(64));
    for items in [work / 2..work, 0..work / 3, work / 3..work / 2] {
        // SAFETY: the buffers are those of the description and hold `rows` rows.
        assert_eq!(unsafe { blob.call("gemm", &bufs, &dims, items, scratch) }, 0);
    }
    out
}

#[test]
fn pairs_give_the_codes_of_a_row_with_its_tail() {
    let shapes = [(1, 64, 16), (2, 63, 32), (17, 128, 48), (33, 191, 64), (70, 640, 96)];
    for (seed, (rows, k, base)) in shapes.into_iter().enumerate() {
        for signed in [true, false] {
            let starts = [[0, base], [base, 0], [16, base + 32], [base + 16, 0]][seed % 4];
            let n = starts[0].max(starts[1]) + base + seed % 3;
            let input = GemmInput::Codes { signed: !signed };
            let bits = if seed == 1 { 4 } else { 8 };
            let output = GemmOutput::Codes { signed, bits };
            let mut case = Case::new(seed as u64, rows, k, n, input, GemmOutput::I32);
            let top = q_max(bits, signed);
            case.inverse.iter_mut().for_each(|x| *x *= 0.02 * top as f32);
            // None, one, and more in one panel than a register has lanes.
            let mut tail: Vec<(usize, u32)> = (0..base).step_by(7).map(|c| (c, 2)).collect();
            tail.extend((0..20).map(|i| (base - 1 - i % 9, 2 + i as u32 / 9)));
            tail.sort_unstable();
            let tail = if seed == 0 { Vec::new() } else { tail };
            let padded = (base + tail.len()).next_multiple_of(64);
            let row = Row { starts, base, tail, padded };
            case.desc = GemmDesc {
                n: 2 * base,
                output,
                out_stride: Stride::Dim(3),
                epilogue: Expr::binary(BinaryOp::Mul, Expr::arg(0), Expr::arg(1)),
                pairs: Some(Pairs { starts, end: 2 }),
                ..case.desc
            };
            check(&case, &row, n);
        }
    }
}

fn check(case: &Case, row: &Row, n: usize) {
    let GemmOutput::Codes { signed, bits } = case.desc.output else { panic!("codes") };
    let (top, offset) = (q_max(bits, signed), if signed { 128 } else { 0 });
    let whole = GemmDesc { n, ..case.desc.clone() };
    let products = Case { desc: whole, ..case.clone() }.products();
    let mut expected = Vec::new();
    for products in products.chunks_exact(n) {
        let code = |channel: usize, k: u32| {
            let [x, y] = row.starts.map(|start| products[start + channel]);
            let wide = wide_code(x * y, case.inverse[channel], signed);
            (digit(wide, k, top) + offset) as u8
        };
        expected.extend((0..row.base).map(|channel| code(channel, 1)));
        expected.extend(row.tail.iter().map(|&(channel, k)| code(channel, k)));
        expected.resize(expected.len() + row.padded - row.base - row.tail.len(), offset as u8);
    }
    expected.extend([0xa5; GUARD]);
    assert!(expected.iter().any(|&code| i32::from(code) == top + offset), "no code is the largest");
    for (level, blob) in blobs(&case.desc) {
        let got = run(case, row, &blob, top as f32);
        assert!(got == expected, "{level}: {} rows of {}", case.rows, row.base);
    }
}
