//! A product by either family of gemms.

use crate::device::Device;
use crate::gemm::{Gemm, Operands, Parts, Shape, sanitised};
use crate::gemm_sm80::GemmSm80;
use anyhow::Result;
use fqc_kernels::cuda::gemm::{Activation, GemmConfig, Output, Weights};
use fqc_kernels::cuda::gemm_sm80::GemmSm80Config;
use std::fmt;

/// An instance of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Product {
    Hopper(GemmConfig),
    Sm80(GemmSm80Config),
}

/// What the result of an instance is, whatever computes it.
#[derive(Clone, Copy, Debug)]
pub struct Meaning {
    pub weights: Weights,
    pub unsigned: bool,
    pub output: Output,
    pub activation: Activation,
    pub bias: bool,
    pub residual: bool,
    pub digits: bool,
}

impl Product {
    pub fn meaning(&self) -> Meaning {
        match *self {
            Self::Hopper(GemmConfig {
                weights,
                unsigned,
                output,
                activation,
                bias,
                residual,
                digits,
                ..
            })
            | Self::Sm80(GemmSm80Config {
                weights,
                unsigned,
                output,
                activation,
                bias,
                residual,
                digits,
                ..
            }) => Meaning { weights, unsigned, output, activation, bias, residual, digits },
        }
    }

    pub fn source(&self) -> String {
        match self {
            Self::Hopper(config) => sanitised(config.source()),
            Self::Sm80(config) => config.source(),
        }
    }

    pub fn launch(&self, device: &Device, shape: Shape, operands: &Operands) -> Result<()> {
        match self {
            Self::Hopper(config) => match Parts::new(device, config, shape, operands)? {
                Some(parts) => parts.launch(device),
                None => Gemm::new(device, config, shape, operands)?.launch(device),
            },
            Self::Sm80(config) => GemmSm80::new(device, config, shape, operands)?.launch(device),
        }
    }
}

impl fmt::Display for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hopper(config) => config.fmt(f),
            Self::Sm80(config) => config.fmt(f),
        }
    }
}
