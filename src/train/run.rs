//! The training loop: steps, log, checkpoints, samples, and how a run ends.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::TrainError;
use super::checkpoint::{Checkpoint, Progress};
use super::optim::{EMA, Update, WEIGHTS, learning_rate, row};
use super::step::{BatchReport, Layout, TrainStep};
use crate::device::{Device, RunError};
use crate::models::training::samples::Figures;
use crate::models::training::sections::Rate;
use crate::models::training::{TrainTask, init};
use crate::tensor::{Shape, Tensor};
use crate::weights::Weights;

/// The settings of the loop itself.
#[derive(Clone, Debug)]
pub struct RunConfig<'a> {
    /// The folder that everything is written to.
    pub out: PathBuf,
    /// Steps of the whole run.
    pub steps: u64,
    /// The course of the learning rate.
    pub rate: Rate,
    /// The update.
    pub update: Update,
    /// Seed of the first weights.
    pub seed: u64,
    /// The first weights of a new run, in place of those drawn by the seed.
    pub init: Option<&'a Weights>,
    /// Steps between checkpoints, 0 for the end only.
    pub checkpoint_every: u64,
    /// Steps between samples, 0 for none.
    pub sample_every: u64,
    /// Ends the run after this time, with a checkpoint to resume from.
    pub time_limit: Option<Duration>,
    /// Whether to go on from the folder's checkpoint.
    pub resume: bool,
    /// The settings that a resumed run must share, one on each line.
    pub settings: String,
}

/// One finished step, for logs.
#[derive(Clone, PartialEq, Debug)]
pub struct StepReport {
    /// Its number, from 1.
    pub step: u64,
    /// Seconds since the run began, all its parts together.
    pub seconds: f64,
    /// The learning rate.
    pub lr: f64,
    /// Means over the step's batches; the norm is that of the whole gradient.
    pub batch: BatchReport,
}

/// Who is told how a run goes, and says when it is to end.
pub trait Observer {
    /// The run begins after `done` steps; `step` is what it runs.
    ///
    /// # Errors
    /// A log that cannot be written.
    fn begin(&mut self, done: u64, step: &TrainStep, layout: &Layout) -> std::io::Result<()>;

    /// A step is done.
    ///
    /// # Errors
    /// A log that cannot be written.
    fn step(&mut self, report: &StepReport) -> std::io::Result<()>;

    /// Samples were written, with these figures.
    ///
    /// # Errors
    /// A log that cannot be written.
    fn sampled(&mut self, step: u64, figures: &Figures) -> std::io::Result<()>;

    /// Whether the run is to end after this step, as it does at its time limit.
    fn stop(&self) -> bool;
}

/// How a run ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// All steps are done.
    Done,
    /// Its time was up.
    TimeLimit,
    /// It was stopped.
    Stopped,
}

/// The checkpoint's name in a run's folder.
pub(crate) const CHECKPOINT: &str = "checkpoint.safetensors";

/// Trains `task` on `device`.
///
/// # Errors
/// [`TrainError`]; whatever it is, the last checkpoint is whole.
pub fn run(
    task: &dyn TrainTask,
    config: &RunConfig,
    device: &Device,
    observer: &mut dyn Observer,
) -> Result<Ending, TrainError> {
    let mut run = Run::new(task, config, device)?;
    observer.begin(run.done, &run.step, &run.layout)?;
    if run.done == 0 {
        // A run killed at once can be resumed too.
        run.save()?;
    }
    let ending = match run.steps(observer) {
        Err(error) => {
            // The steps since the last checkpoint are not lost with a log or a sample; the first error is what is told.
            if !matches!(error, TrainError::NotFinite { .. }) {
                let _ = run.save();
            }
            return Err(error);
        }
        Ok(ending) => ending,
    };
    run.save()?;
    task.publish(&config.out, run.weights()?).map_err(TrainError::Publish)?;
    Ok(ending)
}

/// Most time between two checkpoints.
const SAVE_AFTER: Duration = Duration::from_secs(600);

/// A run in progress.
struct Run<'a> {
    task: &'a dyn TrainTask,
    config: &'a RunConfig<'a>,
    layout: Layout,
    /// The weights that the graph assigns.
    assigned: Vec<(String, Shape)>,
    step: TrainStep,
    done: u64,
    /// Seconds of the parts before this one.
    before: f64,
    started: Instant,
    saved: Instant,
}

impl<'a> Run<'a> {
    fn new(task: &'a dyn TrainTask, config: &'a RunConfig<'a>, device: &Device) -> Result<Self, TrainError> {
        let path = config.out.join(CHECKPOINT);
        let graph = task.graph().map_err(RunError::from)?;
        let layout = Layout::new(&graph, |name| task.is_trained(name));
        let assigned: Vec<(String, Shape)> = graph.assigned().map(|(name, shape)| (name.to_owned(), shape)).collect();
        let (rows, done, before) = match (config.resume, path.exists()) {
            (true, true) => {
                let saved = Checkpoint::load(&path)?;
                let rows = config.update.rows().into_iter().map(|name| (name.to_owned(), vec![1, 1, 1, layout.len()]));
                let all: Vec<_> =
                    rows.chain(assigned.iter().map(|(name, shape)| (name.clone(), vec![shape.numel()]))).collect();
                saved.check(&path, task.stage(), &config.settings, &layout, &all)?;
                if saved.progress.step > config.steps {
                    return Err(TrainError::Shorter { done: saved.progress.step, steps: config.steps });
                }
                (saved.rows, saved.progress.step, saved.progress.seconds)
            }
            (true, false) => return Err(TrainError::NothingToResume(config.out.clone())),
            (false, true) => return Err(TrainError::Exists(config.out.clone())),
            (false, false) => (first_rows(task, config, &layout, &assigned)?, 0, 0.0),
        };
        let step = TrainStep::new(device, &graph, &layout, config.update.clone(), &rows, task.frozen())?;
        let now = Instant::now();
        Ok(Self { task, config, layout, assigned, step, done, before, started: now, saved: now })
    }

    fn seconds(&self) -> f64 {
        self.before + self.started.elapsed().as_secs_f64()
    }

    /// Runs the steps that are left, or until the time is up or the observer stops it.
    fn steps(&mut self, observer: &mut dyn Observer) -> Result<Ending, TrainError> {
        let config = self.config;
        while self.done < config.steps {
            let report = self.next()?;
            let due = |every: u64| every > 0 && report.step.is_multiple_of(every);
            if due(config.checkpoint_every) || self.saved.elapsed() >= SAVE_AFTER {
                self.save()?;
            }
            observer.step(&report)?;
            if due(config.sample_every) {
                let figures = self.task.sample(&config.out, &self.weights()?, self.done);
                observer.sampled(self.done, &figures.map_err(TrainError::Publish)?)?;
            }
            if self.done < config.steps {
                if observer.stop() {
                    return Ok(Ending::Stopped);
                }
                if config.time_limit.is_some_and(|limit| self.started.elapsed() >= limit) {
                    return Ok(Ending::TimeLimit);
                }
            }
        }
        Ok(Ending::Done)
    }

    /// Runs the next step.
    fn next(&mut self) -> Result<StepReport, TrainError> {
        let number = self.done + 1;
        let update = &self.config.update;
        let lr = learning_rate(&update.optimiser, &self.config.rate, number, self.config.steps);
        let accumulate = update.accumulate;
        let mut reports = Vec::with_capacity(accumulate);
        for batch in 0..accumulate {
            let inputs = self.task.inputs(self.done * accumulate as u64 + batch as u64);
            let inputs: Vec<(&str, &[f32])> = inputs.iter().map(|(n, v)| (n.as_str(), v.as_slice())).collect();
            let report = self.step.run(number, batch, lr, &inputs);
            reports.push(report.map_err(|reason| self.failed(number, reason))?);
        }
        self.done = number;
        Ok(StepReport { step: number, seconds: self.seconds(), lr, batch: mean(&reports) })
    }

    fn failed(&self, step: u64, reason: RunError) -> TrainError {
        if !matches!(reason, RunError::NotFinite { .. }) {
            return TrainError::Run { step, reason };
        }
        TrainError::NotFinite { step, reason: Box::new(reason), kept: self.config.out.join(CHECKPOINT) }
    }

    fn save(&mut self) -> Result<(), TrainError> {
        let mut rows = BTreeMap::new();
        for name in self.config.update.rows() {
            rows.insert(name.to_owned(), row(self.row(name)?));
        }
        rows.extend(self.statistics()?);
        let progress = Progress {
            stage: self.task.stage().to_owned(),
            step: self.done,
            seconds: self.seconds(),
            settings: self.config.settings.clone(),
            layout: self.layout.clone(),
        };
        Checkpoint { progress, rows }.save(&self.config.out.join(CHECKPOINT))?;
        self.saved = Instant::now();
        Ok(())
    }

    fn row(&self, name: &str) -> Result<Vec<f32>, TrainError> {
        self.step.row(name).map_err(|reason| TrainError::Run { step: self.done, reason })
    }

    /// The weights that the graph assigns.
    fn statistics(&self) -> Result<BTreeMap<String, Tensor>, TrainError> {
        let named = self.assigned.iter().map(|(name, _)| {
            let values = self.row(name)?;
            Ok((name.clone(), Tensor::new([values.len()], values)))
        });
        named.collect()
    }

    /// The moving average of the weights where there is one, else the weights; and those that the graph assigns.
    fn weights(&self) -> Result<BTreeMap<String, Tensor>, TrainError> {
        let name = if self.config.update.optimiser.ema_decay > 0.0 { EMA } else { WEIGHTS };
        let mut weights = self.layout.tensors(&self.row(name)?);
        weights.extend(self.statistics()?);
        Ok(weights)
    }
}

/// The state of a run before its first step: given weights or drawn ones, the optimiser's means and the assigned weights.
fn first_rows(
    task: &dyn TrainTask,
    config: &RunConfig,
    layout: &Layout,
    assigned: &[(String, Shape)],
) -> Result<BTreeMap<String, Tensor>, TrainError> {
    let Some(given) = config.init else {
        let mut rows = config.update.first_rows(task.first_weights(layout.entries(), config.seed));
        rows.extend(assigned.iter().map(|(name, shape)| (name.clone(), init::statistic(name, *shape))));
        return Ok(rows);
    };
    let row_of = |layout: &Layout| match layout.row(given) {
        Err(RunError::MissingWeight(name)) => Err(TrainError::Init(name)),
        row => row.map_err(|reason| TrainError::Run { step: 0, reason }),
    };
    let mut rows = config.update.first_rows(row_of(layout)?);
    for (name, shape) in assigned {
        let alone = Layout::from_entries(vec![(name.clone(), vec![shape.numel()])]);
        rows.extend(alone.tensors(&row_of(&alone)?));
    }
    Ok(rows)
}

/// Means over the batches of a step; the norm of the gradient is the last one's, which is the sum's.
fn mean(reports: &[BatchReport]) -> BatchReport {
    let over = |value: &dyn Fn(&BatchReport) -> f32| reports.iter().map(value).sum::<f32>() / reports.len() as f32;
    let last = &reports[reports.len() - 1];
    BatchReport {
        loss: over(&|r| r.loss),
        grad_norm: last.grad_norm,
        others: (0..last.others.len()).map(|i| over(&|r| r.others[i])).collect(),
    }
}
