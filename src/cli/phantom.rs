//! `medfuse phantom`: writes synthetic head pairs.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::ValueEnum;

use crate::imaging::Image;
use crate::imaging::phantom::{Modality, head_pair};

/// What to pair the MRI with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Choice {
    /// Computed tomography
    Ct,
    /// Positron emission tomography
    Pet,
    /// Single-photon emission computed tomography
    Spect,
    /// CT, PET and SPECT of the same heads
    All,
}

/// Draw synthetic head slices: a folder MRI, and CT, PET or SPECT beside it with equal file names
#[derive(clap::Args, Debug)]
pub(crate) struct PhantomArgs {
    /// Folder to write to; made if need be
    out_dir: PathBuf,
    /// Pixels a side, 32 to 4096
    #[arg(long, default_value_t = 256)]
    size: usize,
    /// Number of the first head; even ones have T1 contrast in the MRI, odd ones T2
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The other image
    #[arg(long, value_enum, default_value_t = Choice::All)]
    modality: Choice,
    /// How many heads, each with the next seed
    #[arg(long, default_value_t = 1)]
    count: u64,
}

/// Writes the phantoms and says where.
///
/// # Errors
/// A size out of range, a folder or file that cannot be written.
pub(crate) fn run(args: PhantomArgs) -> anyhow::Result<ExitCode> {
    let modalities = match args.modality {
        Choice::Ct => vec![Modality::Ct],
        Choice::Pet => vec![Modality::Pet],
        Choice::Spect => vec![Modality::Spect],
        Choice::All => Modality::ALL.to_vec(),
    };
    let write = |folder: &str, name: &str, picture: &Image| -> anyhow::Result<()> {
        let folder: &Path = &args.out_dir.join(folder);
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
        Ok(picture.save(folder.join(name), 95)?)
    };
    for seed in (args.seed..).take(usize::try_from(args.count)?) {
        let name = format!("phantom_{seed:04}.png");
        for &modality in &modalities {
            let (mri, other) = head_pair(args.size, seed, modality)?;
            write("MRI", &name, &mri)?;
            write(&modality.to_string(), &name, &other)?;
        }
    }
    let others: Vec<String> = modalities.iter().map(ToString::to_string).collect();
    super::say(format_args!(
        "{} synthetic heads in {}: MRI, {}",
        args.count,
        args.out_dir.display(),
        others.join(", ")
    ))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imaging::pairs::match_folders;

    #[test]
    fn folders_pair_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let out_dir = folder.path().join("new");
        let args = PhantomArgs { out_dir: out_dir.clone(), size: 32, seed: 8, modality: Choice::All, count: 2 };
        assert_eq!(run(args).unwrap(), ExitCode::SUCCESS);
        let found =
            match_folders(["MRI", "CT", "PET", "SPECT"].map(|n| out_dir.join(n)).each_ref().map(PathBuf::as_path))
                .unwrap();
        let names: Vec<_> = found.groups.iter().map(|g| g.name.as_str()).collect();
        assert_eq!(names, ["phantom_0008", "phantom_0009"]);
        assert!(found.unmatched.is_empty());
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let out_dir = folder.path().join("file");
        std::fs::write(&out_dir, b"").unwrap();
        let args = PhantomArgs { out_dir, size: 32, seed: 0, modality: Choice::Ct, count: 1 };
        assert!(run(args).unwrap_err().to_string().contains("cannot make the folder"));
    }
}
