//! Blobs of small kernels, called directly.

use fqbin::Level;
use inkwell::context::Context;

use super::CpuError;
use super::build::Code;
use super::exec::{self, Mapped};

/// `y[i] = x[i] * 2 + [0, 1, 2, …]` over work items of one element, vectors with a masked tail.
fn scale_kernel(code: &Code<'_>) -> Result<(), CpuError> {
    let lanes = code.level().f32_lanes();
    code.kernel("scale", |b| {
        let (x, y) = (b.buf(0), b.buf(1));
        let step = i64::from(lanes);
        b.for_range(b.begin(), b.end(), step, |i| {
            let mask = b.mask_first(b.sub(b.end(), i), lanes);
            let ty = b.f32v(lanes);
            let source = b.index(x, b.f32(), i);
            let value = b.masked_load(ty, source, mask, b.zero(ty));
            let place = b.add(b.splat(i, lanes), b.iota(b.int(64), lanes));
            let place = b.sitofp(place, ty);
            let result = b.fma(value, b.fconst(ty, 2.0), place);
            b.masked_store(result, b.index(y, b.f32(), i), mask);
        });
        Ok(())
    })
}

#[test]
fn a_blob_runs_where_it_is_mapped() {
    for level in Level::ALL.into_iter().filter(|&level| exec::available(level)) {
        let context = Context::create();
        let code = Code::new(&context, "t", level).unwrap();
        scale_kernel(&code).unwrap();
        let blob = code.finish().unwrap();
        let mapped = Mapped::new(&blob).unwrap();
        let mut x: Vec<f32> = (0..37).map(|i| i as f32 * 0.5).collect();
        let mut y = vec![-1.0f32; 37];
        let bufs = [x.as_mut_ptr().cast(), y.as_mut_ptr().cast()];
        // SAFETY: both buffers hold 37 floats; the last two stay untouched.
        let status = unsafe { mapped.call("scale", &bufs, &[], 0..35, std::ptr::null_mut()) };
        assert_eq!(status, 0);
        let expected: Vec<f32> =
            (0..37).map(|i| if i < 35 { 2.0 * i as f32 } else { -1.0 }).collect();
        assert_eq!(y, expected, "{}", level.name());
    }
}

#[test]
fn every_level_compiles_to_the_same_bytes_twice() {
    for level in Level::ALL {
        let compile = || {
            let context = Context::create();
            let code = Code::new(&context, "t", level).unwrap();
            scale_kernel(&code).unwrap();
            code.finish().unwrap()
        };
        assert_eq!(compile(), compile(), "{}", level.name());
    }
}

#[test]
fn a_call_outside_is_refused_by_name() {
    let context = Context::create();
    let code = Code::new(&context, "t", Level::Avx2).unwrap();
    code.kernel("sine", |b| {
        let x = b.load(b.f32(), b.buf(0), 4);
        b.store(b.call("llvm.sin", &[b.f32()], &[x]), b.buf(0), 4);
        Ok::<(), CpuError>(())
    })
    .unwrap();
    let error = code.finish().unwrap_err().to_string();
    assert!(error.contains("undefined symbol `sinf`"), "{error}");
}
