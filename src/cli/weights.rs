//! `medfuse weights`: look into a checkpoint, convert it to safetensors.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use crate::tensor::Tensor;
use crate::weights::{SCHEDULE_BUFFERS, StoreType, Weights, is_buffer};

/// Look into a checkpoint, or convert it to safetensors
#[derive(Args, Debug)]
pub(crate) struct WeightsArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// List the tensors of a .pth or .safetensors file
    Inspect(InspectArgs),
    /// Write a .pth or .safetensors file as .safetensors
    Convert(ConvertArgs),
}

#[derive(Args, Debug)]
struct InspectArgs {
    /// The checkpoint (.pth zip or legacy, .safetensors)
    file: PathBuf,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct ConvertArgs {
    /// The checkpoint to read
    input: PathBuf,
    /// The .safetensors file to write
    output: PathBuf,
    /// Element type of the floats
    #[arg(long, value_enum, default_value_t = Dtype::F32)]
    dtype: Dtype,
    /// Leave out the 12 tables of the noise schedule that the reference saves beside the UNet
    #[arg(long)]
    drop_schedule: bool,
}

#[derive(Clone, Copy, ValueEnum, Debug)]
enum Dtype {
    F32,
    F16,
}

/// Runs `medfuse weights`.
///
/// # Errors
/// The checkpoint cannot be read, see [`Weights::load`], or the new file cannot be written.
pub(crate) fn run(args: WeightsArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Inspect(args) => inspect(&args)?,
        Command::Convert(args) => convert(&args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn inspect(args: &InspectArgs) -> anyhow::Result<()> {
    let report = Report::of(&Weights::load(&args.file)?);
    let text = if args.json { serde_json::to_string_pretty(&report)? } else { report.table() };
    super::say(text.trim_end())
}

/// What `inspect` prints.
#[derive(Serialize)]
struct Report {
    file: String,
    format: String,
    tensors: Vec<Row>,
    totals: Totals,
}

#[derive(Serialize)]
struct Row {
    name: String,
    dtype: String,
    shape: Vec<usize>,
    buffer: bool,
    /// Least, greatest and mean of the finite values; absent if there are none.
    min: Option<f32>,
    max: Option<f32>,
    mean: Option<f64>,
    not_finite: usize,
}

#[derive(Serialize)]
struct Totals {
    tensors: usize,
    parameters: usize,
    buffer_values: usize,
    bytes: usize,
    dtypes: BTreeMap<String, usize>,
}

impl Report {
    fn of(weights: &Weights) -> Self {
        let mut totals =
            Totals { tensors: weights.len(), parameters: 0, buffer_values: 0, bytes: 0, dtypes: BTreeMap::new() };
        let mut tensors = Vec::with_capacity(weights.len());
        for (name, tensor, stored) in weights.iter_stored() {
            let len = tensor.data().len();
            if is_buffer(name) {
                totals.buffer_values += len;
            } else {
                totals.parameters += len;
            }
            totals.bytes += len * stored.size();
            *totals.dtypes.entry(stored.to_string()).or_default() += 1;
            tensors.push(Row::of(name, tensor, stored.to_string()));
        }
        Self { file: weights.path().display().to_string(), format: weights.format().to_string(), tensors, totals }
    }

    fn table(&self) -> String {
        let width = self.tensors.iter().map(|row| row.name.len()).max();
        let width = width.unwrap_or(0).max("name".len());
        let mut out =
            format!("{:<width$}  {:<5} {:<18} {:>11} {:>11} {:>11}\n", "name", "dtype", "shape", "min", "max", "mean");
        for row in &self.tensors {
            let number = |v: Option<f64>| v.map_or("-".into(), |v| format!("{v:.4e}"));
            let shape: Vec<String> = row.shape.iter().map(usize::to_string).collect();
            let _ = write!(
                out,
                "{:<width$}  {:<5} {:<18} {:>11} {:>11} {:>11}",
                row.name,
                row.dtype,
                shape.join("x"),
                number(row.min.map(f64::from)),
                number(row.max.map(f64::from)),
                number(row.mean),
            );
            if row.not_finite > 0 {
                let _ = write!(out, "  {} NaN or infinite", row.not_finite);
            }
            out.push('\n');
        }
        let totals = &self.totals;
        let dtypes: Vec<String> = totals.dtypes.iter().map(|(dtype, count)| format!("{count} {dtype}")).collect();
        let _ = writeln!(
            out,
            "\n{}: {}, {} tensors ({}), {} parameters, {} values in buffers, {} bytes",
            self.file,
            self.format,
            totals.tensors,
            dtypes.join(", "),
            totals.parameters,
            totals.buffer_values,
            totals.bytes
        );
        out
    }
}

impl Row {
    fn of(name: &str, tensor: &Tensor, dtype: String) -> Self {
        let (mut min, mut max, mut sum, mut finite) = (f32::INFINITY, f32::NEG_INFINITY, 0.0, 0);
        for &value in tensor.data().iter().filter(|v| v.is_finite()) {
            min = min.min(value);
            max = max.max(value);
            sum += f64::from(value);
            finite += 1;
        }
        let any = finite > 0;
        Self {
            name: name.to_string(),
            dtype,
            shape: tensor.dims().to_vec(),
            buffer: is_buffer(name),
            min: any.then_some(min),
            max: any.then_some(max),
            mean: any.then(|| sum / finite as f64),
            not_finite: tensor.data().len() - finite,
        }
    }
}

fn convert(args: &ConvertArgs) -> anyhow::Result<()> {
    ensure!(
        args.output.extension().is_some_and(|e| e.eq_ignore_ascii_case("safetensors")),
        "{}: the output is a safetensors file, give it the extension .safetensors",
        args.output.display()
    );
    let mut weights = Weights::load(&args.input)?;
    weights.check_finite()?;
    if args.drop_schedule {
        weights.retain(|name| !SCHEDULE_BUFFERS.contains(&name));
    }
    let store = match args.dtype {
        Dtype::F32 => StoreType::F32,
        Dtype::F16 => StoreType::F16,
    };
    weights.save_safetensors(&args.output, store)?;
    let written =
        Weights::load(&args.output).with_context(|| "the file just written does not read back".to_string())?;
    super::say(format_args!(
        "{}: {} tensors, largest relative rounding of a tensor {:.1e}",
        args.output.display(),
        written.len(),
        largest_rounding(&weights, &written)
    ))?;
    Ok(())
}

/// Over the tensors, the largest L2 norm of the change relative to that of the tensor.
fn largest_rounding(before: &Weights, after: &Weights) -> f64 {
    let relative = |(name, tensor): (&str, &Tensor)| {
        let (mut change, mut norm) = (0.0, 0.0);
        let now = after.get(name).map_or(&[][..], Tensor::data);
        for (&a, &b) in tensor.data().iter().zip(now) {
            change += (f64::from(a) - f64::from(b)).powi(2);
            norm += f64::from(a).powi(2);
        }
        if norm > 0.0 { (change / norm).sqrt() } else { 0.0 }
    };
    before.iter().map(relative).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::{Report, WeightsArgs, run};
    use crate::weights::Weights;
    use clap::Parser;
    use std::process::ExitCode;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: WeightsArgs,
    }

    fn medfuse_weights(args: &[&str]) -> anyhow::Result<ExitCode> {
        run(Cli::try_parse_from([&["weights"], args].concat())?.args)
    }

    fn fixture(name: &str) -> String {
        format!("{}/tests/data/weights/{name}", env!("CARGO_MANIFEST_DIR"))
    }

    #[test]
    fn the_table_and_the_totals_of_a_checkpoint() {
        let report = Report::of(&Weights::load(fixture("zip.pth")).unwrap());
        assert_eq!(report.totals.tensors, 7);
        assert_eq!(report.totals.parameters, 6 + 6 + 2 + 3 + 2 + 1);
        assert_eq!(report.totals.buffer_values, 1);
        assert_eq!(report.totals.bytes, 4 * 14 + 2 * 5 + 8 + 8);
        let table = report.table();
        let row = table.lines().find(|l| l.starts_with("layer.weight"));
        let columns: Vec<&str> = row.unwrap().split_whitespace().collect();
        assert_eq!(columns, ["layer.weight", "f32", "2x3", "-6.2500e0", "4.5000e0", "4.5833e-1"]);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["tensors"][1]["shape"], serde_json::json!([1]));
        assert_eq!(json["totals"]["dtypes"]["f32"], 3);
    }

    #[test]
    fn convert_writes_safetensors_and_refuses_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out.safetensors");
        let out = out.to_str().unwrap();
        medfuse_weights(&["convert", &fixture("legacy.pth"), out, "--dtype", "f16"]).unwrap();
        let half = Weights::load(out).unwrap();
        assert_eq!(half.get("layer.tail").unwrap().data(), [100.0, 200.0]);
        medfuse_weights(&["inspect", out, "--json"]).unwrap();

        let name = dir.path().join("out.pth");
        let error = medfuse_weights(&["convert", &fixture("zip.pth"), name.to_str().unwrap()]);
        assert!(error.unwrap_err().to_string().contains("extension"));
        let evil = dir.path().join("evil.safetensors");
        let error = medfuse_weights(&["convert", &fixture("evil.pth"), evil.to_str().unwrap()]);
        assert!(error.unwrap_err().to_string().contains("posix.system"));
        assert!(!evil.exists());
    }
}
