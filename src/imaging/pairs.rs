//! Folders of images, matched by name.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};

use super::ImagingError;
use super::encode::format_for;

/// The images of one name, one from each of `N` folders.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Group<const N: usize> {
    /// The name without its extension.
    pub name: String,
    /// The files, in the order of the folders.
    pub paths: [PathBuf; N],
}

/// A name that could not be matched.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unmatched {
    /// The name without its extension.
    pub name: String,
    /// Why.
    pub reason: UnmatchedReason,
}

/// Why a name could not be matched.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum UnmatchedReason {
    /// This folder has no image of the name.
    Missing {
        /// The folder.
        folder: PathBuf,
    },
    /// One folder has several images of the name, so which one is meant is open.
    Ambiguous {
        /// The files, sorted.
        files: Vec<PathBuf>,
    },
}

impl fmt::Display for UnmatchedReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { folder } => write!(f, "no image of this name in {}", folder.display()),
            Self::Ambiguous { files } => {
                let names = files.iter().filter_map(|p| p.file_name());
                let names: Vec<_> = names.map(|n| n.to_string_lossy()).collect();
                write!(f, "several files have this name ({}); keep one", names.join(", "))
            }
        }
    }
}

impl fmt::Display for Unmatched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.reason)
    }
}

/// What [`match_folders`] found, each list sorted by name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Matched<const N: usize> {
    /// Names with exactly one image in every folder.
    pub groups: Vec<Group<N>>,
    /// Names that some folder lacks or has twice.
    pub unmatched: Vec<Unmatched>,
    /// Files whose extension is not an image's. Hidden files and folders inside are passed over without mention.
    pub ignored: Vec<PathBuf>,
}

/// Matches the images of `N` folders by file name without extension (`0001.png` goes with `0001.jpg`); case counts.
///
/// Files are images by their extension: png, jpg, jpeg, bmp, tif, tiff.
///
/// # Errors
/// [`ImagingError::Unreadable`] if a folder cannot be listed.
pub fn match_folders<const N: usize>(folders: [&Path; N]) -> Result<Matched<N>, ImagingError> {
    let mut by_name: BTreeMap<String, [Vec<PathBuf>; N]> = BTreeMap::new();
    let mut ignored = Vec::new();
    for (place, folder) in folders.into_iter().enumerate() {
        for path in files_in(folder)? {
            match path.file_stem() {
                Some(stem) if format_for(&path).is_ok() => {
                    let files = by_name.entry(stem.to_string_lossy().into_owned());
                    files.or_insert_with(|| [const { Vec::new() }; N])[place].push(path);
                }
                _ => ignored.push(path),
            }
        }
    }
    let (mut groups, mut unmatched) = (Vec::new(), Vec::new());
    for (name, mut files) in by_name {
        if let Some(missing) = files.iter().position(Vec::is_empty) {
            let reason = UnmatchedReason::Missing { folder: folders[missing].into() };
            unmatched.push(Unmatched { name, reason });
        } else if let Some(several) = files.iter_mut().find(|f| f.len() > 1) {
            let reason = UnmatchedReason::Ambiguous { files: std::mem::take(several) };
            unmatched.push(Unmatched { name, reason });
        } else {
            groups.push(Group { name, paths: files.map(|mut f| f.swap_remove(0)) });
        }
    }
    Ok(Matched { groups, unmatched, ignored })
}

/// The files of a folder that are not hidden, sorted.
fn files_in(folder: &Path) -> Result<Vec<PathBuf>, ImagingError> {
    let unreadable = |reason| ImagingError::Unreadable { path: folder.into(), reason };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let hidden = path.file_name().is_some_and(|n: &OsStr| n.as_encoded_bytes().starts_with(b"."));
        if !hidden && !path.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            std::fs::write(folder.path().join(name), b"").unwrap();
        }
        folder
    }

    #[test]
    fn names_are_matched_sorted_and_the_rest_is_told() {
        let mri = folder(&["b.png", "a.PNG", "only.bmp", "twice.png", "twice.jpg", ".hidden.png", "notes.txt"]);
        let other = folder(&["a.tif", "b.jpeg", "twice.png", "extra.png"]);
        std::fs::create_dir(other.path().join("folder.png")).unwrap();
        let found = match_folders([mri.path(), other.path()]).unwrap();
        let paths = |m: &str, o: &str| [mri.path().join(m), other.path().join(o)];
        assert_eq!(
            found.groups,
            [
                Group { name: "a".into(), paths: paths("a.PNG", "a.tif") },
                Group { name: "b".into(), paths: paths("b.png", "b.jpeg") }
            ]
        );
        let told: Vec<String> = found.unmatched.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                format!("extra: no image of this name in {}", mri.path().display()),
                format!("only: no image of this name in {}", other.path().display()),
                "twice: several files have this name (twice.jpg, twice.png); keep one".to_string(),
            ]
        );
        assert_eq!(found.ignored, [mri.path().join("notes.txt")]);
    }

    #[test]
    fn three_folders_match_too() {
        let folders = [folder(&["1.png", "2.png"]), folder(&["1.png", "2.png"]), folder(&["2.png"])];
        let found = match_folders([0, 1, 2].map(|i| folders[i].path())).unwrap();
        assert_eq!(found.groups.iter().map(|g| g.name.as_str()).collect::<Vec<_>>(), ["2"]);
        assert_eq!(found.unmatched.len(), 1);
    }

    #[test]
    fn a_folder_that_is_not_there_is_unreadable() {
        let here = folder(&[]);
        let error = match_folders([here.path(), &here.path().join("no")]).unwrap_err();
        assert!(matches!(error, ImagingError::Unreadable { .. }), "{error}");
    }
}
