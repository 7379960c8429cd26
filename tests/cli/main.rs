//! The built command on small synthetic heads: what it writes, what it says when something is wrong, and with which
//! exit code. One crate, so that the library is linked once.

mod bad_images;
mod bad_weights;
mod compare;
mod devices;
mod errors;
mod fuse;
#[cfg(unix)]
mod interrupt;
mod texts;
mod train;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use medfuse::imaging::Image;
use serde_json::Value;

/// The command with arguments, not yet run.
fn command<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_medfuse"));
    command.args(args);
    command
}

/// What a finished command said.
struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

/// Runs the command. Whatever becomes of it, it may not panic or show people the inside of an error.
fn ran(command: &mut Command) -> Ran {
    let Output { status, stdout, stderr } = command.output().expect("the command starts");
    let text = |bytes| String::from_utf8(bytes).expect("the command prints UTF-8");
    let (stdout, stderr) = (text(stdout), text(stderr));
    for sign in ["panicked", "RUST_BACKTRACE", "Some(", "Err(", " { "] {
        assert!(!stderr.contains(sign), "{sign:?} in: {stderr}");
    }
    Ran { code: status.code(), stdout, stderr }
}

fn medfuse(args: &[&str]) -> Ran {
    ran(&mut command(args))
}

impl Ran {
    /// The command must have succeeded.
    fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        self
    }

    /// The command must have failed and said all of `parts`.
    fn fails_with(self, parts: &[&str]) -> Self {
        assert_eq!(self.code, Some(1), "{}\n{}", self.stdout, self.stderr);
        for part in parts {
            assert!(self.stderr.contains(part), "no {part:?} in: {}", self.stderr);
        }
        self
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).expect("the standard output is JSON alone")
    }
}

/// A temporary folder with the synthetic heads in it.
struct Lab {
    folder: tempfile::TempDir,
}

impl Lab {
    /// `count` heads of `size` x `size` pixels, MRI and one other modality.
    fn heads(count: usize, size: usize, modality: &str) -> Self {
        let lab = Self::empty();
        let (count, size) = (count.to_string(), size.to_string());
        let out = lab.text("");
        let phantom = ["phantom", &out, "--count", &count, "--size", &size];
        medfuse(&[&phantom[..], &["--modality", modality]].concat()).ok();
        lab
    }

    fn empty() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The path as an argument.
    fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("UTF-8").to_owned()
    }

    /// `medfuse fuse MRI OTHER -o OUT MORE` of paths in this folder.
    fn fuse(&self, mri: &str, other: &str, out: &str, more: &[&str]) -> Ran {
        let paths = [mri, other, out].map(|name| self.text(name));
        let fuse = ["fuse", &paths[0], &paths[1], "-o", &paths[2]];
        medfuse(&[&fuse[..], more].concat())
    }

    fn fuse_on_cpu(&self, mri: &str, other: &str, out: &str) -> Ran {
        self.fuse(mri, other, out, &["--device", "cpu"])
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        let path = self.path(name);
        std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    fn image(&self, name: &str) -> Image {
        Image::load(self.path(name)).expect("a whole image")
    }

    fn save(&self, name: &str, image: &Image) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        image.save(path, 95).expect("the image is written");
    }

    /// The names of all files in a folder, hidden ones too, sorted.
    fn names(&self, folder: &str) -> Vec<String> {
        names(&self.path(folder))
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let name = |e: std::io::Result<std::fs::DirEntry>| e.expect("an entry").file_name().into_string().expect("UTF-8");
    let mut names: Vec<String> = entries.map(name).collect();
    names.sort();
    names
}
