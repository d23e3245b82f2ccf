//! Plans of one step, made and run; random data; comparison.

use fqc_codegen::cpu::run::{Execution, Failed};
use fqc_codegen::cpu::{Level, generate};
use fqc_ir::dim::Dim;
use fqc_ir::plan::{Buffer, BufferId, Kernel, Place, Plan, Port, Step, View};
use fqc_ir::types::Elem;

/// Sizes round every vector length, and primes.
pub const SIZES: [usize; 9] = [1, 7, 8, 15, 16, 17, 31, 33, 67];

/// Levels to test here.
pub fn levels() -> Vec<Level> {
    Level::ALL.into_iter().filter(|&level| fqc_codegen::cpu::exec::available(level)).collect()
}

/// A plan in the making; every input and output has a buffer of its own.
#[derive(Default)]
pub struct Problem {
    pub plan: Plan,
}

pub fn dim(name: &str) -> Dim {
    Dim::sym(name)
}

pub fn fixed(shape: &[usize]) -> Vec<Dim> {
    shape.iter().map(|&d| Dim::from(d)).collect()
}

/// A symbol for each axis.
pub fn symbols(prefix: &str, rank: usize) -> Vec<Dim> {
    (0..rank).map(|i| Dim::sym(format!("{prefix}{i}"))).collect()
}

impl Problem {
    fn buffer(&mut self, elem: Elem, shape: &[Dim], place: Place) -> (BufferId, Port) {
        let id = BufferId(self.plan.buffers.len());
        let name = format!("b{}", id.0);
        let shape = shape.to_vec();
        self.plan.buffers.push(Buffer { name: name.clone(), elem, shape: shape.clone(), place });
        (id, Port { name, elem, shape, buffer: id })
    }

    pub fn input(&mut self, elem: Elem, shape: &[Dim]) -> View {
        let (id, port) = self.buffer(elem, shape, Place::Input(self.plan.inputs.len()));
        self.plan.inputs.push(port);
        View::whole(id, shape)
    }

    pub fn output(&mut self, elem: Elem, shape: &[Dim]) -> View {
        let (id, port) = self.buffer(elem, shape, Place::Output(self.plan.outputs.len()));
        self.plan.outputs.push(port);
        View::whole(id, shape)
    }

    pub fn step(&mut self, kernel: Kernel, args: Vec<View>, results: Vec<View>) {
        self.plan.steps.push(Step { name: "y".to_owned(), kernel, args, results });
    }

    /// Runs at all levels; all outputs must be the same bytes whatever the portions are, and
    /// nothing outside may change. Gives the outputs by level.
    pub fn run(&self, inputs: &[(&[usize], Vec<u8>)]) -> Vec<Vec<Vec<u8>>> {
        self.try_run(inputs).expect("the kernel succeeds")
    }

    /// The same, with failures.
    pub fn try_run(&self, inputs: &[(&[usize], Vec<u8>)]) -> Result<Vec<Vec<Vec<u8>>>, Failed> {
        let image = generate(&self.plan, &levels()).expect("the plan compiles");
        let shapes: Vec<&[usize]> = inputs.iter().map(|(s, _)| *s).collect();
        let mut all = Vec::new();
        for level in levels() {
            let mut first: Option<Vec<Vec<u8>>> = None;
            for portion in [i64::MAX / 2, 1, 3, 8, 21] {
                let mut run = Execution::new(&image, level, &shapes).expect("it binds");
                for (i, (_, bytes)) in inputs.iter().enumerate() {
                    run.set_input(i, bytes);
                }
                if run.work(0) > 5000 && portion == 1 {
                    continue;
                }
                run.run(portion)?;
                assert_eq!(run.damaged(), Vec::<String>::new(), "{} {portion}", level.name());
                let got: Vec<Vec<u8>> =
                    (0..self.plan.outputs.len()).map(|i| run.output(i).to_vec()).collect();
                match &first {
                    None => first = Some(got),
                    Some(first) => assert!(*first == got, "portion {portion}, {}", level.name()),
                }
            }
            all.extend(first);
        }
        Ok(all)
    }
}

/// xorshift64*.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() >> 33) as usize % n
    }

    /// In [-1, 1).
    pub fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub fn floats(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| self.unit() * scale).collect()
    }
}

pub fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

pub fn i64_bytes(values: &[i64]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

pub fn i32_bytes(values: &[i32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

pub fn to_f32(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

pub fn to_i64(bytes: &[u8]) -> Vec<i64> {
    let word = |b: &[u8]| i64::from_le_bytes(b.try_into().expect("eight bytes"));
    bytes.chunks_exact(8).map(word).collect()
}

/// Every value within `absolute + relative * |want|`; NaN equals NaN.
pub fn assert_close(got: &[f32], want: &[f32], absolute: f32, relative: f32, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        let equal = g == w || (g.is_nan() && w.is_nan());
        let near = (g - w).abs() <= absolute + relative * w.abs();
        assert!(equal || near, "{what}: element {i} is {g}, not {w}");
    }
}

/// All index tuples of a shape, in row-major order.
pub fn indices(shape: &[usize]) -> Vec<Vec<usize>> {
    let mut all = vec![Vec::new()];
    for &n in shape {
        all = all
            .into_iter()
            .flat_map(|p: Vec<usize>| {
                (0..n).map(move |i| p.iter().copied().chain([i]).collect::<Vec<usize>>())
            })
            .collect();
    }
    all
}

/// Row-major offset.
pub fn offset(shape: &[usize], index: &[usize]) -> usize {
    shape.iter().zip(index).fold(0, |sum, (&n, &i)| sum * n + i)
}
