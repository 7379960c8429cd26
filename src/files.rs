//! Files that are there whole or not at all.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

/// The folder that a file of this path lies in.
pub fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// Writes a file into a temporary one beside it, which then takes its name: a reader sees the old file or the whole
/// new one, and what was interrupted leaves no half-written file of that name.
///
/// # Errors
/// No such folder, no permission, disk full, a folder of that name.
pub fn write_whole(path: impl AsRef<Path>, bytes: &[u8]) -> io::Result<()> {
    let path = path.as_ref();
    let mut file = temporary_beside(path)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

/// Finds out before a long computation whether [`write_whole`] could write `path`. Nothing stays behind.
///
/// # Errors
/// Those of [`write_whole`] but the full disk.
pub fn check_writable(path: impl AsRef<Path>) -> io::Result<()> {
    let path = path.as_ref();
    if path.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    temporary_beside(path).map(drop)
}

fn temporary_beside(path: &Path) -> io::Result<NamedTempFile> {
    let folder = folder_of(path);
    if !folder.is_dir() {
        let reason = format!("there is no folder {}", folder.display());
        return Err(io::Error::new(io::ErrorKind::NotFound, reason));
    }
    let mut builder = tempfile::Builder::new();
    builder.prefix(".medfuse-").suffix(".part");
    // The umask takes from this what the user does not want; a temporary file has 0600 otherwise.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    // The library's own message names the temporary file, which says nothing to people.
    builder.tempfile_in(folder).map_err(|e| e.kind().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(unix)]
    fn a_file_is_replaced_whole_and_readable_by_all() {
        use std::io::Read;
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.csv");
        write_whole(&path, b"the old one").unwrap();
        let mut reader = std::fs::File::open(&path).unwrap();
        write_whole(&path, b"new").unwrap();
        // Who had the old file open still sees all of it: it was never written over.
        let mut seen = String::new();
        reader.read_to_string(&mut seen).unwrap();
        assert_eq!((seen.as_str(), std::fs::read(&path).unwrap().as_slice()), ("the old one", &b"new"[..]));
        let plain = folder.path().join("plain");
        std::fs::write(&plain, b"").unwrap();
        let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode();
        assert_eq!(mode(&path), mode(&plain));
    }
}
