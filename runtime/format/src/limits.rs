//! Every limit of the format, in one documented struct. The reader refuses what exceeds them
//! before it allocates, and the writer refuses to make it.

/// Largest counts and sizes that a file may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Length of the file, in bytes.
    pub file_bytes: u64,
    /// Entries of the section table.
    pub sections: u32,
    /// Length of the manifest, in bytes.
    pub manifest_bytes: u64,
    /// Length of one plan section, in bytes.
    pub plan_bytes: u64,
    /// Length of one code section, in bytes.
    pub code_bytes: u64,
    /// Length of a name, in bytes.
    pub name_bytes: u32,
    /// Dimensions of a tensor.
    pub rank: u32,
    /// Symbols of a program.
    pub symbols: u32,
    /// Expressions of a program.
    pub exprs: u32,
    /// Buffers of a program.
    pub buffers: u32,
    /// Inputs, and outputs, of a program.
    pub ports: u32,
    /// Conditions of a program.
    pub conditions: u32,
    /// Kernels of a program.
    pub kernels: u32,
    /// Attributes of a kernel.
    pub attrs: u32,
    /// Steps of a program.
    pub steps: u32,
    /// Arguments of a step.
    pub args: u32,
    /// Dimensions of a step.
    pub dims: u32,
}

/// The limits of this version.
pub const LIMITS: Limits = Limits {
    file_bytes: 1 << 40,
    sections: 64,
    manifest_bytes: 64 << 20,
    plan_bytes: 64 << 20,
    code_bytes: 1 << 30,
    name_bytes: 4096,
    rank: 16,
    symbols: 4096,
    exprs: 1 << 20,
    buffers: 1 << 15,
    ports: 4096,
    conditions: 1 << 16,
    kernels: 1 << 16,
    attrs: 64,
    steps: 1 << 18,
    args: 256,
    dims: 1024,
};
