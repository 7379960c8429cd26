//! A model's training step, its three phases apart.

use std::time::Instant;

use serde::Serialize;

use super::networks::random_inputs;
use super::rows::Call;
use super::{Bench, BenchError, KernelTable, Timed, median, rate, tables, time_steps};
use crate::device::Device;
use crate::graph::Phase;
use crate::models::Model;
use crate::models::training::init::statistic;
use crate::models::training::loss::constants;
use crate::train::optim::{NUMBERS, Update, numbers};
use crate::train::step::{Layout, TrainStep};
use crate::weights::is_buffer;

/// Value that the weights are drawn around zero by; any small one will do for timing.
const WEIGHT: f32 = 0.02;

/// A training step: forward, backward, update.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct TrainingRow {
    /// Images of the batch and their sides.
    pub batch: [usize; 3],
    /// Median seconds of a step with upload and download.
    pub seconds: f64,
    /// Sums of the medians of all operations of the forward pass, in seconds.
    pub forward: f64,
    /// The same of the backward pass.
    pub backward: f64,
    /// The same of the optimiser's update.
    pub update: f64,
    /// Multiply-adds of forward and backward pass as direct algorithms do them, 10^9.
    pub gmac: f64,
    /// These counted as two operations, 10^9 a second.
    pub gflops: f64,
    /// These as a share of the multiply-adds that the device could do meanwhile, 0 to 1; fast algorithms may pass 1.
    pub of_peak: f64,
    /// Planned peak of the memory of a batch, in MiB.
    pub run_mib: f64,
    /// Weights and the optimiser's state, in MiB.
    pub state_mib: f64,
    /// Operations of a step.
    pub steps: usize,
}

impl Bench<'_> {
    /// Times the training step: the row, and the operations of its phases.
    pub(super) fn training(&mut self) -> Result<(TrainingRow, Vec<KernelTable>), BenchError> {
        (self.progress)("planning the training step");
        let size = self.options.size;
        let step = training_step(self.device, &*self.model, size)?;
        let (exe, plan) = (step.executable(), step.plan());
        let mut inputs = random_inputs(plan);
        for (_, values) in inputs.iter_mut().filter(|(name, _)| name == NUMBERS) {
            *values = numbers(&Update::default(), 1, 0, 1e-5);
        }
        let named: Vec<(&str, &[f32])> = inputs.iter().map(|(n, v)| (&n[..], &v[..])).collect();
        let first = self.yardsticks.count();
        let (mut whole, mut single) = (Vec::new(), Vec::new());
        for run in 0..=self.options.runs {
            (self.progress)(&format!("training step, run {run} of {}", self.options.runs));
            self.yardsticks.measure()?;
            let start = Instant::now();
            exe.run(&named)?;
            let seconds = start.elapsed().as_secs_f64();
            // The first run pays for what the driver and the caches do once.
            if run > 0 {
                whole.push(seconds);
                single.push(time_steps(exe, &inputs)?);
            }
        }
        let peak = self.yardsticks.peak_since(first);
        let phases: Vec<Phase> = plan.steps.iter().map(|step| step.phase).collect();
        let mut timed = Vec::new();
        for (phase, name) in [
            (Phase::Forward, "training step, forward"),
            (Phase::Backward, "training step, backward"),
            (Phase::Update, "training step, update"),
        ] {
            let chosen: Vec<usize> = (0..phases.len()).filter(|&i| phases[i] == phase).collect();
            timed.push(Timed {
                name: name.to_owned(),
                calls: chosen.iter().map(|&i| Call::of(&plan.steps[i])).collect(),
                seconds: single.iter().map(|run| chosen.iter().map(|&i| run[i]).collect()).collect(),
            });
        }
        let tables = tables(&timed, peak);
        let of = |i: usize| tables.get(i).map_or(0.0, |table| table.total_ms * 1e-3);
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let seconds = median(whole);
        let gflops = rate(2.0 * plan.macs as f64, seconds);
        let row = TrainingRow {
            batch: [self.options.network.bench.training_batch, size, size],
            seconds,
            forward: of(0),
            backward: of(1),
            update: of(2),
            gmac: plan.macs as f64 * 1e-9,
            gflops,
            of_peak: gflops / peak.gflops,
            run_mib: mib(plan.run_bytes()),
            state_mib: mib(plan.state_bytes() + plan.weight_bytes()),
            steps: plan.steps.len(),
        };
        Ok((row, tables))
    }
}

/// The step of a model with small weights.
fn training_step(device: &Device, model: &dyn Model, size: usize) -> Result<TrainStep, BenchError> {
    let (graph, constants) = (model.loss(size)?, constants());
    let layout = Layout::new(&graph, |name| !is_buffer(name) && !constants.contains_key(name));
    let weights = (0..layout.len()).map(|i| WEIGHT * ((i % 17) as f32 / 8.0 - 1.0)).collect();
    let mut state = Update::default().first_rows(weights);
    state.extend(graph.assigned().map(|(name, shape)| (name.to_owned(), statistic(name, shape))));
    Ok(TrainStep::new(device, &graph, &layout, Update::default(), &state, &constants)?)
}
