//! Embeds every kernel under `shaders/` as a table of names and sources.

use std::fmt::Write;
use std::path::Path;
use std::{env, fs, io};

fn table(folder: &str) -> io::Result<String> {
    println!("cargo::rerun-if-changed={folder}");
    let mut files: Vec<_> = fs::read_dir(folder)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "wgsl"))
        .collect();
    files.sort();
    let mut text = String::from("&[\n");
    for path in files {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let full = fs::canonicalize(&path)?;
        writeln!(text, "    ({name:?}, include_str!({full:?})),").map_err(io::Error::other)?;
    }
    text.push(']');
    Ok(text)
}

fn main() -> io::Result<()> {
    let out = env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("cargo sets OUT_DIR"))?;
    fs::write(Path::new(&out).join("kernels.rs"), table("shaders")?)?;
    fs::write(Path::new(&out).join("shared.rs"), table("shaders/shared")?)
}
