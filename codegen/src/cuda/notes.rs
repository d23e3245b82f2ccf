//! What ptxas says about a kernel. Its notes are the performance test that needs no GPU.

/// Resources of one kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Registers of a thread at launch.
    pub registers: u32,
    /// Bytes of local memory of a thread.
    pub stack: u32,
    /// Bytes that a thread spills and loads again.
    pub spills: u32,
}

/// Advisories that mean code far slower than it looks:
/// setmaxnreg ignored (C7504, C7508), wgmma serialised (C7510, C7511 and their neighbours),
/// arrivals put in by the assembler (C7519).
const SERIOUS: [&str; 8] = ["C7504", "C7508", "C7510", "C7511", "C7512", "C7513", "C7514", "C7519"];

/// Reads a log that was made with `--ptxas-options=-v`.
///
/// # Errors
/// The first line that speaks of spills, local memory or a serious advisory.
pub fn read(log: &str) -> Result<Resources, String> {
    let mut resources = Resources::default();
    for line in log.lines() {
        if SERIOUS.iter().any(|code| line.contains(code)) {
            return Err(line.trim().to_owned());
        }
        if let Some(registers) = number_before(line, " registers") {
            resources.registers = registers;
        }
        if let Some(stack) = number_before(line, " bytes stack frame") {
            resources.stack = stack;
            resources.spills = number_before(line, " bytes spill stores").unwrap_or(0)
                + number_before(line, " bytes spill loads").unwrap_or(0);
            if stack + resources.spills > 0 {
                return Err(line.trim().to_owned());
            }
        }
    }
    Ok(resources)
}

/// The number that ends where `unit` begins.
fn number_before(line: &str, unit: &str) -> Option<u32> {
    let before = &line[..line.find(unit)?];
    let start = before.rfind(|c: char| !c.is_ascii_digit()).map_or(0, |at| at + 1);
    before[start..].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'gemm' for 'sm_90a'
ptxas info    : Function properties for gemm
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 168 registers, used 3 barriers";

    #[test]
    fn resources_are_read() {
        let resources = read(GOOD).expect("no fault");
        assert_eq!(resources, Resources { registers: 168, stack: 0, spills: 0 });
    }

    #[test]
    fn spills_and_serialised_wgmma_are_refused() {
        let spilled = GOOD.replace("0 bytes stack frame, 0", "16 bytes stack frame, 16");
        assert!(read(&spilled).unwrap_err().contains("16 bytes spill stores"));
        let serial = format!("{GOOD}\nptxas info : (C7511) Potential Performance Loss: wgmma");
        assert!(read(&serial).unwrap_err().contains("C7511"));
    }
}
