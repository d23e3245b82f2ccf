//! Files that are whole or not there.

use crate::exit::Failure;
use std::fs;
use std::io::Write;
use std::path::Path;

/// Writes beside and renames, so that nobody finds half a file.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let name = path.file_name().ok_or_else(|| Failure::usage("the file has no name"))?;
    let beside = format!(".{}.{}", name.to_string_lossy(), std::process::id());
    let beside = path.with_file_name(beside);
    let written = fs::File::create(&beside)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&beside, path));
    written.map_err(|e| {
        // The first error is the one to report.
        let _ = fs::remove_file(&beside);
        Failure::io("write", path, &e)
    })
}
