//! Programs with hand-assembled x86-64 kernels, so that the runtime is tested without a compiler.

#![allow(dead_code, reason = "not every user of this module needs every function")]

use fqbin::{
    Access, BufferId, CodeImage, Elem, ExprId, Image, Level, Program, ProgramBuilder, TargetImage,
};

/// `xor eax, eax; ret`
pub const OK: &[u8] = &[0x31, 0xc0, 0xc3];

/// `mov eax, 1; ret`
pub const FAIL: &[u8] = &[0xb8, 1, 0, 0, 0, 0xc3];

/// `for i in begin..end { bufs[2][i] = bufs[0][i] + bufs[1][i] }` over 32-bit integers.
pub const ADD: &[u8] = &[
    0x48, 0x8b, 0x07, // mov rax, [rdi]
    0x4c, 0x8b, 0x4f, 0x08, // mov r9, [rdi + 8]
    0x4c, 0x8b, 0x5f, 0x10, // mov r11, [rdi + 16]
    0x48, 0x39, 0xca, // cmp rdx, rcx
    0x7d, 0x11, // jge +17
    0x44, 0x8b, 0x14, 0x90, // mov r10d, [rax + 4 * rdx]
    0x45, 0x03, 0x14, 0x91, // add r10d, [r9 + 4 * rdx]
    0x45, 0x89, 0x14, 0x93, // mov [r11 + 4 * rdx], r10d
    0x48, 0xff, 0xc2, // inc rdx
    0xeb, 0xea, // jmp -22
    0x31, 0xc0, // xor eax, eax
    0xc3, // ret
];

/// `for i in begin..end { scratch[0] = dims[0]; bufs[0][i] = scratch[0] }` over 32-bit integers.
pub const FILL: &[u8] = &[
    0x48, 0x8b, 0x07, // mov rax, [rdi]
    0x4c, 0x8b, 0x0e, // mov r9, [rsi]
    0x48, 0x39, 0xca, // cmp rdx, rcx
    0x7d, 0x0f, // jge +15
    0x45, 0x89, 0x08, // mov [r8], r9d
    0x45, 0x8b, 0x10, // mov r10d, [r8]
    0x44, 0x89, 0x14, 0x90, // mov [rax + 4 * rdx], r10d
    0x48, 0xff, 0xc2, // inc rdx
    0xeb, 0xec, // jmp -20
    0x31, 0xc0, // xor eax, eax
    0xc3, // ret
];

/// Kernel names of [`code`], in the order of their entries.
pub const KERNELS: [&str; 4] = ["ok", "fail", "add", "fill"];

/// The kernels above as the code of a level.
pub fn code(level: &str) -> CodeImage {
    let mut image = CodeImage { level: level.into(), ..CodeImage::default() };
    for kernel in [OK, FAIL, ADD, FILL] {
        image.bytes.resize(image.bytes.len().next_multiple_of(16), 0xcc);
        image.entries.push(image.bytes.len() as u32);
        image.bytes.extend(kernel);
    }
    image
}

/// A builder that knows the kernels of [`code`].
pub fn builder() -> ProgramBuilder {
    let mut b = ProgramBuilder::new();
    for name in KERNELS {
        b.kernel(name);
    }
    b
}

/// Appends `to = a + b` over `n` numbers.
pub fn add(b: &mut ProgramBuilder, a: BufferId, c: BufferId, to: BufferId, n: ExprId) {
    let kernel = b.kernel("add");
    let args = vec![b.whole(a, Access::Read), b.whole(c, Access::Read), b.whole(to, Access::Write)];
    let name = b.buffer(to).name.clone();
    let mut step = b.simple_step(&name, "pointwise", kernel, args, n);
    step.grain = b.int(16);
    b.step(step);
}

/// Appends a step that fills `to` with the value of an expression.
pub fn fill(b: &mut ProgramBuilder, value: ExprId, to: BufferId, n: ExprId) {
    let kernel = b.kernel("fill");
    let args = vec![b.whole(to, Access::Write)];
    let name = b.buffer(to).name.clone();
    let mut step = b.simple_step(&name, "fill", kernel, args, n);
    step.dims = vec![value];
    step.scratch_bytes = b.int(4);
    b.step(step);
}

/// `y = x + x + weight + n`, elementwise over `n` integers, of which the weight has 8 at most.
pub fn sums() -> (Program, Vec<u8>) {
    let mut b = builder();
    let n = b.sym("n");
    let x = b.input("x", Elem::I32, &[n]);
    let y = b.output("y", Elem::I32, &[n]);
    let eight = b.int(8);
    let w = b.weight("w", Elem::I32, &[eight], 0, 32);
    let (twice, filled, sum) = (
        b.arena("twice", Elem::I32, &[n]),
        b.arena("filled", Elem::I32, &[n]),
        b.arena("sum", Elem::I32, &[n]),
    );
    b.limit(n, fqbin::Relation::Le, eight, "length of the weight");
    add(&mut b, x, x, twice, n);
    fill(&mut b, n, filled, n);
    add(&mut b, twice, filled, sum, n);
    let kernel = b.kernel("add");
    let bytes = b.buffer(x).bytes;
    let zero = b.int(0);
    let part = fqbin::Arg { buffer: w, offset: zero, extent: bytes, access: Access::Read };
    let args = vec![b.whole(sum, Access::Read), part, b.whole(y, Access::Write)];
    let step = b.simple_step("y", "pointwise", kernel, args, n);
    b.step(step);
    let weights = (0..8i32).flat_map(|i| (100 * i).to_le_bytes()).collect();
    (b.finish(), weights)
}

/// What [`sums`] computes.
pub fn sums_of(x: &[i32]) -> Vec<i32> {
    let n = x.len() as i32;
    x.iter().enumerate().map(|(i, v)| 2 * v + n + 100 * i as i32).collect()
}

/// `y = ((x + x) + x) + …`, a chain of `steps` additions over `n` integers.
pub fn chain(steps: usize) -> Program {
    let mut b = builder();
    let n = b.sym("n");
    let x = b.input("x", Elem::I32, &[n]);
    let mut from = x;
    for i in 1..steps {
        let to = b.arena(&format!("t{i}"), Elem::I32, &[n]);
        add(&mut b, from, x, to, n);
        from = to;
    }
    let y = b.output("y", Elem::I32, &[n]);
    add(&mut b, from, x, y, n);
    b.finish()
}

/// A file around [`sums`] with code for the given levels.
pub fn sums_image(levels: &[Level]) -> Image {
    let (program, weights) = sums();
    let code = levels.iter().map(|level| code(level.name())).collect();
    Image {
        producer: "test".into(),
        manifest: b"{}".to_vec(),
        targets: vec![TargetImage { target: "cpu".into(), program, weights: weights.into(), code }],
    }
}
