//! The runtime: loads an `.fqbin`, binds it to input shapes, and runs its program on the
//! CPU or, with the feature `cuda`, on an NVIDIA GPU. It
//! knows no compiler, reads no environment, and starts no thread that a session did not ask for.
//!
//! ```no_run
//! use fqrt::{Model, Options, Session, SessionOptions, TensorView, Trust};
//!
//! let model = Model::load("minilm.fqbin".as_ref(), &Options::new(Trust::Anyone))?;
//! let mut session = Session::new(&model, SessionOptions::threads(2))?;
//! let ids = [101i64, 2129, 102];
//! let outputs = session.run(&[("input_ids", TensorView::of(&[1, 3], &ids))])?;
//! for (name, tensor) in outputs.iter() {
//!     println!("{name} {:?}", tensor.shape());
//! }
//! # Ok::<(), fqrt::Error>(())
//! ```
//!
//! Code in a file is native code: whoever loads a file with [`Trust::Anyone`] runs its maker's
//! program. What is checked without trust is everything else: any bytes whatsoever give an error
//! or a program whose every memory range is proven before a step runs.
//!
//! Unsafe code is in `memory`, `code`, `cpu`, `pool`, `launch` and `cuda::driver` only; `cuda::engine` and
//! `session::gpu` hand on what the caller of `Session::enqueue` promises.

mod code;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod error;
mod launch;
mod memory;
mod model;
mod pool;
mod session;
mod slices;
mod tensor;

pub use cpu::{best_level, level_available, missing_features};
#[cfg(feature = "cuda")]
pub use cuda::{Gpu, gpu};
pub use error::{Error, Result};
pub use fqbin::{Elem, Level, Place, Program, PublicKey, Trust};
pub use memory::{AlignedBytes, Plain, bytes_of, bytes_of_mut, numbers_of};
pub use model::{CPU_TARGET, Device, Load, Model, Options};
#[cfg(feature = "cuda")]
pub use session::DeviceTensor;
pub use session::{Observed, Session, SessionOptions};
pub use slices::Slices;
pub use tensor::{Number, Outputs, Tensor, TensorView, TensorViewMut};
