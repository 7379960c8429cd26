//! Runs a plan on a GPU: buffers, bind groups and launches are made once; a run is one submission.

use std::sync::Arc;

use crate::gpu::{Buffer, Call, Gpu, GpuError, Program, Recorder};
use crate::graph::{Life, Location, Plan, Step, Work};
use crate::tensor::Slot;

/// A plan with its memory on a GPU, ready to run.
///
/// Its runs share the buffers, so they must come one after the other: [`Executable`](super::Executable) sees to that.
#[derive(Debug)]
pub struct GpuExecutable {
    gpu: Arc<Gpu>,
    plan: Plan,
    buffers: Vec<Option<Buffer>>,
    steps: Program,
    commits: Program,
    readback: Buffer,
}

impl GpuExecutable {
    /// Allocates the plan's buffers, uploads `weights` (in the order of [`Plan::params`]) and prepares them.
    ///
    /// # Errors
    /// [`GpuError`] if a kernel does not compile or the driver runs out of memory.
    pub(super) fn new(gpu: Arc<Gpu>, plan: Plan, weights: &[&[f32]]) -> Result<Self, GpuError> {
        let mut buffers: Vec<Option<Buffer>> = plan.buffers.iter().map(|b| Some(gpu.storage(b.len))).collect();
        gpu.check()?;
        upload(&gpu, &buffers, &plan.params, weights);
        let setup = program(&gpu, &plan.setup, &buffers)?;
        gpu.submit(|recorder| recorder.run(&setup));
        for (buffer, spec) in buffers.iter_mut().zip(&plan.buffers) {
            if spec.life == Life::Setup {
                *buffer = None;
            }
        }
        let steps = program(&gpu, &plan.steps, &buffers)?;
        let commits = program(&gpu, &plan.commits, &buffers)?;
        let readback = gpu.readback(plan.outputs.iter().map(|l| l.slot.shape.numel()).sum());
        gpu.wait()?;
        Ok(Self { gpu, plan, buffers, steps, commits, readback })
    }

    /// The plan.
    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Runs the plan on `inputs` (in the order of [`Plan::inputs`]); returns the outputs, each contiguous.
    ///
    /// # Errors
    /// [`GpuError::Device`] if the driver reports an error.
    pub(super) async fn run(&self, inputs: &[&[f32]]) -> Result<Vec<Vec<f32>>, GpuError> {
        upload(&self.gpu, &self.buffers, &self.plan.inputs, inputs);
        self.gpu.submit(|recorder| {
            recorder.run(&self.steps);
            let mut at = 0;
            for location in &self.plan.outputs {
                self.copy_out(recorder, location, &self.readback, at);
                at += location.slot.shape.numel();
            }
        });
        let all = self.gpu.read(&self.readback).await?;
        let mut rest = &all[..];
        let mut take = |location: &Location| {
            let (this, next) = rest.split_at(location.slot.shape.numel());
            rest = next;
            this.to_vec()
        };
        Ok(self.plan.outputs.iter().map(&mut take).collect())
    }

    /// Gives the weights that the plan changes their new values, which the last run computed.
    ///
    /// # Errors
    /// [`GpuError::Device`] if the driver reports an error.
    pub(super) fn commit(&self) -> Result<(), GpuError> {
        if self.commits.is_empty() {
            return Ok(());
        }
        self.gpu.submit(|recorder| recorder.run(&self.commits));
        self.gpu.check()
    }

    /// The present values of the tensor at `location`.
    ///
    /// # Errors
    /// [`GpuError::Device`] if the driver reports an error.
    pub(super) async fn read(&self, location: &Location) -> Result<Vec<f32>, GpuError> {
        let len = location.slot.shape.numel();
        let readback = self.gpu.readback(len);
        self.gpu.submit(|recorder| self.copy_out(recorder, location, &readback, 0));
        let mut values = self.gpu.read(&readback).await?;
        values.truncate(len);
        Ok(values)
    }

    /// Runs the steps on `inputs` (in the order of [`Plan::inputs`]) and gives each step's seconds on the device,
    /// `None` where the adapter has no timestamps.
    ///
    /// # Errors
    /// [`GpuError::Device`] if the driver reports an error.
    pub(super) async fn time_steps(&self, inputs: &[&[f32]]) -> Result<Option<Vec<f64>>, GpuError> {
        upload(&self.gpu, &self.buffers, &self.plan.inputs, inputs);
        self.gpu.time(&self.steps).await
    }

    /// The name of the first step whose result is not finite on `inputs`. Each step is run and read by itself, which is
    /// slow.
    ///
    /// # Errors
    /// [`GpuError::Device`] if the driver reports an error.
    pub(super) async fn first_not_finite(&self, inputs: &[&[f32]]) -> Result<Option<String>, GpuError> {
        upload(&self.gpu, &self.buffers, &self.plan.inputs, inputs);
        for (i, step) in self.plan.steps.iter().enumerate() {
            self.gpu.submit(|recorder| recorder.run_call(&self.steps, i));
            if !self.read(&step.output).await?.iter().all(|v| v.is_finite()) {
                return Ok(Some(step.name.clone()));
            }
        }
        Ok(None)
    }

    /// Copies the tensor at `location` into the buffer `to`, contiguous, from element `at` on.
    fn copy_out(&self, recorder: &mut Recorder, location: &Location, to: &Buffer, at: usize) {
        let Slot { shape, offset, batch_stride } = location.slot;
        if let Some(buffer) = &self.buffers[location.buffer] {
            for n in 0..shape.n() {
                recorder.copy(buffer, offset + n * batch_stride, to, at + n * shape.item(), shape.item());
            }
        }
    }
}

/// Writes each of `data` to its place.
fn upload(gpu: &Gpu, buffers: &[Option<Buffer>], places: &[(String, Location)], data: &[&[f32]]) {
    for ((_, location), data) in places.iter().zip(data) {
        if let Some(buffer) = &buffers[location.buffer] {
            gpu.upload(buffer, location.slot.offset, data);
        }
    }
}

/// Binds every kernel of `steps`.
fn program(gpu: &Gpu, steps: &[Step], buffers: &[Option<Buffer>]) -> Result<Program, GpuError> {
    // Buffers that only the set-up needs are freed when the other steps are bound; no step reads one, so anything may
    // stand in.
    let gone = gpu.storage(0);
    let buffer = |index: usize| buffers[index].as_ref().unwrap_or(&gone);
    let mut calls = Vec::with_capacity(steps.len());
    for step in steps {
        let Work::Gpu(launches) = &step.work else {
            panic!("{}: a plan for a GPU consists of launches", step.name);
        };
        calls.push(Call {
            label: &step.name,
            launches,
            inputs: step.inputs.iter().map(|l| buffer(l.buffer)).collect(),
            output: buffer(step.output.buffer),
            scratch: step.scratch.iter().map(|&index| buffer(index)).collect(),
        });
    }
    gpu.program(&calls)
}
