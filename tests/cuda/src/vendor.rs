//! cublasLt, the library to beat: the best of all algorithms that its heuristic offers.

use crate::device::{Buffer, Device, address};
use crate::gemm::Shape;
use anyhow::{Result, bail};
use cudarc::cublaslt::sys::*;
use std::ffi::c_void;
use std::ptr;

/// What the library multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// INT8 into s32.
    S32,
    /// INT8 into s8, with a float scale.
    S8,
    /// IEEE halves into halves.
    F16,
}

/// `CUBLAS_OP_T`.
const TRANSPOSE: i32 = 1;
const WORKSPACE: usize = 64 << 20;
const CANDIDATES: usize = 64;

pub struct Vendor {
    handle: cublasLtHandle_t,
    workspace: Buffer,
}

/// One product with one algorithm.
pub struct Plan {
    kind: Kind,
    operation: cublasLtMatmulDesc_t,
    layouts: [cublasLtMatrixLayout_t; 3],
    pub algorithms: Vec<cublasLtMatmulAlgo_t>,
}

fn ok(status: cublasStatus_t) -> Result<()> {
    if status != cublasStatus_t::CUBLAS_STATUS_SUCCESS {
        bail!("cublasLt: {status:?}");
    }
    Ok(())
}

impl Vendor {
    pub fn new(device: &Device) -> Result<Self> {
        let mut handle = ptr::null_mut();
        // SAFETY: the pointer is to a live handle.
        ok(unsafe { cublasLtCreate(&mut handle) })?;
        Ok(Self { handle, workspace: device.filled(WORKSPACE, 0)? })
    }

    /// Row-major `y[m][n] = x[m][k] w[n][k]ᵀ`, which the library sees as column-major
    /// `yᵀ = wᵀᵀ xᵀ`, the only layout whose INT8 kernels use the tensor cores.
    pub fn plan(&self, kind: Kind, shape: Shape) -> Result<Plan> {
        use cudaDataType_t::{CUDA_R_8I, CUDA_R_16F, CUDA_R_32F, CUDA_R_32I};
        let (compute, scale, input, output) = match kind {
            Kind::S32 => {
                (cublasComputeType_t::CUBLAS_COMPUTE_32I, CUDA_R_32I, CUDA_R_8I, CUDA_R_32I)
            }
            Kind::S8 => (cublasComputeType_t::CUBLAS_COMPUTE_32I, CUDA_R_32F, CUDA_R_8I, CUDA_R_8I),
            Kind::F16 => {
                (cublasComputeType_t::CUBLAS_COMPUTE_32F, CUDA_R_32F, CUDA_R_16F, CUDA_R_16F)
            }
        };
        let Shape { m, n, k } = shape;
        let mut operation = ptr::null_mut();
        let mut preference = ptr::null_mut();
        let mut layouts = [ptr::null_mut(); 3];
        let mut found = Vec::with_capacity(CANDIDATES);
        let mut count = 0;
        // SAFETY: all pointers are to live values of the types that the attributes ask for.
        unsafe {
            ok(cublasLtMatmulDescCreate(&mut operation, compute, scale))?;
            let (transpose, workspace) = (TRANSPOSE, WORKSPACE);
            ok(cublasLtMatmulDescSetAttribute(
                operation,
                cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA,
                (&raw const transpose).cast(),
                size_of_val(&transpose),
            ))?;
            let sizes = [(input, k, n, k), (input, k, m, k), (output, n, m, n)];
            for (layout, (kind, rows, columns, pitch)) in layouts.iter_mut().zip(sizes) {
                ok(cublasLtMatrixLayoutCreate(
                    layout,
                    kind,
                    rows as u64,
                    columns as u64,
                    pitch as i64,
                ))?;
            }
            ok(cublasLtMatmulPreferenceCreate(&mut preference))?;
            ok(cublasLtMatmulPreferenceSetAttribute(
                preference,
                cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                (&raw const workspace).cast(),
                size_of::<usize>(),
            ))?;
            ok(cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                operation,
                layouts[0],
                layouts[1],
                layouts[2],
                layouts[2],
                preference,
                CANDIDATES as i32,
                found.as_mut_ptr(),
                &mut count,
            ))?;
            found.set_len(count as usize);
            ok(cublasLtMatmulPreferenceDestroy(preference))?;
        }
        let usable = |result: &&cublasLtMatmulHeuristicResult_t| {
            result.state == cublasStatus_t::CUBLAS_STATUS_SUCCESS
        };
        let algorithms = found.iter().filter(usable).map(|result| result.algo).collect();
        Ok(Plan { kind, operation, layouts, algorithms })
    }

    pub fn launch(
        &self,
        device: &Device,
        plan: &Plan,
        algorithm: &cublasLtMatmulAlgo_t,
        x: &Buffer,
        w: &Buffer,
        y: &Buffer,
    ) -> Result<()> {
        let (integers, floats) = ([1i32, 0], [1.0 / 16384.0f32, 0.0]);
        let factors: *const c_void = match plan.kind {
            Kind::S32 => integers.as_ptr().cast(),
            Kind::S8 | Kind::F16 => floats.as_ptr().cast(),
        };
        let at = |buffer: &Buffer| address(buffer, &device.stream);
        // SAFETY: the buffers are as large as the layouts say; both factors are four bytes.
        ok(unsafe {
            cublasLtMatmul(
                self.handle,
                plan.operation,
                factors,
                at(w) as *const c_void,
                plan.layouts[0],
                at(x) as *const c_void,
                plan.layouts[1],
                factors.cast::<u8>().add(4).cast(),
                at(y) as *const c_void,
                plan.layouts[2],
                at(y) as *mut c_void,
                plan.layouts[2],
                algorithm,
                at(&self.workspace) as *mut c_void,
                WORKSPACE,
                device.stream.cu_stream().cast(),
            )
        })
    }
}

impl Plan {
    pub fn kind(&self) -> Kind {
        self.kind
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: made by `plan`, not used again.
        unsafe {
            cublasLtMatmulDescDestroy(self.operation);
            for layout in self.layouts {
                cublasLtMatrixLayoutDestroy(layout);
            }
        }
    }
}

impl Drop for Vendor {
    fn drop(&mut self) {
        // SAFETY: made by `new`, not used again.
        unsafe { cublasLtDestroy(self.handle) };
    }
}
