//! What a training run shows and writes on its way: a progress bar, the logs, the loss curve.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar};

use crate::files::write_whole;
use crate::models::training::TrainTask;
use crate::models::training::TrainingError;
use crate::models::training::config::TrainingConfig;
use crate::models::training::samples::Figures;
use crate::models::training::sections::Run;
use crate::train::chart::loss_chart;
use crate::train::config::to_commented_toml;
use crate::train::log::Log;
use crate::train::run::{Observer, StepReport};
use crate::train::step::{Layout, TrainStep};

/// The configuration of a run, in its folder.
pub(crate) const CONFIG_FILE: &str = "config.toml";
/// Columns of the log before those of the loss's parts.
const COLUMNS: [&str; 4] = ["seconds", "loss", "lr", "grad_norm"];

/// The observer of a run on the command line.
#[derive(Debug)]
pub(crate) struct Progress {
    out: PathBuf,
    config: String,
    stage: &'static str,
    steps: u64,
    log_every: u64,
    parts: &'static [&'static str],
    stop: Arc<AtomicBool>,
    bar: ProgressBar,
    /// Steps before this part of the run, and when it began.
    begun: (u64, Instant),
    log: Option<Log>,
    figures: Option<Log>,
    /// The reports since the last row.
    since: Vec<StepReport>,
}

impl Progress {
    /// The observer of a task's run into the folder `out`; `stop` ends the run.
    ///
    /// # Errors
    /// A configuration that TOML cannot hold.
    pub(crate) fn new(
        out: &Path,
        task: &dyn TrainTask,
        config: &dyn TrainingConfig,
        stop: Arc<AtomicBool>,
    ) -> Result<Self, TrainingError> {
        let Run { steps, log_every, .. } = *config.common().run;
        let bar = super::progress_bar(steps);
        Ok(Self {
            out: out.to_path_buf(),
            config: to_commented_toml(config)?,
            stage: task.stage(),
            parts: task.reports(),
            begun: (0, Instant::now()),
            log: None,
            figures: None,
            since: Vec::new(),
            steps,
            log_every,
            stop,
            bar,
        })
    }

    /// Steps done.
    pub(crate) fn done(&self) -> u64 {
        self.bar.position()
    }

    /// Writes the row of the last steps, if none was due yet, and the loss curve.
    ///
    /// # Errors
    /// A log or a picture that cannot be written.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        self.write_row()?;
        self.bar.finish_and_clear();
        self.write_chart()
    }

    /// Writes the loss curve: of the log, and of the validation pairs where their figures have a `loss`.
    ///
    /// # Errors
    /// A log that cannot be read, a picture that cannot be written.
    fn write_chart(&self) -> io::Result<()> {
        let series = |log: &Option<Log>| log.as_ref().map_or(Ok(Vec::new()), |log| log.series("loss"));
        let (train, validation) = (series(&self.log), series(&self.figures));
        let chart = loss_chart(
            &format!("{} loss", self.stage),
            &train.map_err(io::Error::other)?,
            &validation.map_err(io::Error::other)?,
        );
        let picture = chart.map_err(io::Error::other)?;
        picture.save(self.out.join("loss.png"), 95).map_err(io::Error::other)
    }

    /// Writes the row of the steps since the last one: means, but the time and the rate of the last.
    fn write_row(&mut self) -> io::Result<()> {
        let (Some(log), Some(last)) = (&mut self.log, self.since.last()) else {
            return Ok(());
        };
        let mean = |value: &dyn Fn(&StepReport) -> f32| {
            self.since.iter().map(|report| f64::from(value(report))).sum::<f64>() / self.since.len() as f64
        };
        let mut row = vec![last.seconds, mean(&|r| r.batch.loss), last.lr, mean(&|r| r.batch.grad_norm)];
        row.extend((0..self.parts.len()).map(|i| mean(&|r| r.batch.others[i])));
        log.row(last.step, &row).map_err(io::Error::other)?;
        let (done_before, since) = self.begun;
        let a_step = since.elapsed().as_secs_f64() / (last.step - done_before).max(1) as f64;
        let left = Duration::from_secs_f64(a_step * (self.steps - last.step) as f64);
        if self.bar.is_hidden() {
            let (step, steps, left) = (last.step, self.steps, HumanDuration(left));
            eprintln!("step {step} of {steps}: loss {:.5}, {a_step:.3} s a step, {left} left", row[1]);
        }
        self.since.clear();
        Ok(())
    }
}

impl Observer for Progress {
    fn begin(&mut self, done: u64, step: &TrainStep, layout: &Layout) -> io::Result<()> {
        // Only now is it known that the folder's run, if there is one, is this one.
        write_whole(self.out.join(CONFIG_FILE), self.config.as_bytes())?;
        let columns: Vec<&str> = COLUMNS.into_iter().chain(self.parts.iter().copied()).collect();
        self.log = Some(Log::open(&self.out.join("log.csv"), &columns, done).map_err(io::Error::other)?);
        // What a killed run wrote after its checkpoint goes from this file as well.
        let path = self.out.join("validation.csv");
        if let Some(columns) = Log::columns(&path)? {
            let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
            self.figures = Some(Log::open(&path, &columns, done).map_err(io::Error::other)?);
        }
        self.begun = (done, Instant::now());
        self.bar.set_position(done);
        self.bar.reset_eta();
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let plan = step.plan();
        let weights = layout.len() as f64 / 1e6;
        let (run, state) = (mib(plan.run_bytes()), mib(plan.weight_bytes() + plan.state_bytes()));
        eprintln!(
            "{weights:.2} million weights; memory: {state:.0} MiB for weights and state, {run:.0} MiB for a step"
        );
        if done > 0 {
            eprintln!("going on after step {done} of {}", self.steps);
        }
        Ok(())
    }

    fn step(&mut self, report: &StepReport) -> io::Result<()> {
        self.bar.set_position(report.step);
        self.bar.set_message(format!("loss {:.5}, lr {:.1e}", report.batch.loss, report.lr));
        self.since.push(report.clone());
        if report.step.is_multiple_of(self.log_every) || report.step == self.steps {
            self.write_row()?;
        }
        Ok(())
    }

    fn sampled(&mut self, step: u64, figures: &Figures) -> io::Result<()> {
        if !figures.is_empty() {
            let names: Vec<&str> = figures.iter().map(|(name, _)| name.as_str()).collect();
            let path = self.out.join("validation.csv");
            let log = match self.figures.take() {
                Some(log) => log,
                None => Log::open(&path, &names, self.begun.0).map_err(io::Error::other)?,
            };
            let values: Vec<f64> = figures.iter().map(|(_, value)| *value).collect();
            self.figures.insert(log).row(step, &values).map_err(io::Error::other)?;
        }
        self.write_chart()
    }

    fn stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::models::dm_fnet::stage1::{Stage1, Stage1Config};
    use crate::models::training::data::{Dataset, Pair};
    use crate::train::config::read;
    use crate::train::step::BatchReport;

    #[test]
    fn rows_are_means_and_the_last_step_has_one() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Stage1Config::default();
        read(&mut config, "[run]\nsteps = 5\nlog_every = 2").unwrap();
        let (modality, name, plane) = ("CT".to_owned(), "1".to_owned(), vec![0; 160 * 160]);
        let pair = Pair { modality, name, width: 160, height: 160, mri: plane.clone(), other: plane };
        let data = Dataset::of(vec![pair]);
        let task = Stage1::new(&config, &data, &Device::Cpu).unwrap();
        let mut progress = Progress::new(folder.path(), &task, &config, Arc::default()).unwrap();
        progress.log = Some(Log::open(&folder.path().join("log.csv"), &COLUMNS, 0).unwrap());
        for step in 1..=5 {
            let loss = step as f32;
            let batch = BatchReport { loss, grad_norm: 2.0 * loss, others: Vec::new() };
            progress.step(&StepReport { step, seconds: step as f64 * 10.0, lr: 1e-4, batch }).unwrap();
        }
        progress.sampled(4, &vec![("loss".into(), 0.5)]).unwrap();
        let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        let rows = "2,20,1.5,0.0001,3\n4,40,3.5,0.0001,7\n5,50,5,0.0001,10\n";
        assert_eq!(read("log.csv"), format!("step,seconds,loss,lr,grad_norm\n{rows}"));
        assert_eq!(read("validation.csv"), "step,loss\n4,0.5\n");
        assert!(folder.path().join("loss.png").exists());
        assert_eq!(progress.done(), 5);
    }
}
