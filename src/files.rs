//! Files that are there whole or not at all.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use crate::hash::fnv1a;

/// The folder that a file of this path lies in.
pub(crate) fn folder_of(path: &Path) -> PathBuf {
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
pub(crate) fn write_whole(path: impl AsRef<Path>, bytes: &[u8]) -> io::Result<()> {
    let path = path.as_ref();
    let mut part = Part::beside(path)?;
    part.file.write_all(bytes)?;
    part.file.sync_all()?;
    std::fs::rename(&part.path, path)
}

/// Finds out before a long computation whether [`write_whole`] could write `path`. Nothing stays behind.
///
/// # Errors
/// Those of [`write_whole`] but the full disk.
pub(crate) fn check_writable(path: impl AsRef<Path>) -> io::Result<()> {
    let path = path.as_ref();
    if path.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    Part::beside(path).map(drop)
}

/// Names that are tried for a temporary file.
const TRIES: usize = 1000;

/// A temporary file, which goes with this value unless it was given another name.
struct Part {
    path: PathBuf,
    file: File,
}

impl Part {
    /// A new file `.medfuse-*.part` in the folder of `path`.
    fn beside(path: &Path) -> io::Result<Self> {
        let folder = folder_of(path);
        if !folder.is_dir() {
            let reason = format!("there is no folder {}", folder.display());
            return Err(io::Error::new(ErrorKind::NotFound, reason));
        }
        for _ in 0..TRIES {
            let path = folder.join(format!(".medfuse-{:016x}.part", unlikely_number()));
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => return Ok(Self { path, file }),
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e.kind().into()),
            }
        }
        Err(ErrorKind::AlreadyExists.into())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // After a rename there is no file of this name.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A number that other calls and other processes hardly have at the same time.
fn unlikely_number() -> u64 {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let nanoseconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.subsec_nanos());
    let call = CALLS.fetch_add(1, Ordering::Relaxed);
    fnv1a(format!("{} {call} {nanoseconds}", std::process::id()).as_bytes())
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

    #[test]
    fn nothing_but_the_file_stays_behind() {
        let folder = tempfile::tempdir().unwrap();
        let names = || {
            let entries = std::fs::read_dir(folder.path()).unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
        };
        check_writable(folder.path().join("out.csv")).unwrap();
        assert!(names().is_empty());
        std::fs::create_dir(folder.path().join("taken")).unwrap();
        // A folder is in the way only when the written file takes its name.
        write_whole(folder.path().join("taken"), b"new").unwrap_err();
        assert_eq!(names(), ["taken"]);
        std::fs::remove_dir(folder.path().join("taken")).unwrap();
        std::thread::scope(|scope| {
            for i in 0..8 {
                let path = folder.path().join("out.csv");
                scope.spawn(move || write_whole(path, &[i; 1000]).unwrap());
            }
        });
        assert_eq!(names(), ["out.csv"]);
        let bytes = std::fs::read(folder.path().join("out.csv")).unwrap();
        assert!(bytes.len() == 1000 && bytes.iter().all(|b| *b == bytes[0]));
    }
}
