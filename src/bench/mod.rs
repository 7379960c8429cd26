//! Measures kernels and models on a device, beside what the device can do at most.
//!
//! Weights are random: speed does not depend on them, so no checkpoint is needed. Every figure is a median over runs
//! between which the yardsticks are measured anew, so that a busy machine shows.

pub mod networks;
pub mod peak;
pub mod rows;
pub mod training;
pub mod yardstick;

use std::time::Instant;

use serde::Serialize;

use crate::device::{Device, Executable, ParamSource, RunError};
use crate::graph::{GraphError, Plan};
use crate::models::checkpoint::ModelError;
use crate::models::networks::{Effort, Network};
use crate::models::{Model, ModelRow};
use networks::{convolution, random_inputs};
use rows::{Call, Peak, Row, gather, median, rate};
use training::TrainingRow;
use yardstick::{Yardstick, Yardsticks};

/// Most runs of a network that takes very long.
const LONGEST_RUNS: usize = 3;

/// Kernel, channels in and out, side: convolutions that other programs' figures are known for.
const CONVOLUTIONS: [(usize, [usize; 2], usize); 3] = [(3, [128, 128], 128), (3, [32, 32], 256), (1, [128, 128], 64)];

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The network does not take this size or width, or does not fit the device.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The network cannot be built.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The device failed.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The adapter cannot time its kernels.
    #[error("this adapter has no timestamp queries, so single kernels cannot be timed on it: use --model-only")]
    NoTimestamps,
}

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Options {
    /// The model.
    pub network: &'static ModelRow,
    /// Height and width of the images; the model's [`BenchRow::sizes`](crate::models::networks::BenchRow::sizes).
    pub size: usize,
    /// Channels of the first level, a multiple of 32.
    pub channels: usize,
    /// Measurements of which the median is taken, at least 1.
    pub runs: usize,
    /// Whether single kernels are timed.
    pub kernels: bool,
    /// Whether whole networks are timed.
    pub model: bool,
    /// Whether the networks that take long are run; otherwise they are only planned.
    pub pair: bool,
    /// Whether a training step is timed.
    pub training: bool,
}

/// The machine that measured.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Machine {
    /// The device, as `--device` selected it.
    pub device: String,
    /// The GPU's driver and its version.
    pub driver: Option<String>,
    /// Threads of the CPU that are used.
    pub threads: usize,
    /// The CPU's architecture.
    pub arch: &'static str,
    /// The operating system.
    pub os: &'static str,
}

/// The calls of a network.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct KernelTable {
    /// The network.
    pub network: String,
    /// Sum of the medians of all its calls, in milliseconds.
    pub total_ms: f64,
    /// What the device could do meanwhile.
    pub peak: Peak,
    /// Its calls, the longest first.
    pub rows: Vec<Row>,
}

/// A whole network.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct NetworkRow {
    /// The network.
    pub network: String,
    /// Median seconds of a run with upload and download; none if it was only planned.
    pub seconds: Option<f64>,
    /// Multiply-adds as direct algorithms do them, 10^9.
    pub gmac: f64,
    /// These counted as two operations, 10^9 a second.
    pub gflops: Option<f64>,
    /// These as a share of the multiply-adds that the device could do meanwhile, 0 to 1; fast algorithms may pass 1.
    pub of_peak: Option<f64>,
    /// Planned peak of the memory that a run needs, in MiB.
    pub run_mib: f64,
    /// Weights in the form that the kernels read, in MiB.
    pub weight_mib: f64,
    /// Operations of a run.
    pub steps: usize,
    /// Kernels launched in a run; on the CPU the operations.
    pub dispatches: usize,
    /// Seconds to plan.
    pub plan_seconds: f64,
    /// Seconds to plan, allocate, prepare the weights and compile the kernels.
    pub compile_seconds: Option<f64>,
}

/// Everything that was measured.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Report {
    /// Version of medfuse.
    pub medfuse: &'static str,
    /// The machine that measured.
    pub machine: Machine,
    /// What was asked for.
    pub options: Options,
    /// What the device can do at most.
    pub yardsticks: Vec<Yardstick>,
    /// The kernels of the networks, then the single convolutions.
    pub kernels: Vec<KernelTable>,
    /// The networks.
    pub model: Vec<NetworkRow>,
    /// The training step.
    pub training: Option<TrainingRow>,
}

/// Measures on `device`; `progress` is told what comes next.
///
/// # Errors
/// [`BenchError`] if the size or width suits no network, or the device cannot hold, run or time it.
pub fn run(device: &Device, options: &Options, progress: &mut dyn FnMut(&str)) -> Result<Report, BenchError> {
    progress("drawing weights");
    let mut bench = Bench {
        device,
        options: *options,
        model: options.network.random(options.channels)?,
        yardsticks: Yardsticks::new(device)?,
        progress,
    };
    bench.yardsticks.measure()?;
    let mut kernels = if options.kernels { bench.kernels()? } else { Vec::new() };
    let model = if options.model { bench.networks()? } else { Vec::new() };
    let training = match options.training {
        true => {
            let (row, tables) = bench.training()?;
            kernels.extend(tables);
            Some(row)
        }
        false => None,
    };
    Ok(Report {
        medfuse: env!("CARGO_PKG_VERSION"),
        machine: machine(device),
        options: *options,
        yardsticks: bench.yardsticks.report(),
        kernels,
        model,
        training,
    })
}

fn machine(device: &Device) -> Machine {
    Machine {
        device: device.describe(),
        driver: match device {
            Device::Cpu => None,
            Device::Gpu(gpu) => Some(gpu.report().driver.clone()),
        },
        threads: rayon::current_num_threads(),
        arch: std::env::consts::ARCH,
        os: std::env::consts::OS,
    }
}

/// Seconds of each step of a run on `inputs`, which are in the plan's order.
///
/// # Errors
/// If the device fails or has no clock for its kernels.
pub fn time_steps(exe: &Executable, inputs: &[(String, Vec<f32>)]) -> Result<Vec<f64>, BenchError> {
    let data: Vec<&[f32]> = inputs.iter().map(|(_, values)| &values[..]).collect();
    exe.time_steps(&data)?.ok_or(BenchError::NoTimestamps)
}

/// The calls of a network and the seconds of each in every run.
struct Timed {
    name: String,
    calls: Vec<Call>,
    seconds: Vec<Vec<f64>>,
}

/// A network that is being timed.
struct Timing {
    exe: Executable,
    inputs: Vec<(String, Vec<f32>)>,
    timed: Timed,
}

/// How often a network is run; `None` if it is only planned.
fn runs_of(effort: Effort, options: &Options) -> Option<usize> {
    let Options { runs, pair, .. } = *options;
    match effort {
        Effort::Short => Some(runs),
        Effort::Long => pair.then_some(runs),
        Effort::VeryLong => pair.then_some(runs.min(LONGEST_RUNS)),
        Effort::PlanOnly => None,
    }
}

struct Bench<'a> {
    device: &'a Device,
    options: Options,
    model: Box<dyn Model>,
    yardsticks: Yardsticks<'a>,
    progress: &'a mut dyn FnMut(&str),
}

impl Bench<'_> {
    fn timing(&self, network: &Network, weights: &dyn ParamSource) -> Result<Timing, BenchError> {
        let exe = self.device.compile(&network.graph, &network.outputs, weights)?;
        let plan = exe.plan();
        let calls = plan.steps.iter().map(Call::of).collect();
        let timed = Timed { name: network.name.clone(), calls, seconds: Vec::new() };
        Ok(Timing { inputs: random_inputs(plan), timed, exe })
    }

    /// Times every call of the model's networks, and the single convolutions.
    fn kernels(&mut self) -> Result<Vec<KernelTable>, BenchError> {
        let Options { size, runs, .. } = self.options;
        (self.progress)("preparing kernels");
        let mut timed = Vec::new();
        for network in self.model.parts(size)? {
            timed.push(self.timing(&network, self.model.weights())?);
        }
        for (kernel, channels, side) in CONVOLUTIONS {
            let (network, weights) = convolution(kernel, channels, side)?;
            timed.push(self.timing(&network, &weights)?);
        }
        let first = self.yardsticks.count();
        for run in 0..=runs {
            (self.progress)(&format!("kernels, run {run} of {runs}"));
            self.yardsticks.measure()?;
            for network in &mut timed {
                let seconds = time_steps(&network.exe, &network.inputs)?;
                // The first run pays for what the driver and the caches do once.
                if run > 0 {
                    network.timed.seconds.push(seconds);
                }
            }
        }
        let timed: Vec<Timed> = timed.into_iter().map(|network| network.timed).collect();
        Ok(tables(&timed, self.yardsticks.peak_since(first)))
    }

    /// Times whole networks, one after the other so that only one is in memory.
    fn networks(&mut self) -> Result<Vec<NetworkRow>, BenchError> {
        let networks = self.model.networks(self.options.size)?;
        let options = self.options;
        networks.iter().map(|(network, effort)| self.network(network, runs_of(*effort, &options))).collect()
    }

    fn network(&mut self, network: &Network, runs: Option<usize>) -> Result<NetworkRow, BenchError> {
        let name = &network.name;
        (self.progress)(&format!("planning {name}"));
        let start = Instant::now();
        let plan = Plan::new(&network.graph, &network.outputs, self.device.target())?;
        let mut row = network_row(name, &plan, start.elapsed().as_secs_f64());
        let Some(runs) = runs else {
            return Ok(row);
        };
        let start = Instant::now();
        let exe = self.device.compile(&network.graph, &network.outputs, self.model.weights())?;
        row.compile_seconds = Some(start.elapsed().as_secs_f64());
        let inputs = random_inputs(&plan);
        let named: Vec<(&str, &[f32])> = inputs.iter().map(|(n, v)| (&n[..], &v[..])).collect();
        let first = self.yardsticks.count();
        let mut seconds = Vec::new();
        for run in 1..=runs {
            (self.progress)(&format!("{name}, run {run} of {runs}"));
            self.yardsticks.measure()?;
            let start = Instant::now();
            exe.run(&named)?;
            seconds.push(start.elapsed().as_secs_f64());
        }
        let seconds = median(seconds);
        row.seconds = Some(seconds);
        let gflops = rate(2.0 * plan.macs as f64, seconds);
        row.gflops = Some(gflops);
        row.of_peak = Some(gflops / self.yardsticks.peak_since(first).gflops);
        Ok(row)
    }
}

/// The tables of what was timed; the single convolutions share one.
fn tables(timed: &[Timed], peak: Peak) -> Vec<KernelTable> {
    let mut tables: Vec<KernelTable> = Vec::new();
    for network in timed {
        let rows = gather(&network.calls, &network.seconds, peak);
        let total_ms: f64 = rows.iter().map(|r| r.ms * r.count as f64).sum();
        match tables.iter_mut().find(|t| t.network == network.name) {
            Some(table) => {
                table.rows.extend(rows);
                table.total_ms += total_ms;
            }
            None => tables.push(KernelTable { network: network.name.clone(), total_ms, peak, rows }),
        }
    }
    for table in &mut tables {
        for row in &mut table.rows {
            row.share = row.ms * row.count as f64 / table.total_ms.max(f64::MIN_POSITIVE);
        }
    }
    tables
}

fn network_row(name: &str, plan: &Plan, plan_seconds: f64) -> NetworkRow {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let dispatches = plan.steps.iter().map(|step| Call::of(step).dispatches);
    NetworkRow {
        network: name.to_owned(),
        seconds: None,
        gmac: plan.macs as f64 * 1e-9,
        gflops: None,
        of_peak: None,
        run_mib: mib(plan.run_bytes()),
        weight_mib: mib(plan.weight_bytes()),
        steps: plan.steps.len(),
        dispatches: dispatches.sum(),
        plan_seconds,
        compile_seconds: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::dm_fnet;
    use crate::ops::testing::gpu;

    const SMALL: Options = Options {
        network: &dm_fnet::ROW,
        size: 64,
        channels: 32,
        runs: 1,
        kernels: true,
        model: true,
        pair: false,
        training: true,
    };

    #[test]
    fn everything_is_measured_on_both_devices() {
        for device in [Device::Cpu, Device::Gpu(gpu())] {
            let report = run(&device, &SMALL, &mut |_| {}).expect("it runs");
            let tables: Vec<(&str, usize)> =
                report.kernels.iter().map(|t| (t.network.as_str(), t.rows.len())).collect();
            assert!(
                matches!(tables[..3], [("UNet pass", 10..), ("fusion head", 10..), ("single convolutions", 3)]),
                "{tables:?}"
            );
            let timed: Vec<bool> = report.model.iter().map(|r| r.seconds.is_some()).collect();
            assert_eq!(timed, [true, false, false, true, false]);
            let phases = ["forward", "backward", "update"].map(|phase| format!("training step, {phase}"));
            assert!(tables[3..].iter().map(|(name, _)| *name).eq(&phases), "{tables:?}");
            let training = report.training.expect("it was asked for");
            assert!([training.forward, training.backward, training.update].iter().all(|seconds| *seconds > 0.0));
            assert!(report.model.iter().all(|r| r.run_mib > 0.0 && r.dispatches >= r.steps));
        }
    }

    #[test]
    fn the_json_has_the_documented_fields() {
        let options = Options { kernels: false, ..SMALL };
        let report = run(&Device::Cpu, &options, &mut |_| {}).expect("it runs");
        let json = serde_json::to_value(&report).expect("it can be written");
        let has = |at: &serde_json::Value, fields: &[&str]| {
            let found: Vec<&String> = at.as_object().expect("an object").keys().collect();
            let mut fields = fields.to_vec();
            fields.sort_unstable();
            assert_eq!(found, fields);
        };
        has(&json, &["medfuse", "machine", "options", "yardsticks", "kernels", "model", "training"]);
        has(&json["machine"], &["device", "driver", "threads", "arch", "os"]);
        has(&json["yardsticks"][0], &["name", "unit", "median", "range"]);
        let model = ["network", "seconds", "gmac", "gflops", "of_peak", "run_mib", "weight_mib", "steps"];
        let rest = ["dispatches", "plan_seconds", "compile_seconds"];
        has(&json["model"][0], &[&model[..], &rest].concat());
    }

    #[test]
    fn a_width_that_the_norms_cannot_group_is_refused() {
        let options = Options { channels: 40, ..SMALL };
        let error = run(&Device::Cpu, &options, &mut |_| {}).expect_err("32 groups");
        assert!(error.to_string().contains("32 groups"), "{error}");
    }

    #[test]
    fn a_size_that_the_unet_cannot_halve_is_refused() {
        let options = Options { size: 72, ..SMALL };
        run(&Device::Cpu, &options, &mut |_| {}).expect_err("72 is no multiple of 16");
    }
}
