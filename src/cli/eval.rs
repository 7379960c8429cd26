//! `medfuse eval`: the fusion metrics of folders of images.

use crate::files::write_whole;
use crate::imaging::pairs::match_folders;
use crate::metrics::{self, Metrics, NAMES, load_grey};
use anyhow::{Context, bail};
use indicatif::ProgressBar;
use rayon::prelude::*;
use serde_json::{Value, json};
use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Measure fused images against their sources: EN, SD, SF, AG, MI, SCD, VIFF, Qabf, SSIM, PSNR, CC, MSE.
///
/// The three folders are paired by file name without its ending. Colour is measured as grey (BT.601 luma).
#[derive(Debug, clap::Args)]
pub(crate) struct EvalArgs {
    /// Folder of the MRI images
    pub mri_dir: PathBuf,
    /// Folder of the other sources (CT, PET or SPECT)
    pub other_dir: PathBuf,
    /// Folder of the fused images
    pub fused_dir: PathBuf,
    /// Write one row per pair to FILE, or to the standard output in place of the table (-)
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// Print JSON in place of the table: the pairs, their mean and std, and what failed; NaN and infinities are null
    #[arg(long)]
    pub json: bool,
}

/// Evaluates every name of the three folders and prints the figures.
///
/// Names that could not be evaluated are listed on the standard error, and the exit code is 1 then.
///
/// # Errors
/// A folder that cannot be listed, folders without any image, output that cannot be written, and `--json` together
/// with `--csv -`.
pub(crate) fn run(args: EvalArgs) -> anyhow::Result<ExitCode> {
    let csv_to_stdout = args.csv.as_deref() == Some(Path::new("-"));
    if csv_to_stdout && args.json {
        bail!("--json and --csv - both write to the standard output; give --csv a file name");
    }
    let (done, failed) = evaluate_folders(&args)?;

    if let Some(path) = args.csv.as_deref().filter(|_| !csv_to_stdout) {
        write_whole(path, csv(&done).as_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let output = if csv_to_stdout {
        csv(&done)
    } else if args.json {
        format!("{:#}\n", report_json(&done, &failed))
    } else {
        table(&done)
    };
    io::stdout().write_all(output.as_bytes()).context("cannot write to the standard output")?;

    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("{} of {} not evaluated:", failed.len(), done.len() + failed.len());
    for (name, reason) in &failed {
        eprintln!("  {name}: {reason}");
    }
    Ok(ExitCode::FAILURE)
}

/// Evaluates every name that the three folders share; the others are among the failed.
fn evaluate_folders(args: &EvalArgs) -> anyhow::Result<(Done, Failed)> {
    let folders = [&args.mri_dir, &args.other_dir, &args.fused_dir].map(PathBuf::as_path);
    let matched = match_folders(folders)?;
    if matched.groups.is_empty() && matched.unmatched.is_empty() {
        let shown = folders.map(|f| f.display().to_string()).join(", ");
        bail!("no images (PNG, JPEG, BMP, TIFF) in {shown}");
    }
    // Hidden by indicatif when the standard error is not a terminal.
    let bar = ProgressBar::new(matched.groups.len() as u64);
    let outcomes: Vec<_> = matched
        .groups
        .par_iter()
        .map(|group| {
            let outcome = evaluate_files(&group.paths);
            bar.inc(1);
            outcome
        })
        .collect();
    bar.finish_and_clear();

    let (mut done, mut failed) = (Done::new(), Failed::new());
    for (group, outcome) in matched.groups.into_iter().zip(outcomes) {
        match outcome {
            Ok(metrics) => done.push((group.name, metrics)),
            Err(reason) => failed.push((group.name, format!("{reason:#}"))),
        }
    }
    failed.extend(matched.unmatched.into_iter().map(|u| (u.name, u.reason.to_string())));
    failed.sort();
    Ok((done, failed))
}

/// Evaluates the MRI, the other source and the fused image in these files.
fn evaluate_files([mri, other, fused]: &[PathBuf; 3]) -> anyhow::Result<Metrics> {
    let (mri, other, fused) = (load_grey(mri)?, load_grey(other)?, load_grey(fused)?);
    Ok(metrics::evaluate(&mri, &other, &fused)?)
}

/// Figures by name.
pub(super) type Done = Vec<(String, Metrics)>;
/// Reasons by name.
pub(super) type Failed = Vec<(String, String)>;

/// Mean and standard deviation over the pairs, if there are any.
pub(super) fn summary(done: &Done) -> Option<(Metrics, Metrics)> {
    let all: Vec<Metrics> = done.iter().map(|(_, m)| *m).collect();
    (!all.is_empty()).then(|| Metrics::mean_and_std(&all))
}

/// The figures in aligned columns, the mean and the standard deviation below them.
fn table(done: &Done) -> String {
    let row = |name: &str, metrics: &Metrics| -> Vec<String> {
        let figures = metrics.values().map(|v| format!("{v:.4}"));
        std::iter::once(name.to_owned()).chain(figures).collect()
    };
    let mut rows: Vec<Vec<String>> = Vec::new();
    rows.push(std::iter::once("name").chain(NAMES).map(str::to_owned).collect());
    rows.extend(done.iter().map(|(name, metrics)| row(name, metrics)));
    if let Some((mean, std)) = summary(done) {
        rows.push(row("mean", &mean));
        rows.push(row("std", &std));
    }
    aligned(&rows)
}

/// Rows of equally many cells in columns: the first to the left, the others to the right.
pub(super) fn aligned(rows: &[Vec<String>]) -> String {
    columns(rows, |column| column > 0).join("\n") + "\n"
}

/// Lines of rows of equally many cells, in columns two spaces apart: to the right, or to the left.
pub(super) fn columns(rows: &[Vec<String>], to_the_right: impl Fn(usize) -> bool) -> Vec<String> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows.first().map_or(0, Vec::len)).map(width).collect();
    let cell = |(i, cell): (usize, &String)| match to_the_right(i) {
        true => format!("{cell:>0$}", widths[i]),
        false => format!("{cell:<0$}", widths[i]),
    };
    rows.iter().map(|row| row.iter().enumerate().map(cell).collect::<Vec<_>>().join("  ")).collect()
}

/// A cell of a CSV file, in quotes if need be.
pub(super) fn csv_cell(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

/// A header and one row per pair, at full precision.
pub(super) fn csv(done: &Done) -> String {
    let mut text = format!("name,{}\n", NAMES.join(","));
    for (name, metrics) in done {
        let figures = metrics.values().map(|v| v.to_string()).join(",");
        text += &format!("{},{figures}\n", csv_cell(name));
    }
    text
}

pub(super) fn report_json(done: &Done, failed: &Failed) -> Value {
    let pair = |(name, metrics): &(String, Metrics)| {
        let mut pair = json!(metrics);
        pair["name"] = json!(name);
        pair
    };
    let (mean, std) = summary(done).unzip();
    json!({
        "pairs": done.iter().map(pair).collect::<Vec<_>>(),
        "mean": mean,
        "std": std,
        "failed": failed
            .iter()
            .map(|(name, reason)| json!({"name": name, "reason": reason}))
            .collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::GrayImage;
    use std::collections::BTreeMap;

    /// Folders mri, other and fused; `files` are (folder/name, size or 0 for a file that is no image).
    fn folders(files: &[(&str, u32)]) -> (tempfile::TempDir, EvalArgs) {
        let root = tempfile::tempdir().unwrap();
        let [mri_dir, other_dir, fused_dir] = ["mri", "other", "fused"].map(|f| root.path().join(f));
        for folder in [&mri_dir, &other_dir, &fused_dir] {
            std::fs::create_dir(folder).unwrap();
        }
        for (i, (file, size)) in files.iter().enumerate() {
            let path = root.path().join(file);
            let level = |x: u32, y: u32| image::Luma([(x * 5 + y * (3 + i as u32)) as u8]);
            match size {
                0 => std::fs::write(path, "no image").unwrap(),
                _ => GrayImage::from_fn(*size, *size, level).save(path).unwrap(),
            }
        }
        let args = EvalArgs { mri_dir, other_dir, fused_dir, csv: None, json: false };
        (root, args)
    }

    #[test]
    fn bad_names_are_reported_and_the_others_evaluated() {
        let (root, args) = folders(&[
            ("mri/a,1.png", 48),
            ("other/a,1.bmp", 48),
            ("fused/a,1.tiff", 48),
            ("fused/notes.txt", 0),
            ("mri/b.png", 48),
            ("other/b.png", 48),
            ("fused/b.png", 50),
            ("mri/c.png", 48),
            ("fused/c.png", 48),
            ("mri/d.png", 48),
            ("other/d.png", 0),
            ("fused/d.png", 48),
            ("mri/e.png", 48),
            ("mri/e.bmp", 48),
            ("other/e.png", 48),
            ("fused/e.png", 48),
        ]);
        let (done, failed) = evaluate_folders(&args).unwrap();
        assert_eq!(done.len(), 1);
        assert_eq!(done[0].0, "a,1");
        let reasons: BTreeMap<_, _> = failed.iter().map(|(n, r)| (n.as_str(), r.as_str())).collect();
        assert_eq!(reasons.len(), 4);
        assert!(reasons["b"].contains("fused 50x50"), "{}", reasons["b"]);
        assert!(reasons["c"].starts_with("no image of this name in"), "{}", reasons["c"]);
        assert!(reasons["c"].ends_with("other"), "{}", reasons["c"]);
        assert!(reasons["d"].contains("d.png"), "{}", reasons["d"]);
        assert!(reasons["e"].starts_with("several files have this name"), "{}", reasons["e"]);

        let path = root.path().join("out.csv");
        let code = run(EvalArgs { csv: Some(path.clone()), ..args }).unwrap();
        assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::FAILURE));
        let text = std::fs::read_to_string(path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0], "name,EN,SD,SF,AG,MI,SCD,VIFF,Qabf,SSIM,PSNR,CC,MSE");
        let figures = lines[1].strip_prefix("\"a,1\",").unwrap();
        let figures: Vec<f64> = figures.split(',').map(|v| v.parse().unwrap()).collect();
        assert_eq!(figures, done[0].1.values());
    }

    #[test]
    fn folders_without_images_or_missing_ones_are_errors() {
        let (_root, args) = folders(&[("fused/notes.txt", 0)]);
        assert!(run(args).unwrap_err().to_string().starts_with("no images"));
        let (root, mut args) = folders(&[("mri/a.png", 48)]);
        args.fused_dir = root.path().join("nowhere");
        assert!(run(args).unwrap_err().to_string().contains("nowhere"));
        let (_root, args) = folders(&[("mri/a.png", 48)]);
        let both = EvalArgs { csv: Some("-".into()), json: true, ..args };
        assert!(run(both).unwrap_err().to_string().contains("--json"));
    }

    #[test]
    fn the_table_is_aligned_and_ends_in_mean_and_std() {
        let row = |v: f64| Metrics::from_values([v; 12]);
        let done = vec![("first".to_owned(), row(1.0)), ("2".to_owned(), row(1003.0))];
        let text = table(&done);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 5);
        assert!(lines.iter().all(|l| l.len() == lines[0].len()), "{text}");
        assert!(lines[3].starts_with("mean    502.0000"), "{text}");
        assert!(lines[4].starts_with("std     501.0000"), "{text}");
    }

    #[test]
    fn json_holds_pairs_summary_and_failures() {
        let mut metrics = Metrics::from_values([2.0; 12]);
        metrics.psnr = f64::INFINITY;
        let failed = vec![("y".to_owned(), "too small".to_owned())];
        let report = report_json(&vec![("x".to_owned(), metrics)], &failed);
        assert_eq!(report["pairs"][0]["name"], "x");
        assert_eq!(report["pairs"][0]["Qabf"], 2.0);
        assert!(report["pairs"][0]["PSNR"].is_null());
        assert_eq!((&report["mean"]["EN"], &report["std"]["EN"]), (&json!(2.0), &json!(0.0)));
        assert_eq!(report["failed"][0]["reason"], "too small");
        assert!(report_json(&vec![], &failed)["mean"].is_null());
    }
}
