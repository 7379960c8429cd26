//! Compute pipelines, one for each kernel variant.

use std::borrow::Cow;
use std::sync::{Arc, PoisonError};

use super::adapter::{Gpu, GpuError};
use super::shader::{Access, source, validate};
use crate::ops::Kernel;

/// A compiled kernel and the layout of its bindings.
#[derive(Debug)]
pub struct Pipeline {
    pub(super) pipeline: wgpu::ComputePipeline,
    pub(super) layout: wgpu::BindGroupLayout,
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
        let entries: Vec<wgpu::BindGroupLayoutEntry> = validate(kernel)?
            .into_iter()
            .enumerate()
            .map(|(binding, access)| layout_entry(binding as u32, access))
            .collect();
        let layout = self
            .device
            .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(kernel.file), entries: &entries });
        let pipeline_layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(kernel.file),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let module = self.device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some(kernel.file),
            source: wgpu::ShaderSource::Wgsl(Cow::Owned(source(kernel)?)),
        });
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
        Ok(Pipeline { pipeline, layout })
    }
}

fn layout_entry(binding: u32, access: Access) -> wgpu::BindGroupLayoutEntry {
    let ty = match access {
        Access::Uniform => wgpu::BufferBindingType::Uniform,
        Access::Read => wgpu::BufferBindingType::Storage { read_only: true },
        Access::Write => wgpu::BufferBindingType::Storage { read_only: false },
    };
    wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
        count: None,
    }
}
