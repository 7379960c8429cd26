//! Which images `medfuse compare` compares.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::CompareArgs;
use crate::cli::{eval::Failed, source_pairs};
use crate::imaging::pairs::{Group, match_folders};

/// A label and the model or folder that it stands for.
pub(super) type Labelled = (String, PathBuf);

/// `LABEL=VALUE`, or a value whose last part is the label.
pub(super) fn parse_labelled(text: &str) -> Result<Labelled, String> {
    let last = Path::new(text).file_name().unwrap_or_default().to_string_lossy();
    match text.split_once('=').unwrap_or((&last, text)) {
        ("", _) | (_, "") => Err("must be LABEL=FOLDER, such as published=results/DM-FNet".into()),
        (label, value) => Ok((label.into(), value.into())),
    }
}

/// The images to compare.
pub(super) struct Inputs {
    /// The pairs that all results have, sorted by name.
    pub pairs: Vec<Group<2>>,
    /// The files of each `--result` by the names of the pairs.
    pub results: Vec<BTreeMap<String, PathBuf>>,
    /// Names of pairs that are not compared, with the reason.
    pub left_out: Failed,
}

impl Inputs {
    /// Matches the sources and the results by name.
    pub(crate) fn find(args: &CompareArgs) -> anyhow::Result<Self> {
        let matched = source_pairs(&args.mri, &args.other)?;
        let (folders, mut pairs) = (args.mri.is_dir(), matched.groups);
        let mut left_out: Failed = matched.unmatched.into_iter().map(|u| (u.name, u.reason.to_string())).collect();
        let mut results = Vec::new();
        for (label, path) in &args.result {
            if folders != path.is_dir() {
                bail!("--result {}: must be {}", path.display(), if folders { "a folder" } else { "an image" });
            }
            let mut files: BTreeMap<_, _> = pairs.iter().map(|pair| (pair.name.clone(), path.clone())).collect();
            if folders {
                let found = match_folders([&args.mri, &args.other, path].map(PathBuf::as_path))?;
                let lacking = found.unmatched.into_iter().filter(|u| files.contains_key(&u.name));
                left_out.extend(lacking.map(|u| (u.name, format!("{label}: {}", u.reason))));
                files = found.groups.into_iter().map(|Group { name, paths: [.., file] }| (name, file)).collect();
                eprintln!("{label} has {} of {} pairs", files.len(), pairs.len());
            }
            results.push(files);
        }
        pairs.retain(|pair| results.iter().all(|files| files.contains_key(&pair.name)));
        if pairs.is_empty() {
            bail!("no pair of {} and {} is in every --result", args.mri.display(), args.other.display());
        }
        Ok(Self { pairs, results, left_out })
    }

    /// The places of the pairs that `--pairs` asks for.
    pub(crate) fn shown(&self, wanted: &str) -> anyhow::Result<Vec<usize>> {
        let place = |name: &str| self.pairs.iter().position(|pair| pair.name == name);
        if let (Ok(n), None) = (wanted.parse::<NonZeroUsize>(), place(wanted)) {
            let (n, last) = (n.get().min(self.pairs.len()), self.pairs.len() - 1);
            return Ok((0..n).map(|i| i * last / (n - 1).max(1)).collect());
        }
        let place = |name: &str| place(name).with_context(|| format!("--pairs: no pair to compare is called {name}"));
        wanted.split(',').map(place).collect()
    }
}
