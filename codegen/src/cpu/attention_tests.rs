//! Attention in tile registers, here kept in memory, beside the same attention in vector registers,
//! which `tests/kernels` sets beside the formula.

use fqbin::Level;
use fqc_ir::dim::Dim;
use fqc_ir::plan::{BufferId, Kernel, Precision, Step, View};
use fqc_ir::types::Elem;
use inkwell::context::Context;

use super::attention::{self, Attention};
use super::build::Code;
use super::call::{Call, Spec};
use super::exec::{self, Mapped};
use super::tiles::Native;
use super::tiles_emulated::Emulated;

/// Masks \[b, 1, 1, t\].
#[derive(Clone, Copy, PartialEq, Debug)]
enum Mask {
    None,
    /// Numbers, some of them -inf.
    Mixed,
    Zeros,
    /// Zeros and the lowest number; nothing but that for the last item of the batch.
    Lowest,
    /// Zeros and -1e5; nothing but -inf for the last item of the batch.
    Hidden,
}

/// Sizes of a problem: batch, heads, groups of heads, queries, keys, channels of q and v.
#[derive(Clone, Copy, Debug)]
struct Case {
    b: i64,
    h: i64,
    g: i64,
    s: i64,
    t: i64,
    d: i64,
    e: i64,
    causal: bool,
    mask: Mask,
}

impl Case {
    /// The step over \[b, s, h, d\] buffers seen as \[b, h, s, d\], with a mask \[b, 1, 1, t\].
    fn call(&self) -> Call {
        let view = |id: usize, seq: i64, heads: i64, depth: i64| {
            let shape = [self.b, seq, heads, depth].map(Dim::from);
            let mut view = View::whole(BufferId(id), &shape);
            view.shape.swap(1, 2);
            view.strides.swap(1, 2);
            view
        };
        let mut args = vec![
            view(0, self.s, self.h, self.d),
            view(1, self.t, self.g, self.d),
            view(2, self.t, self.g, self.e),
        ];
        if self.mask != Mask::None {
            let shape = [self.b, self.h, self.s, self.t].map(Dim::from).to_vec();
            let strides = vec![Dim::from(self.t), Dim::zero(), Dim::zero(), Dim::one()];
            args.push(View { shape, strides, ..View::whole(BufferId(3), &[Dim::one()]) });
        }
        let results = vec![view(4, self.s, self.h, self.e)];
        let (causal, mask, precision) = (self.causal, self.mask != Mask::None, Precision::Bf16);
        let kernel = Kernel::Attention { scale: 0.2, causal, mask, precision };
        let step = Step { name: "y".to_owned(), kernel, args, results };
        let elems = vec![Elem::F32; 4 + usize::from(mask)];
        attention::call(&step, 0.2, causal, mask, precision, &elems).expect("a kernel")
    }

    fn buffers(&self) -> Vec<Vec<f32>> {
        let noise = |count: i64, seed: i64| -> Vec<f32> {
            let value = |i: i64| ((i * 7919 + seed * 104_729) % 2003) as f32 / 500.0 - 2.0;
            (0..count).map(value).collect()
        };
        let mut buffers = vec![
            noise(self.b * self.s * self.h * self.d, 1),
            noise(self.b * self.t * self.g * self.d, 2),
            noise(self.b * self.t * self.g * self.e, 3),
        ];
        if self.mask != Mask::None {
            let last = ((self.b - 1) * self.t) as usize;
            let value = |(i, x): (usize, f32)| match self.mask {
                Mask::Mixed if x > 1.0 => f32::NEG_INFINITY,
                Mask::Mixed => x,
                Mask::Lowest if i >= last || x > 1.0 => f32::MIN,
                Mask::Hidden if i >= last => f32::NEG_INFINITY,
                Mask::Hidden if x > 1.0 => -1e5,
                _ => 0.0,
            };
            buffers.push(noise(self.b * self.t, 4).into_iter().enumerate().map(value).collect());
        }
        buffers.push(vec![f32::NAN; (self.b * self.s * self.h * self.e) as usize]);
        buffers
    }

    /// The result, the same however the items are cut into calls.
    fn run(&self, tiles: bool) -> Vec<f32> {
        let call = self.call();
        let value = |dim: &Dim| dim.as_const().expect("constant sizes");
        let scratch_bytes = value(&call.scratch_bytes) as usize;
        let Spec::Attention(kernel) = call.spec else { panic!("attention") };
        assert!(kernel.fits_tiles(), "{self:?}");
        let context = Context::create();
        let code = Code::new(&context, "test", Level::Avx512Bf16).expect("a target machine");
        // Between scratch and the tiles lies what nobody may write.
        let at = scratch_bytes.next_multiple_of(64) + 64;
        let emulated = Emulated { at: at as i64 };
        let emit = |kernel: &Attention| {
            code.kernel("attention", |b| {
                if tiles {
                    kernel.emit_with(b, Some(&emulated));
                } else {
                    kernel.emit_with(b, None::<&Native>);
                }
                Ok::<(), super::CpuError>(())
            })
        };
        emit(&kernel).expect("a body");
        let blob = Mapped::new(&code.finish().expect("code")).expect("mapped code");
        let work = value(&call.work);
        let mut scratch = vec![[u32::MAX; 16]; at / 64 + 130];
        let run = |calls: i64| {
            let mut buffers = self.buffers();
            let bufs: Vec<*mut u8> = buffers.iter_mut().map(|x| x.as_mut_ptr().cast()).collect();
            for call in (0..calls).rev() {
                // Not a number, so that what is read before this call has written it shows.
                scratch.fill([u32::MAX; 16]);
                let first = scratch.as_mut_ptr().cast::<u8>();
                let skipped = first.align_offset(64);
                let items = work * call / calls..work * (call + 1) / calls;
                // SAFETY: buffers and scratch have the sizes that the call asks for, with tiles behind.
                let status = unsafe {
                    blob.call("attention", &bufs, &[], items, first.wrapping_add(skipped))
                };
                assert_eq!(status, 0);
                let bytes = scratch.as_flattened().iter().flat_map(|word| word.to_le_bytes());
                let guard = bytes.skip(skipped + scratch_bytes).take(at - scratch_bytes);
                assert!(
                    guard.into_iter().all(|byte| byte == 0xff),
                    "{self:?} writes behind scratch"
                );
            }
            buffers.pop().expect("the result")
        };
        let [whole, three, single] = [1, 3.min(work), work].map(run);
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert!(bits(&whole) == bits(&three) && bits(&whole) == bits(&single), "{self:?} in parts");
        whole
    }
}

/// Both ways of computing give about the same.
fn check(case: Case) {
    let (tiles, vectors) = (case.run(true), case.run(false));
    for (i, (x, y)) in tiles.iter().zip(&vectors).enumerate() {
        // An exponential between two numbers of bf16 may go either way.
        let fits = (x - y).abs() <= 4e-3 * y.abs().max(0.1);
        assert!(fits || x.is_nan() && y.is_nan(), "{case:?} at {i}: {x} and {y}");
    }
}

#[test]
fn tiles_give_what_vectors_give() {
    if !exec::available(Level::Avx512Bf16) {
        return;
    }
    let sizes = [(1, 1), (16, 16), (17, 31), (32, 32), (33, 70), (50, 17), (128, 128), (5, 97)];
    for (i, (s, t)) in sizes.into_iter().enumerate() {
        for causal in [false, true] {
            let (d, e) = [(32, 32), (64, 64), (32, 48), (96, 16)][i % 4];
            let mask = if (i + usize::from(causal)) % 2 == 0 { Mask::Mixed } else { Mask::None };
            check(Case { b: 2, h: 4, g: 2, s, t, d, e, causal, mask });
        }
    }
}

#[test]
fn tiles_walk_over_heads_and_channels() {
    if !exec::available(Level::Avx512Bf16) {
        return;
    }
    let heads = [(3, 1), (4, 4), (6, 2), (1, 1)];
    let sizes = [(150, 150), (65, 200), (200, 65), (48, 48)];
    let depths = [(64, 128), (32, 32), (128, 80), (160, 160)];
    for (i, (((h, g), (s, t)), (d, e))) in heads.into_iter().zip(sizes).zip(depths).enumerate() {
        for causal in [false, true] {
            let mask = if i % 2 == 0 { Mask::None } else { Mask::Zeros };
            check(Case { b: 2, h, g, s, t, d, e, causal, mask });
        }
    }
}

#[test]
fn tiles_take_every_mask() {
    if !exec::available(Level::Avx512Bf16) {
        return;
    }
    for mask in [Mask::Mixed, Mask::Zeros, Mask::Lowest, Mask::Hidden] {
        for causal in [false, true] {
            check(Case { b: 3, h: 2, g: 1, s: 20, t: 75, d: 32, e: 32, causal, mask });
        }
    }
}
