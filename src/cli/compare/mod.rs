//! `medfuse compare`: models and folders of results on the same pairs.

mod inputs;
mod report;
mod sheet;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering;

use anyhow::{Context, bail};
use clap::{Args, value_parser};

use self::inputs::{Inputs, Labelled, parse_labelled};
use self::report::Figures;
use self::sheet::{Patch, parse_patch};
use super::model_args::{ModelArgs, listed};
use super::{DeviceArgs, eval::Failed};
use crate::device::Device;
use crate::files::{check_writable, write_whole};
use crate::imaging::pairs::Group;
use crate::imaging::{Channels, FusionPair, Image, Samples, contact_sheet, format_for};
use crate::metrics::{Grey, Metrics, evaluate};
use crate::models::MODELS;

/// The names of the models whose weights ship with medfuse.
fn shipped() -> impl Iterator<Item = String> {
    MODELS.iter().filter(|row| row.ships).map(|row| row.name.to_owned())
}

/// The help of `--model`.
fn model_help() -> String {
    format!(
        "A model, as often as wanted: {} with the weights that ship, or a folder of weights \
         [default: the models that ship, if there is no --result]",
        listed(&shipped().collect::<Vec<_>>(), " or ")
    )
}

/// What a yardstick, a row that is always there, makes of the sources' luma.
type Yardstick = fn(u8, u8) -> u8;

/// Compare models and folders of fused images on the same pairs: a table of metrics and a contact sheet
///
/// The table has a row for each model, each folder of results and two yardsticks, the pixel-wise maximum and average of the
/// sources' luma. Its figures are means over the pairs that all of them have; the best of a column has a *. What is left out
/// is listed with the reason, and the exit code is 1 then. Ctrl-C lets the pair in work finish and exits with 130.
///
/// The sheet shows some of the pairs: the sources and every result; below them a patch enlarged; below that the luma
/// of each picture minus the pixel-wise maximum of the sources: blue where a result is darker than the brighter source
/// (what it lost), red where it is brighter than both (what it added), white where it equals it. A source's own map is white
/// where that source is the brighter one.
#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// The MRI (or infrared image), or a folder of them
    mri: PathBuf,
    /// The CT, PET or SPECT (or visible) image, or a folder of them
    other: PathBuf,
    /// A model, as often as wanted
    #[arg(long, value_name = "[LABEL=]MODEL", value_parser = parse_labelled, help = model_help())]
    model: Vec<Labelled>,
    /// Images fused already, as often as wanted: a folder with the sources' names, or for two images an image
    #[arg(long, value_name = "[LABEL=]FOLDER", value_parser = parse_labelled)]
    result: Vec<Labelled>,
    /// Write the contact sheet to this file (.png, .jpg, .bmp or .tif)
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The pairs on the sheet: their names, or how many, evenly spaced over the sorted names (if no pair is called so)
    #[arg(long, value_name = "N|NAME,...", default_value = "3")]
    pairs: String,
    /// The patch to enlarge [default: a square of a quarter of the side, where both sources have most structure]
    #[arg(long, value_name = "X,Y,W,H", value_parser = parse_patch)]
    patch: Option<Patch>,
    /// The difference from the maximum, in grey levels, that is fully blue or red
    #[arg(long, value_name = "LEVELS", default_value_t = 64, value_parser = value_parser!(u8).range(1..))]
    scale: u8,
    /// Write the figures of every row and pair to this file
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Print JSON in place of the table: each row's mean, std and pairs, and what was left out
    #[arg(long)]
    json: bool,
    /// Seed of dm-fnet's noise
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    device: DeviceArgs,
}

/// A row's label, and what makes its image of a pair: of the name, the images and their luma.
type Row = (String, Box<dyn Fn(&str, &FusionPair, &[Grey; 2]) -> anyhow::Result<Image>>);

/// Compares, prints the table and writes the sheet.
///
/// # Errors
/// Arguments that do not go together, folders or models that cannot be read, no pair that all rows have, outputs that
/// cannot be written or would replace an input.
pub(crate) fn run(args: CompareArgs) -> anyhow::Result<ExitCode> {
    let inputs = Inputs::find(&args)?;
    let shown = if args.out.is_some() { inputs.shown(&args.pairs)? } else { Vec::new() };
    check_outputs(&args, &inputs, &shown)?;
    let stop = super::stop_flag("stopping after this pair")?;
    let rows = rows(&args, inputs.results)?;
    let mut figures: Figures = rows.iter().map(|(label, _)| (label.clone(), Vec::new())).collect();
    let (mut left_out, mut sheet) = (inputs.left_out, Vec::new());
    let bar = super::progress_bar(inputs.pairs.len() as u64);
    for (i, group) in inputs.pairs.iter().enumerate() {
        if stop.load(Ordering::Relaxed) {
            bar.finish_and_clear();
            eprintln!("stopped after {i} pairs: nothing is written");
            return Ok(ExitCode::from(130));
        }
        bar.set_message(group.name.clone());
        match compare_pair(&rows, group) {
            Ok((pictures, all)) => {
                if shown.contains(&i) {
                    sheet.extend(sheet::rows(&group.name, pictures, args.patch, args.scale)?);
                }
                figures.iter_mut().zip(all).for_each(|((_, pairs), new)| pairs.push((group.name.clone(), new)));
            }
            Err(reason) => left_out.push((group.name.clone(), format!("{reason:#}"))),
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    finish(&args, &figures, &left_out, &sheet)
}

/// Prints and writes all that was asked for.
fn finish(args: &CompareArgs, figures: &Figures, left_out: &Failed, sheet: &[sheet::Row]) -> anyhow::Result<ExitCode> {
    left_out.iter().for_each(|(name, reason)| eprintln!("left out {name}: {reason}"));
    if figures[0].1.is_empty() {
        bail!("no pair could be compared");
    }
    super::say(if args.json { report::json(figures, left_out) } else { report::table(figures) })?;
    if let Some(path) = &args.csv {
        write_whole(path, report::csv(figures).as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(out) = args.out.as_ref().filter(|_| !sheet.is_empty()) {
        let name = |path: &Path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let mut labels = vec![name(&args.mri), name(&args.other)];
        labels.extend(figures.iter().map(|(label, _)| label.clone()));
        contact_sheet(&labels, sheet)?.save(out, 95)?;
    }
    Ok(if left_out.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Finds out before the long computation whether the outputs can be written and the patch lies in the pairs shown.
fn check_outputs(args: &CompareArgs, inputs: &Inputs, shown: &[usize]) -> anyhow::Result<()> {
    args.out.as_deref().map(format_for).transpose()?;
    for out in args.out.iter().chain(&args.csv) {
        let results = inputs.results.iter().flat_map(BTreeMap::values);
        super::check_keeps_inputs(out, inputs.pairs.iter().flat_map(|pair| &pair.paths).chain(results))?;
        check_writable(out).with_context(|| format!("cannot write {}", out.display()))?;
    }
    for group in shown.iter().map(|&i| &inputs.pairs[i]) {
        // What cannot be loaded is left out later.
        if let Some([x, y, w, h]) = args.patch
            && let Ok(mri) = Image::load(&group.paths[0])
            && (x.saturating_add(w) > mri.width() || y.saturating_add(h) > mri.height())
        {
            bail!("--patch {x},{y},{w},{h} leaves {}: {} x {} pixels", group.name, mri.width(), mri.height());
        }
    }
    Ok(())
}

/// The rows: models (those that ship if nothing is asked for), results, yardsticks.
fn rows(args: &CompareArgs, results: Vec<BTreeMap<String, PathBuf>>) -> anyhow::Result<Vec<Row>> {
    let shipped: Vec<Labelled> = shipped().map(|name| (name.clone(), PathBuf::from(name))).collect();
    let default = args.model.is_empty() && args.result.is_empty();
    let models = if default { &shipped } else { &args.model };
    let mut opened: Option<Device> = None;
    let mut rows: Vec<Row> = Vec::new();
    for (label, model) in models {
        let loaded = ModelArgs::named(model).load();
        let device = match &opened {
            Some(device) => device.clone(),
            None => opened.insert(args.device.open()?).clone(),
        };
        let seed = args.seed;
        eprintln!("{label}: {}", device.describe());
        let fuser = loaded.with_context(|| format!("--model {}", model.display()))?.on(device);
        rows.push((label.clone(), Box::new(move |_, pair, _| Ok(fuser.fuse(pair, seed)?))));
    }
    for ((label, _), files) in args.result.iter().zip(results) {
        rows.push((label.clone(), Box::new(move |name, _, _| Ok(Image::load(&files[name])?))));
    }
    for (label, of) in [("maximum", u8::max as Yardstick), ("average", u8::midpoint)] {
        let image = move |_: &str, pair: &FusionPair, [mri, other]: &[Grey; 2]| {
            let levels = mri.levels().iter().zip(other.levels()).map(|(&a, &b)| of(a, b));
            Ok(Image::new(pair.width(), pair.height(), Channels::Grey, Samples::U8(levels.collect()))?)
        };
        rows.push((label.to_owned(), Box::new(image)));
    }
    let mut seen = BTreeSet::new();
    if let Some((twice, _)) = rows.iter().find(|(label, _)| !seen.insert(label)) {
        bail!("two rows are called {twice}: give them labels, --model LABEL=... or --result LABEL=...");
    }
    Ok(rows)
}

/// A pair's pictures (the two sources, then each row's) and every row's figures.
fn compare_pair(rows: &[Row], group: &Group<2>) -> anyhow::Result<(Vec<Image>, Vec<Metrics>)> {
    let mut pictures = vec![Image::load(&group.paths[0])?, Image::load(&group.paths[1])?];
    let pair = FusionPair::new(pictures[0].clone(), pictures[1].clone())?;
    let greys = [&pictures[0], &pictures[1]].map(Grey::from);
    let mut figures = Vec::new();
    for (label, row) in rows {
        let image = row(&group.name, &pair, &greys)?;
        figures.push(evaluate(&greys[0], &greys[1], &Grey::from(&image)).with_context(|| label.clone())?);
        pictures.push(image);
    }
    Ok((pictures, figures))
}
