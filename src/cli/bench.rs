//! `medfuse bench`: how fast kernels and models are on a device, beside what the device can do at most.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::ensure;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::DeviceArgs;
use super::eval::columns;
use super::model_args::{model_parser, of_each};
use crate::bench::rows::Row;
use crate::bench::training::TrainingRow;
use crate::bench::yardstick::Yardstick;
use crate::bench::{KernelTable, NetworkRow, Options, Report, run as measure};
use crate::models::{MODELS, ModelRow};

/// Runs of `--quick`.
const QUICK_RUNS: usize = 3;
/// Height and width of the images unless others are asked for.
const SIZE: usize = 256;
/// Share of a network's time from which a call has a line of its own; the JSON has all.
const WORTH_A_LINE: f64 = 0.004;

/// Time the kernels and the whole model, beside what the device can do at most
///
/// A model at the published architecture with random weights: every operation (of DM-FNet those of a UNet pass and of the
/// fusion head), then the networks whole. The yardsticks, a pure multiply-add kernel and a copy, are measured in the same run.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    device: DeviceArgs,
    /// The model
    #[arg(long, value_parser = model_parser(), default_value = MODELS[0].name, value_name = "MODEL", help = network_help())]
    network: &'static ModelRow,
    /// Height and width of the images
    #[arg(long, help = size_help())]
    size: Option<usize>,
    /// Channels of the first level
    #[arg(long, help = channels_help())]
    channels: Option<usize>,
    /// Runs of which the median is taken
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Time single kernels only
    #[arg(long, conflicts_with = "model_only")]
    kernels_only: bool,
    /// Time whole networks only
    #[arg(long)]
    model_only: bool,
    /// Time a training step instead
    #[arg(long, conflicts_with_all = ["kernels_only", "model_only"], help = training_help())]
    training: bool,
    /// At most 3 runs, and plan the whole pair without running it
    #[arg(long)]
    quick: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn network_help() -> String {
    format!("The model; measured are {}", of_each(|row| row.bench.measured.into()))
}

fn size_help() -> String {
    let training: Vec<String> =
        MODELS.iter().map(|row| format!("{} of {}", row.bench.training_size, row.name)).collect();
    format!(
        "Height and width of the images: {} [default: {SIZE}; with --training {}]",
        of_each(|row| row.bench.sizes.into()),
        training.join(", ")
    )
}

fn channels_help() -> String {
    let widths: Vec<String> = MODELS.iter().map(|row| format!("{} of {}", row.bench.width, row.name)).collect();
    format!("Channels of the first level, a multiple of 32 [default: the published width, {}]", widths.join(", "))
}

fn training_help() -> String {
    let steps = of_each(|row| format!("{} of {}", row.bench.trained, row.bench.training_batch));
    format!("Time a training step instead, {steps}: forward, backward and update apart")
}

/// Measures and prints the tables.
///
/// # Errors
/// If the device cannot be had, hold the networks or time them.
pub(crate) fn run(args: BenchArgs) -> anyhow::Result<ExitCode> {
    ensure!(args.runs > 0, "--runs must be at least 1");
    let options = Options {
        network: args.network,
        size: args.size.unwrap_or(if args.training { args.network.bench.training_size } else { SIZE }),
        channels: args.channels.unwrap_or(args.network.bench.width),
        runs: if args.quick { args.runs.min(QUICK_RUNS) } else { args.runs },
        kernels: !args.model_only && !args.training,
        model: !args.kernels_only && !args.training,
        pair: !args.quick,
        training: args.training,
    };
    let device = args.device.open()?;
    let bar = spinner();
    let report = measure(&device, &options, &mut |message| bar.set_message(message.to_owned()))?;
    bar.finish_and_clear();
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", text(&report));
    }
    Ok(ExitCode::SUCCESS)
}

fn spinner() -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {msg} ({elapsed})").expect("the template is well-formed");
    // Hidden by indicatif when the standard error is not a terminal.
    let bar = ProgressBar::new_spinner().with_style(style);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// The whole report for people.
fn text(report: &Report) -> String {
    let options = &report.options;
    let Options { size, channels, runs, .. } = *options;
    let network = options.network.title;
    let mut text = format!(
        "medfuse {} on {}\n{network}, {channels} channels, {size}x{size}, medians of {runs} measurements\n",
        report.medfuse, report.machine.device
    );
    text += &section("what the device can do", &YARDSTICKS, report.yardsticks.iter().map(yardstick_cells));
    for table in &report.kernels {
        let title = format!(
            "{}: {:.1} ms in kernels, the device's peak meanwhile {:.1} GFLOP/s and {:.1} GB/s",
            table.network, table.total_ms, table.peak.gflops, table.peak.gb_per_s
        );
        text += &section(&title, &KERNELS, table_cells(&table.rows).into_iter());
    }
    if !report.model.is_empty() {
        text += &section("networks", &NETWORKS, report.model.iter().map(model_cells));
    }
    if let Some(row) = &report.training {
        text += &section("training", &TRAINING, std::iter::once(training_cells(row)));
    }
    text + "\n" + &summary(report) + "\n"
}

const YARDSTICKS: [&str; 5] = ["yardstick", "median", "lowest", "highest", ""];
const KERNELS: [&str; 10] =
    ["operation", "by", "input", "output", "calls", "ms each", "of total", "GFLOP/s", "GB/s", "of peak"];
const NETWORKS: [&str; 11] = [
    "network",
    "s",
    "GMAC",
    "GFLOP/s",
    "of peak",
    "peak MiB",
    "weights MiB",
    "steps",
    "dispatches",
    "plan s",
    "compile s",
];

const TRAINING: [&str; 11] = [
    "batch",
    "s",
    "forward s",
    "backward s",
    "update s",
    "GMAC",
    "GFLOP/s",
    "of peak",
    "peak MiB",
    "state MiB",
    "steps",
];

fn training_cells(row: &TrainingRow) -> Vec<String> {
    let [n, h, w] = row.batch;
    vec![
        format!("{n}x{h}x{w}"),
        format!("{:.3}", row.seconds),
        format!("{:.3}", row.forward),
        format!("{:.3}", row.backward),
        format!("{:.3}", row.update),
        format!("{:.1}", row.gmac),
        format!("{:.1}", row.gflops),
        format!("{:.0} %", 100.0 * row.of_peak),
        format!("{:.0}", row.run_mib),
        format!("{:.0}", row.state_mib),
        row.steps.to_string(),
    ]
}

fn yardstick_cells(y: &Yardstick) -> Vec<String> {
    let [low, high] = y.range;
    vec![y.name.clone(), format!("{:.1}", y.median), format!("{low:.1}"), format!("{high:.1}"), y.unit.into()]
}

/// The rows that take [`WORTH_A_LINE`] of the time, and one line for all others.
fn table_cells(rows: &[Row]) -> Vec<Vec<String>> {
    let (shown, small): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(|r| r.share >= WORTH_A_LINE);
    let mut cells: Vec<Vec<String>> = shown.into_iter().map(kernel_cells).collect();
    if !small.is_empty() {
        let mut line = vec!["-".to_owned(); KERNELS.len()];
        line[0] = format!("{} shorter ones", small.len());
        line[4] = small.iter().map(|r| r.count).sum::<usize>().to_string();
        let share: f64 = small.iter().map(|r| r.share).sum();
        line[6] = format!("{:.1} %", 100.0 * share);
        cells.push(line);
    }
    cells
}

fn kernel_cells(row: &Row) -> Vec<String> {
    let gflops = match row.gflops > 0.0 {
        true => format!("{:.1}", row.gflops),
        false => "-".into(),
    };
    vec![
        row.op.clone(),
        row.algorithm.clone(),
        row.input.clone(),
        row.output.clone(),
        row.count.to_string(),
        format!("{:.3}", row.ms),
        format!("{:.1} %", 100.0 * row.share),
        gflops,
        format!("{:.1}", row.gb_per_s),
        percent(row.of_peak),
    ]
}

fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

fn model_cells(row: &NetworkRow) -> Vec<String> {
    let some = |value: Option<f64>, digits: usize| value.map_or("-".into(), |v| format!("{v:.digits$}"));
    vec![
        row.network.clone(),
        some(row.seconds, 3),
        format!("{:.3}", row.gmac),
        some(row.gflops, 1),
        row.of_peak.map_or("-".into(), percent),
        format!("{:.1}", row.run_mib),
        format!("{:.1}", row.weight_mib),
        row.steps.to_string(),
        row.dispatches.to_string(),
        format!("{:.3}", row.plan_seconds),
        some(row.compile_seconds, 2),
    ]
}

/// A title and aligned columns: text to the left, figures to the right.
fn section(title: &str, header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let header: Vec<String> = header.iter().map(|&h| h.to_owned()).collect();
    let rows: Vec<Vec<String>> = std::iter::once(header).chain(rows).collect();
    let figures =
        |column: usize| rows[1..].iter().all(|r| r[column].starts_with(|c: char| c.is_ascii_digit() || c == '-'));
    let mut text = format!("\n{title}\n");
    for line in columns(&rows, figures) {
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// The figures that matter most, in a line.
fn summary(report: &Report) -> String {
    let mut parts: Vec<String> =
        report.yardsticks.iter().map(|y| format!("{} {:.1} {}", y.name, y.median, y.unit)).collect();
    if let Some(row) = &report.training {
        let (whole, memory) = (row.seconds, row.run_mib + row.state_mib);
        parts.push(format!("training step {whole:.2} s in {memory:.0} MiB"));
    } else if report.model.is_empty() {
        let kernels = |t: &KernelTable| format!("{} {:.0} ms", t.network, t.total_ms);
        parts.extend(report.kernels.iter().map(kernels));
    }
    for row in &report.model {
        let time = row.seconds.map_or("not run".into(), |s| format!("{s:.2} s"));
        parts.push(format!("{} {time} in {:.0} MiB", row.network, row.run_mib));
    }
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [["conv2d", "1.5"], ["group_norm", "10.25"]];
        let rows = rows.iter().map(|r| r.iter().map(|c| (*c).to_owned()).collect());
        let text = section("kernels", &["operation", "ms"], rows);
        assert_eq!(text, "\nkernels\noperation      ms\nconv2d        1.5\ngroup_norm  10.25\n");
    }

    #[test]
    fn short_calls_share_a_line() {
        let row = |op: &str, count: usize, share: f64| Row {
            op: op.into(),
            input: "1x1x1x1".into(),
            output: "1x1x1x1".into(),
            algorithm: String::new(),
            count,
            ms: 1.0,
            share,
            gflops: 0.0,
            gb_per_s: 2.5,
            of_peak: 0.5,
        };
        let cells = table_cells(&[row("long", 1, 0.996), row("a", 2, 0.003), row("b", 3, 0.001)]);
        let long = ["long", "", "1x1x1x1", "1x1x1x1", "1", "1.000", "99.6 %", "-", "2.5", "50 %"];
        let rest = ["2 shorter ones", "-", "-", "-", "5", "-", "0.4 %", "-", "-", "-"];
        assert_eq!(cells, [long, rest]);
    }
}
