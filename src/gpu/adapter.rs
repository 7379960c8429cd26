//! Adapters: what there is, what it allows, and opening one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::launch::Kernel;
use super::pipeline::Pipeline;

/// What an adapter allows, as far as the choice of kernels and sizes depends on it.
#[derive(Clone, Debug, PartialEq)]
pub struct GpuTraits {
    /// Largest storage buffer that a kernel can see, in bytes.
    pub max_binding: u64,
    /// Largest buffer, in bytes.
    pub max_buffer: u64,
    /// Whether this is a CPU posing as a GPU (llvmpipe and the like).
    pub software: bool,
    /// Invocations of a subgroup, if that number is fixed and kernels may exchange values within one.
    pub subgroup: Option<u32>,
}

impl GpuTraits {
    /// The largest buffer, in bytes, that a kernel can be given.
    pub(crate) fn largest_tensor(&self) -> u64 {
        self.max_binding.min(self.max_buffer)
    }
}

/// Why the GPU cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    /// There is no adapter of the kind asked for.
    #[error(
        "no GPU adapter {wanted}: install your GPU's Vulkan driver, or the software one \
         (Debian and Ubuntu: apt-get install mesa-vulkan-drivers), or use --device cpu; \
         `medfuse devices` lists what is there"
    )]
    NoAdapter {
        /// What was asked for.
        wanted: String,
    },
    /// The adapter would not open.
    #[error("the adapter {name} cannot be opened: {reason}")]
    Open {
        /// Its name.
        name: String,
        /// The driver's words.
        reason: String,
    },
    /// A kernel or its launch is not valid, which is a bug in medfuse.
    #[error("kernel {kernel}: {message}")]
    Kernel {
        /// Its file and entry point.
        kernel: String,
        /// What is wrong.
        message: String,
    },
    /// Something was to wait for a GPU in a browser, where nothing can block.
    #[error("a browser cannot wait for a GPU: use the asynchronous function")]
    Browser,
    /// The driver reported an error.
    #[error("the GPU reported an error: {0}")]
    Device(String),
}

impl GpuError {
    pub(super) fn kernel(kernel: &Kernel, message: impl Into<String>) -> Self {
        Self::Kernel { kernel: format!("{}, {}", kernel.file, kernel.entry), message: message.into() }
    }
}

/// An adapter as `medfuse devices` lists it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct AdapterReport {
    /// Its number for `--device`.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// Discrete, integrated, virtual, software or other.
    pub kind: &'static str,
    /// The API: Vulkan, Metal, Dx12.
    pub backend: String,
    /// The driver and its version.
    pub driver: String,
    /// Largest storage buffer that a kernel can see, in bytes.
    pub max_storage_binding: u64,
    /// Largest buffer, in bytes.
    pub max_buffer: u64,
    /// Invocations of a workgroup.
    pub max_workgroup_invocations: u32,
    /// Shared memory of a workgroup, in bytes.
    pub workgroup_memory: u32,
    /// Smallest and largest subgroup.
    pub subgroup: [u32; 2],
    /// Features that medfuse or its benchmarks can use.
    pub features: Vec<&'static str>,
}

fn instance() -> wgpu::Instance {
    let mut desc = wgpu::InstanceDescriptor::new_without_display_handle();
    // Validation layers are for debugging drivers; wgpu's own validation stays on.
    desc.flags = wgpu::InstanceFlags::empty();
    wgpu::Instance::new(desc)
}

/// All adapters of this machine.
pub(crate) async fn adapters() -> Vec<AdapterReport> {
    let found = instance().enumerate_adapters(wgpu::Backends::all()).await;
    found.iter().enumerate().map(|(index, adapter)| report(index, adapter)).collect()
}

fn kind(info: &wgpu::AdapterInfo) -> &'static str {
    match info.device_type {
        wgpu::DeviceType::DiscreteGpu => "discrete",
        wgpu::DeviceType::IntegratedGpu => "integrated",
        wgpu::DeviceType::VirtualGpu => "virtual",
        wgpu::DeviceType::Cpu => "software",
        wgpu::DeviceType::Other => "other",
    }
}

fn report(index: usize, adapter: &wgpu::Adapter) -> AdapterReport {
    let info = adapter.get_info();
    let limits = adapter.limits();
    let known = [
        (wgpu::Features::TIMESTAMP_QUERY, "timestamp queries"),
        (wgpu::Features::SUBGROUP, "subgroups"),
        (wgpu::Features::SHADER_F16, "f16"),
        (wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX, "cooperative matrices"),
    ];
    let features = adapter.features();
    AdapterReport {
        index,
        kind: kind(&info),
        backend: info.backend.to_string(),
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
        name: info.name,
        max_storage_binding: limits.max_storage_buffer_binding_size,
        max_buffer: limits.max_buffer_size,
        max_workgroup_invocations: limits.max_compute_invocations_per_workgroup,
        workgroup_memory: limits.max_compute_workgroup_storage_size,
        subgroup: [info.subgroup_min_size, info.subgroup_max_size],
        features: known.iter().filter(|(f, _)| features.contains(*f)).map(|(_, n)| *n).collect(),
    }
}

/// An open adapter with the pipelines made on it so far.
pub struct Gpu {
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    pub(super) pipelines: Mutex<HashMap<String, Arc<Pipeline>>>,
    /// The first error that the driver reported by itself, not as the result of a call; [`Gpu::check`] takes it.
    pub(super) fault: Arc<Mutex<Option<String>>>,
    report: AdapterReport,
    traits: GpuTraits,
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gpu").field("report", &self.report).finish_non_exhaustive()
    }
}

impl Gpu {
    /// Opens the first adapter for which `wanted` holds; `description` names it in the error.
    ///
    /// # Errors
    /// [`GpuError::NoAdapter`] if there is none, [`GpuError::Open`] if the driver refuses.
    pub(crate) async fn open(
        description: &str,
        wanted: impl Fn(&AdapterReport) -> bool,
    ) -> Result<Arc<Self>, GpuError> {
        let found = instance().enumerate_adapters(wgpu::Backends::all()).await;
        for (index, adapter) in found.into_iter().enumerate() {
            let report = report(index, &adapter);
            if wanted(&report) {
                return Self::open_adapter(&adapter, report).await;
            }
        }
        Err(GpuError::NoAdapter { wanted: description.to_owned() })
    }

    async fn open_adapter(adapter: &wgpu::Adapter, report: AdapterReport) -> Result<Arc<Self>, GpuError> {
        let optional = wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::SUBGROUP;
        let limits = adapter.limits();
        let wanted = wgpu::DeviceDescriptor {
            label: Some("medfuse"),
            required_features: adapter.features() & optional,
            required_limits: limits.clone(),
            experimental_features: wgpu::ExperimentalFeatures::disabled(),
            memory_hints: wgpu::MemoryHints::Performance,
            trace: wgpu::Trace::Off,
        };
        let opened = adapter.request_device(&wanted).await;
        let (device, queue) =
            opened.map_err(|e| GpuError::Open { name: report.name.clone(), reason: e.to_string() })?;
        let fault = Arc::new(Mutex::new(None));
        let slot = fault.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            let mut first = slot.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert_with(|| error.to_string());
        }));
        let traits = GpuTraits {
            max_binding: limits.max_storage_buffer_binding_size,
            max_buffer: limits.max_buffer_size,
            software: report.kind == "software",
            subgroup: (device.features().contains(wgpu::Features::SUBGROUP)
                && report.subgroup[0] == report.subgroup[1])
                .then_some(report.subgroup[0]),
        };
        Ok(Arc::new(Self { device, queue, pipelines: Mutex::default(), fault, report, traits }))
    }

    /// What the adapter is.
    pub fn report(&self) -> &AdapterReport {
        &self.report
    }

    /// What it allows, as far as kernels depend on it.
    pub fn traits(&self) -> &GpuTraits {
        &self.traits
    }

    /// Whether kernels can be timed on the device.
    pub(crate) fn has_timestamps(&self) -> bool {
        self.device.features().contains(wgpu::Features::TIMESTAMP_QUERY)
    }

    /// Fails if the driver has reported an error since the last call.
    ///
    /// # Errors
    /// [`GpuError::Device`] with the driver's words.
    pub(crate) fn check(&self) -> Result<(), GpuError> {
        let mut fault = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        fault.take().map_or(Ok(()), |message| Err(GpuError::Device(message)))
    }

    /// Waits until all submitted work is done. In a browser it returns at once: the event loop must go on for callbacks
    /// to come.
    ///
    /// # Errors
    /// [`GpuError::Device`] with the driver's words.
    pub(crate) fn wait(&self) -> Result<(), GpuError> {
        let wait = wgpu::PollType::Wait { submission_index: None, timeout: None };
        self.device.poll(wait).map_err(|e| GpuError::Device(e.to_string()))?;
        self.check()
    }
}
