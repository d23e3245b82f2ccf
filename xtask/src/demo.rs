//! `cargo xtask demo`.
use anyhow::Result;
/// Soon.
pub fn demo() -> Result<()> {
    Ok(())
}
