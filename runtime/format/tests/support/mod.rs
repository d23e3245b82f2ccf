//! What the tests of the format share with its fuzz target: a sample image, the entry point that
//! takes any bytes, and a repair of checksums after a mutation, written from the specification
//! in the crate's documentation and not from its code.

use fqbin::{
    Access, Arg, Binding, Elem, File, Image, Place, Program, ProgramBuilder, Relation, TargetImage,
};

/// A small program with every kind of buffer, two symbols, a condition and an in-place step.
#[allow(dead_code, reason = "not every user of this module needs every function")]
pub fn sample_program() -> Program {
    let mut b = ProgramBuilder::new();
    let (batch, seq, width) = (b.sym("batch"), b.sym("seq"), b.int(16));
    let ids = b.input("ids", Elem::I64, &[batch, seq]);
    let mask = b.input("mask", Elem::F32, &[batch, seq]);
    let out = b.output("out", Elem::F32, &[batch, seq, width]);
    let thirty = b.int(30);
    let table = b.weight("table", Elem::F32, &[thirty, width], 64, 30 * 16 * 4);
    let rows = b.mul(batch, seq);
    let padded = b.round_up(rows, 4);
    let bytes = b.scale(padded, 64);
    let hidden = b.arena_sized("hidden", Elem::F32, &[rows, width], bytes);
    let sums = b.arena("sums", Elem::F32, &[rows]);
    let limit = b.int(512);
    b.limit(seq, Relation::Le, limit, "positions");
    let (gather, scale, reduce) = (b.kernel("gather_f32"), b.kernel("scale"), b.kernel("reduce"));
    let args = vec![
        b.whole(ids, Access::Read),
        b.whole(table, Access::Read),
        b.whole(hidden, Access::Write),
    ];
    let mut step = b.simple_step("hidden", "gather", gather, args, rows);
    step.dims = vec![rows, width];
    step.grain = b.int(8);
    b.step(step);
    let args = vec![b.whole(hidden, Access::Update), b.whole(mask, Access::Read)];
    let mut step = b.simple_step("scaled", "pointwise", scale, args, rows);
    step.scratch_bytes = b.int(256);
    b.step(step);
    let args = vec![b.whole(hidden, Access::Read), b.whole(sums, Access::Write)];
    let step = b.simple_step("sums", "reduce", reduce, args, rows);
    b.step(step);
    let extent = b.scale(rows, 64);
    let zero = b.int(0);
    let part = Arg { buffer: hidden, offset: zero, extent, access: Access::Read };
    let args = vec![part, b.whole(sums, Access::Read), b.whole(out, Access::Write)];
    let mut step = b.simple_step("out", "pointwise", scale, args, rows);
    step.ops = b.scale(rows, 32);
    b.step(step);
    b.batch("batch");
    b.finish()
}

/// A file with two targets and several levels.
#[allow(dead_code, reason = "not every user of this module needs every function")]
pub fn sample_image() -> Image {
    let program = sample_program();
    let weights: Vec<u8> = (0..64 + 30 * 64).map(|i| (i % 251) as u8).collect();
    let code = |level: &str, fill: u8| fqbin::CodeImage {
        level: level.to_string(),
        entries: vec![0, 16, 40],
        bytes: vec![fill; 48],
    };
    let cubin =
        fqbin::CodeImage { level: String::new(), entries: Vec::new(), bytes: b"cubin".to_vec() };
    Image {
        producer: "fqc 0.0.0".into(),
        manifest: br#"{"made":"for a test"}"#.to_vec(),
        targets: vec![
            TargetImage {
                target: "cuda:sm_90a".into(),
                program: program.clone(),
                weights: weights.clone().into(),
                code: vec![cubin],
            },
            TargetImage {
                target: "cpu".into(),
                program,
                weights: weights.into(),
                code: vec![code("avx512-vnni", 0xcc), code("avx2", 0xc3)],
            },
        ],
    }
}

/// Opens any bytes. Whatever opens must hold what the format promises: views inside the file,
/// and programs that bind only with every range in bounds. Returns whether the bytes opened.
pub fn open_any(bytes: &[u8]) -> bool {
    let Ok(file) = File::open(bytes) else { return false };
    file.manifest().expect("a validated file has its manifest");
    for target in &file.layout().targets {
        let weights = file.weights(target).expect("a validated file has its weights");
        let code = file.code(target).expect("a validated file has its code");
        for view in code {
            assert!(view.entries.iter().all(|&e| (e as usize) < view.bytes.len()));
        }
        for size in [0, 1, 7] {
            bind_and_touch(&target.program, weights, size);
        }
    }
    true
}

/// The entry point of the fuzzer. The input is opened as it is; then it is read as a list of
/// edits (two bytes of place, one of what to do, one of value) on a sample file, which is opened
/// with its checksums left wrong and with them repaired.
#[allow(dead_code, reason = "not every user of this module needs every function")]
pub fn fuzz_entry(data: &[u8]) {
    static SAMPLE: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    open_any(data);
    let sample = SAMPLE.get_or_init(|| {
        fqbin::to_bytes(&sample_image(), None).expect("the sample image is well formed")
    });
    let mut bytes = sample.clone();
    for edit in data.chunks_exact(4) {
        let at = usize::from(u16::from_be_bytes([edit[0], edit[1]])) % (bytes.len() - 8);
        let value = edit[3];
        match edit[2] % 6 {
            0 => bytes[at] = value,
            1 => bytes[at] ^= value,
            2 => bytes[at..at + 4].copy_from_slice(&u32::from(value).to_le_bytes()),
            3 => bytes[at..at + 8].copy_from_slice(&(1u64 << (value % 64)).to_le_bytes()),
            4 => bytes[at..at + 8].fill(value),
            _ => bytes.copy_within(usize::from(value)..usize::from(value) + 8, at),
        }
    }
    let opened = open_any(&bytes);
    assert!(!opened || bytes == *sample, "a damaged file was opened");
    repair(&mut bytes);
    open_any(&bytes);
}

/// Binds a verified program with all symbols equal, and touches each argument's range in blocks
/// of the promised sizes; safe indexing is the judge.
pub fn bind_and_touch(program: &Program, weights: &[u8], size: usize) {
    let shapes: Vec<Vec<usize>> = program
        .inputs
        .iter()
        .map(|port| {
            let dim = |d: &fqbin::ExprId| match program.exprs[d.index()] {
                fqbin::Expr::Const(c) => usize::try_from(c).unwrap_or(0),
                _ => size,
            };
            port.shape.iter().map(dim).collect()
        })
        .collect();
    let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
    let Ok(binding) = Binding::new(program, &shapes) else { return };
    let total = binding.buffer_bytes.iter().try_fold(0u64, |acc, &b| acc.checked_add(b));
    if binding.arena_bytes > 1 << 20 || total.is_none_or(|t| t > 1 << 20) {
        return;
    }
    let arena = vec![0u8; binding.arena_bytes as usize];
    let mut owner = vec![usize::MAX; arena.len()];
    for (i, step) in program.steps.iter().enumerate() {
        for (buffer, declared) in program.buffers.iter().enumerate() {
            if matches!(declared.place, Place::Arena { first, .. } if first as usize == i) {
                let at = binding.arena_offsets[buffer] as usize;
                owner[at..at + binding.buffer_bytes[buffer] as usize].fill(buffer);
            }
        }
        for arg in &step.args {
            let buffer = arg.buffer.index();
            let (offset, extent) = (binding.value(arg.offset), binding.value(arg.extent));
            let (start, end) = (offset as usize, (offset + extent) as usize);
            match program.buffers[buffer].place {
                Place::Weight { offset, len } => {
                    let block = &weights[offset as usize..(offset + len) as usize];
                    assert!(block.get(start..end).is_some());
                }
                Place::Arena { first, last } => {
                    assert!(first as usize <= i && i <= last as usize);
                    let at = binding.arena_offsets[buffer] as usize;
                    let whole = at..at + binding.buffer_bytes[buffer] as usize;
                    assert!(owner[whole].iter().all(|&o| o == buffer), "arena blocks overlap");
                    assert!(arena.get(at + start..at + end).is_some());
                }
                Place::Input(_) | Place::Output(_) => {
                    assert!(end as u64 <= binding.buffer_bytes[buffer]);
                }
            }
        }
    }
}

/// Recomputes every hash of a file that was changed, where its table still makes sense.
pub fn repair(bytes: &mut [u8]) {
    if bytes.len() < 256 {
        return;
    }
    let u32_at = |bytes: &[u8], at: usize| {
        u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
    };
    let u64_at = |bytes: &[u8], at: usize| {
        u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
    };
    let count = u32_at(bytes, 20).min(64) as usize;
    let head = 256 + 128 * count;
    if bytes.len() < head {
        return;
    }
    let mut id = blake3::Hasher::new_derive_key("fqbin 2026 content id");
    id.update(&bytes[8..16]);
    id.update(&bytes[32..48]);
    id.update(&bytes[64..128]);
    for record in (0..count).map(|i| 256 + 128 * i) {
        let (offset, len) = (u64_at(bytes, record + 8), u64_at(bytes, record + 16));
        let range = usize::try_from(offset)
            .ok()
            .zip(offset.checked_add(len).and_then(|end| usize::try_from(end).ok()));
        if let Some(payload) = range.and_then(|(start, end)| bytes.get(start..end)) {
            let hash = blake3::hash(payload);
            bytes[record + 96..record + 128].copy_from_slice(hash.as_bytes());
        }
        if u32_at(bytes, record) != 5 {
            id.update(&bytes[record..record + 8]);
            id.update(&[0; 8]);
            id.update(&bytes[record + 16..record + 128]);
        }
    }
    bytes[128..160].copy_from_slice(id.finalize().as_bytes());
    bytes[224..256].fill(0);
    let mut header = blake3::Hasher::new_derive_key("fqbin 2026 header");
    header.update(&bytes[..head]);
    let hash = header.finalize();
    bytes[224..256].copy_from_slice(hash.as_bytes());
}

/// A small deterministic generator of random numbers (xorshift64*).
#[allow(dead_code, reason = "not every user of this module needs every function")]
pub struct Random(pub u64);

#[allow(dead_code, reason = "not every user of this module needs every function")]
impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}
