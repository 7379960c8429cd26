//! Choosing a device, and compiling and running graphs on it.
//!
//! Functions that wait for a GPU are asynchronous, as they must be in a browser. Beside each stands a function of the
//! plain name that blocks, for targets that have threads to block.

mod cpu;
mod gpu;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

pub use cpu::CpuExecutable;
pub use gpu::GpuExecutable;

use crate::gpu::{AdapterReport, Gpu, GpuError};
use crate::graph::{Graph, GraphError, Life, Location, NodeId, Plan, Target};
use crate::tensor::{Shape, Tensor};
use crate::weights::Weights;

/// Why a graph could not be prepared or run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The GPU cannot be used.
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// The graph does not fit the device.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The network needs a weight that was not given.
    #[error("the weights have no tensor {0}")]
    MissingWeight(String),
    /// A weight has another shape than the network's.
    #[error("weight {name} has shape {found:?}, the network needs {expected}")]
    WeightShape {
        /// Its name.
        name: String,
        /// The dimensions it has.
        found: Vec<usize>,
        /// The shape it should have.
        expected: Shape,
    },
    /// An input was not given.
    #[error("the network's input {0} was not given")]
    MissingInput(String),
    /// An input has the wrong number of elements.
    #[error("input {name} has {found} elements, the network needs {expected}")]
    InputSize {
        /// Its name.
        name: String,
        /// Elements given.
        found: usize,
        /// Elements needed.
        expected: usize,
    },
    /// The result holds NaN or infinities.
    #[error("the result holds NaN or infinities{}", .layer.as_ref().map_or(String::new(), |l| format!("; the first layer that made them is {l}")))]
    NotFinite {
        /// The first layer that made them, where it is known.
        layer: Option<String>,
    },
}

/// Where graphs run.
#[derive(Clone, Debug)]
pub enum Device {
    /// The CPU, on all cores.
    Cpu,
    /// An adapter that wgpu reaches.
    Gpu(Arc<Gpu>),
}

/// Where a network's weights come from.
pub trait ParamSource {
    /// The weight of this name.
    fn param(&self, name: &str) -> Option<&Tensor>;
}

impl ParamSource for BTreeMap<String, Tensor> {
    fn param(&self, name: &str) -> Option<&Tensor> {
        self.get(name)
    }
}

impl ParamSource for Weights {
    fn param(&self, name: &str) -> Option<&Tensor> {
        self.get(name)
    }
}

impl Device {
    /// The device of a `--device` argument: `auto`, `cpu`, `gpu`, an adapter's number or part of its name.
    ///
    /// `auto` takes a hardware GPU where there is one, else the CPU: a software adapter runs on the same cores with
    /// narrower vectors and was never seen to beat it.
    ///
    /// # Errors
    /// [`GpuError`] if no such adapter is there or it does not open.
    pub async fn select_async(wanted: &str) -> Result<Self, GpuError> {
        let hardware = |r: &AdapterReport| r.kind != "software";
        match wanted {
            "cpu" => Ok(Self::Cpu),
            "auto" => match Gpu::open("with hardware", hardware).await {
                Err(GpuError::NoAdapter { .. }) => Ok(Self::Cpu),
                opened => opened.map(Self::Gpu),
            },
            "gpu" => match Gpu::open("with hardware", hardware).await {
                Err(GpuError::NoAdapter { .. }) => Gpu::open("of any kind", |_| true).await,
                opened => opened,
            }
            .map(Self::Gpu),
            _ => {
                let index: Option<usize> = wanted.parse().ok();
                let part = wanted.to_lowercase();
                let fits = |r: &AdapterReport| match index {
                    Some(index) => r.index == index,
                    None => !part.is_empty() && r.name.to_lowercase().contains(&part),
                };
                let description = match index {
                    Some(index) => format!("number {index}"),
                    None => format!("called {wanted:?}"),
                };
                Gpu::open(&description, fits).await.map(Self::Gpu)
            }
        }
    }

    /// [`select_async`](Self::select_async) that blocks.
    ///
    /// # Errors
    /// Those of [`select_async`](Self::select_async), and [`GpuError::Browser`] where blocking is not possible.
    pub fn select(wanted: &str) -> Result<Self, GpuError> {
        block_on(Self::select_async(wanted))?
    }

    /// What the device is, for people.
    pub fn describe(&self) -> String {
        match self {
            Self::Cpu => format!("cpu ({} threads)", rayon::current_num_threads()),
            Self::Gpu(gpu) => {
                let r = gpu.report();
                format!("{} ({}, {}, {})", r.name, r.kind, r.backend, r.driver)
            }
        }
    }

    /// What plans for this device are made for.
    pub fn target(&self) -> Target {
        match self {
            Self::Cpu => Target::Cpu,
            Self::Gpu(gpu) => Target::Gpu(gpu.traits().clone()),
        }
    }

    /// Plans `graph` for this device, allocates and prepares its weights.
    ///
    /// # Errors
    /// [`RunError`] if the graph does not fit the device or a weight is missing or misshapen.
    pub fn compile(
        &self,
        graph: &Graph,
        outputs: &[NodeId],
        weights: &dyn ParamSource,
    ) -> Result<Executable, RunError> {
        let plan = Plan::new(graph, outputs, self.target())?;
        let mut data: Vec<&[f32]> = Vec::with_capacity(plan.params.len());
        for (name, location) in &plan.params {
            let tensor = weights.param(name).ok_or_else(|| RunError::MissingWeight(name.clone()))?;
            let expected = location.slot.shape;
            if tensor.shape() != Some(expected) {
                return Err(RunError::WeightShape { name: name.clone(), found: tensor.dims().to_vec(), expected });
            }
            data.push(tensor.data());
        }
        Ok(match self {
            Self::Cpu => Executable::Cpu(CpuExecutable::new(plan, &data)),
            Self::Gpu(gpu) => {
                Executable::Gpu { exe: GpuExecutable::new(gpu.clone(), plan, &data)?, running: Mutex::new(()) }
            }
        })
    }
}

/// All adapters of this machine; waits for the drivers to answer.
///
/// # Errors
/// [`GpuError::Browser`] where blocking is not possible.
pub fn adapters() -> Result<Vec<AdapterReport>, GpuError> {
    block_on(crate::gpu::adapters())
}

/// Waits for `future`.
#[cfg(not(target_arch = "wasm32"))]
fn block_on<T>(future: impl Future<Output = T>) -> Result<T, GpuError> {
    Ok(pollster::block_on(future))
}

/// The value of a future that is ready at once. Those that do not wait for a GPU are; in a browser the others cannot be
/// waited for.
#[cfg(target_arch = "wasm32")]
fn block_on<T>(future: impl Future<Output = T>) -> Result<T, GpuError> {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(future).poll(&mut context) {
        std::task::Poll::Ready(value) => Ok(value),
        std::task::Poll::Pending => Err(GpuError::Browser),
    }
}

/// A graph ready to run on a device.
#[derive(Debug)]
pub enum Executable {
    /// On the CPU.
    Cpu(CpuExecutable),
    /// On a GPU.
    Gpu {
        /// The plan with its memory.
        exe: GpuExecutable,
        /// Held by a thread while it runs the plan: runs share their buffers, so they must not overlap.
        running: Mutex<()>,
    },
}

impl Executable {
    /// The plan.
    pub fn plan(&self) -> &Plan {
        match self {
            Self::Cpu(exe) => exe.plan(),
            Self::Gpu { exe, .. } => exe.plan(),
        }
    }

    /// Waits for `future`, which uses the executable's buffers, and keeps other threads from using them meanwhile.
    fn alone<T>(&self, future: impl Future<Output = T>) -> Result<T, GpuError> {
        let _alone = match self {
            Self::Cpu(_) => None,
            Self::Gpu { running, .. } => Some(running.lock().unwrap_or_else(PoisonError::into_inner)),
        };
        block_on(future)
    }

    /// Runs on inputs given by name, of which those that the plan does not need are ignored; returns the outputs in the
    /// order they were asked for. Afterwards weights that the graph assigns have their new values, unless the run
    /// fails.
    ///
    /// # Errors
    /// [`RunError`] if an input is missing or has the wrong size, or the GPU fails.
    pub fn run(&self, inputs: &[(&str, &[f32])]) -> Result<Vec<Vec<f32>>, RunError> {
        self.alone(self.run_async(inputs))?
    }

    /// [`run`](Self::run) without blocking. The caller must let a run end before it begins the next: runs share their
    /// buffers.
    ///
    /// # Errors
    /// Those of [`run`](Self::run).
    pub async fn run_async(&self, inputs: &[(&str, &[f32])]) -> Result<Vec<Vec<f32>>, RunError> {
        let data = self.ordered(inputs)?;
        let outputs = match self {
            Self::Cpu(exe) => exe.run(&data),
            Self::Gpu { exe, .. } => exe.run(&data).await?,
        };
        if !outputs.iter().flatten().all(|v| v.is_finite()) {
            return Err(RunError::NotFinite { layer: self.first_not_finite(&data).await });
        }
        match self {
            Self::Cpu(exe) => exe.commit(),
            Self::Gpu { exe, .. } => exe.commit()?,
        }
        Ok(outputs)
    }

    /// The inputs in the plan's order.
    fn ordered<'a>(&self, inputs: &[(&str, &'a [f32])]) -> Result<Vec<&'a [f32]>, RunError> {
        let of = |(name, location): &(String, Location)| {
            let (_, values) =
                inputs.iter().find(|(n, _)| n == name).ok_or_else(|| RunError::MissingInput(name.clone()))?;
            let expected = location.slot.shape.numel();
            if values.len() != expected {
                return Err(RunError::InputSize { name: name.clone(), found: values.len(), expected });
            }
            Ok(*values)
        };
        self.plan().inputs.iter().map(of).collect()
    }

    /// The present values of a weight that the graph assigns: a trained one, or a running statistic.
    ///
    /// # Errors
    /// [`RunError::MissingWeight`] if there is no such weight, or the GPU fails.
    pub fn weight(&self, name: &str) -> Result<Vec<f32>, RunError> {
        let plan = self.plan();
        let of_name = |(known, location): &&(String, Location)| {
            known == name && plan.buffers[location.buffer].life == Life::State
        };
        let (_, location) = plan.params.iter().find(of_name).ok_or_else(|| RunError::MissingWeight(name.to_owned()))?;
        match self {
            Self::Cpu(exe) => Ok(exe.read(location)),
            Self::Gpu { exe, .. } => Ok(self.alone(exe.read(location))??),
        }
    }

    /// Seconds of each step of a run on `inputs`, which are in the plan's order; `None` where the adapter has no clock
    /// for its kernels.
    ///
    /// # Errors
    /// [`RunError`] if the GPU fails.
    pub fn time_steps(&self, inputs: &[&[f32]]) -> Result<Option<Vec<f64>>, RunError> {
        match self {
            Self::Cpu(exe) => {
                let mut seconds = Vec::new();
                exe.run_observed(inputs, |_, elapsed, _| seconds.push(elapsed));
                Ok(Some(seconds))
            }
            Self::Gpu { exe, .. } => Ok(self.alone(exe.time_steps(inputs))??),
        }
    }

    /// The first layer whose result is not finite on these inputs.
    async fn first_not_finite(&self, inputs: &[&[f32]]) -> Option<String> {
        let exe = match self {
            Self::Cpu(exe) => exe,
            Self::Gpu { exe, .. } => return exe.first_not_finite(inputs).await.ok().flatten(),
        };
        let mut first = None;
        exe.run_observed(inputs, |step, _, result| {
            let finite = (0..result.shape.n()).all(|n| result.item(n).iter().all(|v| v.is_finite()));
            if !finite && first.is_none() {
                first = Some(step.name.clone());
            }
        });
        first
    }
}
