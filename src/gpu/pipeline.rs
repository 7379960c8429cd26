//! Compute pipelines, one for each kernel variant.

use std::borrow::Cow;
use std::sync::{Arc, PoisonError};

use super::adapter::{Gpu, GpuError};
use super::launch::Kernel;
use super::shader::{Access, Interface, source};

/// A compiled kernel, what it wants to be given, and the layout of its bindings.
#[derive(Debug)]
pub(super) struct Pipeline {
    pub pipeline: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
    pub interface: Interface,
}

impl Gpu {
    /// The pipeline of a kernel variant, compiled at its first use.
    pub(super) fn pipeline(&self, kernel: &Kernel) -> Result<Arc<Pipeline>, GpuError> {
        let key = format!("{kernel:?}");
        let mut known = self.pipelines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipeline) = known.get(&key) {
            return Ok(pipeline.clone());
        }
        let pipeline = Arc::new(self.compile(kernel)?);
        known.insert(key, pipeline.clone());
        Ok(pipeline)
    }

    fn compile(&self, kernel: &Kernel) -> Result<Pipeline, GpuError> {
        let interface = Interface::of(kernel)?;
        let params = interface.params.map(|binding| layout_entry(binding, wgpu::BufferBindingType::Uniform));
        let tensors = interface.bindings.iter().map(|b| {
            let read_only = b.access == Access::Read;
            layout_entry(b.number, wgpu::BufferBindingType::Storage { read_only })
        });
        let entries: Vec<wgpu::BindGroupLayoutEntry> = params.into_iter().chain(tensors).collect();
        let layout = self
            .device
            .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(kernel.file), entries: &entries });
        let pipeline_layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(kernel.file),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let module = self.module(kernel)?;
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(kernel.file),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some(kernel.entry),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &kernel.constants,
                zero_initialize_workgroup_memory: false,
            },
            cache: None,
        });
        self.check()?;
        Ok(Pipeline { pipeline, layout, interface })
    }

    /// The module of a kernel, without the counter that wgpu otherwise adds to every loop to end it if it never does.
    ///
    /// The counter lies in memory and made kernels three times slower on an H200. Accesses stay within their buffers
    /// all the same: bounds checks are left on.
    fn module(&self, kernel: &Kernel) -> Result<wgpu::ShaderModule, GpuError> {
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(kernel.file),
            source: wgpu::ShaderSource::Wgsl(Cow::Owned(source(kernel)?)),
        };
        let checks = wgpu::ShaderRuntimeChecks { force_loop_bounding: false, ..wgpu::ShaderRuntimeChecks::checked() };
        // SAFETY: without the counter a loop that never ends is undefined. The texts are medfuse's own, embedded at
        // build time (the parts that operations write into them are straight lines of arithmetic), and every loop in
        // them counts an integer up or down by a step that is not zero to an end that is fixed before the loop begins
        // and at most a size of a tensor or a count that the host gives, or halves a number until it is zero. Sizes fit
        // 32 bits with room for a step more: plans refuse larger tensors.
        Ok(unsafe { self.device.create_shader_module_trusted(descriptor, checks) })
    }
}

fn layout_entry(binding: u32, ty: wgpu::BufferBindingType) -> wgpu::BindGroupLayoutEntry {
    wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
        count: None,
    }
}
