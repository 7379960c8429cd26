//! Runs a plan on the CPU, one operation after the other, each on all threads.

use std::sync::{Mutex, PoisonError};

use web_time::Instant;

use crate::cpu::view::{View, ViewMut};
use crate::graph::{Life, Location, Plan, Step, Work};

/// A plan with its memory, ready to run.
#[derive(Debug)]
pub struct CpuExecutable {
    plan: Plan,
    buffers: Mutex<Vec<Vec<f32>>>,
}

impl CpuExecutable {
    /// Allocates the plan's buffers, copies `weights` (in the order of [`Plan::params`]) and prepares them.
    pub(super) fn new(plan: Plan, weights: &[&[f32]]) -> Self {
        let mut buffers: Vec<Vec<f32>> = plan.buffers.iter().map(|b| vec![0.0; b.len]).collect();
        for ((_, location), data) in plan.params.iter().zip(weights) {
            upload(&mut buffers, location, data);
        }
        for step in &plan.setup {
            run_step(&mut buffers, step);
        }
        for (buffer, spec) in buffers.iter_mut().zip(&plan.buffers) {
            if spec.life == Life::Setup {
                *buffer = Vec::new();
            }
        }
        Self { plan, buffers: Mutex::new(buffers) }
    }

    /// The plan.
    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Runs the plan on `inputs` (in the order of [`Plan::inputs`]); returns the outputs, each contiguous.
    pub(super) fn run(&self, inputs: &[&[f32]]) -> Vec<Vec<f32>> {
        self.run_observed(inputs, |_, _, _| {})
    }

    /// [`run`](Self::run) that calls `observe` after each step, with the step, the seconds it took, and its result.
    pub(crate) fn run_observed(&self, inputs: &[&[f32]], mut observe: impl FnMut(&Step, f64, View)) -> Vec<Vec<f32>> {
        let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        for ((_, location), data) in self.plan.inputs.iter().zip(inputs) {
            upload(&mut buffers, location, data);
        }
        for step in &self.plan.steps {
            let start = Instant::now();
            run_step(&mut buffers, step);
            observe(step, start.elapsed().as_secs_f64(), view(&buffers, &step.output));
        }
        self.plan.outputs.iter().map(|location| read(&buffers, location)).collect()
    }

    /// Gives the weights that the plan changes their new values, which the last run computed.
    pub(super) fn commit(&self) {
        let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        self.plan.commits.iter().for_each(|step| run_step(&mut buffers, step));
    }

    /// The present values of the tensor at `location`, such as a weight that the plan changes.
    pub(super) fn read(&self, location: &Location) -> Vec<f32> {
        read(&self.buffers.lock().unwrap_or_else(PoisonError::into_inner), location)
    }
}

fn read(buffers: &[Vec<f32>], location: &Location) -> Vec<f32> {
    let view = view(buffers, location);
    (0..view.shape.n()).flat_map(|n| view.item(n)).copied().collect()
}

fn upload(buffers: &mut [Vec<f32>], location: &Location, data: &[f32]) {
    buffers[location.buffer][location.slot.offset..][..data.len()].copy_from_slice(data);
}

fn view<'a>(buffers: &'a [Vec<f32>], location: &Location) -> View<'a> {
    View {
        data: &buffers[location.buffer][location.slot.offset..],
        shape: location.slot.shape,
        batch_stride: location.slot.batch_stride,
    }
}

fn run_step(buffers: &mut [Vec<f32>], step: &Step) {
    let Work::Cpu(compute) = &step.work else {
        panic!("{}: a plan for the CPU has no launches", step.name);
    };
    // No step reads the buffer that it writes, so the output can be taken out while the inputs are borrowed.
    let mut taken = std::mem::take(&mut buffers[step.output.buffer]);
    let inputs: Vec<View> = step.inputs.iter().map(|l| view(buffers, l)).collect();
    compute(
        &inputs,
        ViewMut {
            data: &mut taken[step.output.slot.offset..],
            shape: step.output.slot.shape,
            batch_stride: step.output.slot.batch_stride,
        },
    );
    buffers[step.output.buffer] = taken;
}
