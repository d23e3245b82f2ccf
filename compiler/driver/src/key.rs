//! The user's signing key: made at the first compile, kept in the user's data folder, used to tell
//! one's own files from a stranger's.

use crate::exit::Failure;
use fqbin::{SecretKey, Trust};
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

/// Where the key lies: `$FQC_HOME`, else `$XDG_DATA_HOME/fqc`, else `~/.local/share/fqc`.
pub fn folder() -> Option<PathBuf> {
    let var = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    var("FQC_HOME")
        .or_else(|| var("XDG_DATA_HOME").map(|d| d.join("fqc")))
        .or_else(|| var("HOME").map(|d| d.join(".local/share/fqc")))
}

/// The user's key, made now if there is none.
pub fn own() -> Result<SecretKey, Failure> {
    let dir = folder().ok_or_else(|| {
        Failure::usage("no place for the signing key: set FQC_HOME or HOME to a folder")
    })?;
    let path = dir.join("key");
    if let Some(key) = read(&path)? {
        return Ok(key);
    }
    fs::create_dir_all(&dir).map_err(|e| Failure::io("create", &dir, &e))?;
    let mut seed = [0u8; 32];
    getrandom::fill(&mut seed).map_err(Failure::internal)?;
    let open = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    match open {
        Ok(mut file) => {
            file.write_all(&seed)
                .and_then(|()| file.sync_all())
                .map_err(|e| Failure::io("write", &path, &e))?;
            Ok(SecretKey::from_bytes(&seed))
        }
        // Another process was first.
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => read(&path)?
            .ok_or_else(|| Failure::usage(format!("`{}` vanished; try again", path.display()))),
        Err(e) => Err(Failure::io("create", &path, &e)),
    }
}

fn read(path: &std::path::Path) -> Result<Option<SecretKey>, Failure> {
    match fs::read(path) {
        Ok(bytes) => {
            let seed: [u8; 32] = bytes.try_into().map_err(|_| {
                let path = path.display();
                Failure::usage(format!("`{path}` is not a signing key of 32 bytes; move it away"))
            })?;
            Ok(Some(SecretKey::from_bytes(&seed)))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Failure::io("read", path, &e)),
    }
}

/// Whose code may run: one's own, or anybody's if the user said so.
pub fn trust(anyone: bool) -> Result<Trust, Failure> {
    if anyone {
        return Ok(Trust::Anyone);
    }
    let key = match folder() {
        Some(dir) => read(&dir.join("key"))?,
        None => None,
    };
    Ok(Trust::Keys(key.iter().map(SecretKey::public).collect()))
}
