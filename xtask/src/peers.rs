//! `cargo xtask peers`.
use anyhow::Result;
/// Soon.
pub fn peers(_: &[&str]) -> Result<()> {
    Ok(())
}
