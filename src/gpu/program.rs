//! Buffers, launches with everything bound, and what is submitted.

use std::sync::Arc;

use super::adapter::{Gpu, GpuError};
use super::launch::{Bind, Launch};
use super::pipeline::Pipeline;
use super::resolve::Resolved;
use super::signal::signal;

/// Launches that are timed with one set of queries: WebGPU allows a set 4,096 timestamps, and a launch takes two.
const TIMED_LAUNCHES: usize = 2048;

/// A buffer of `f32` elements in the memory of a GPU.
#[derive(Clone, Debug)]
pub(crate) struct Buffer(wgpu::Buffer);

/// The launches of one operation, and the buffers that their operands are in.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    /// The name that errors of the driver call it by.
    pub label: &'a str,
    /// The launches, in order.
    pub launches: &'a [Launch],
    /// The buffers of the inputs.
    pub inputs: Vec<&'a Buffer>,
    /// The buffer of the result.
    pub output: &'a Buffer,
    /// The scratch buffers.
    pub scratch: Vec<&'a Buffer>,
}

impl Call<'_> {
    fn buffer(&self, bind: Bind) -> &wgpu::Buffer {
        match bind {
            Bind::Input(i) => &self.inputs[i].0,
            Bind::Output => &self.output.0,
            Bind::Scratch(i) => &self.scratch[i].0,
        }
    }
}

/// A launch with its buffers bound.
#[derive(Debug)]
struct Bound {
    pipeline: Arc<Pipeline>,
    group: wgpu::BindGroup,
    workgroups: [u32; 3],
}

/// Calls with pipelines and buffers bound, to be run any number of times.
#[derive(Debug)]
pub(crate) struct Program {
    launches: Vec<Bound>,
    /// The number of each call's first launch, and at the end that of all launches.
    starts: Vec<usize>,
}

impl Program {
    /// Whether nothing is launched.
    pub(crate) fn is_empty(&self) -> bool {
        self.launches.is_empty()
    }
}

/// Records the commands of one submission.
#[derive(Debug)]
pub(crate) struct Recorder(wgpu::CommandEncoder);

impl Recorder {
    /// Runs a whole program.
    pub(crate) fn run(&mut self, program: &Program) {
        self.launch(&program.launches);
    }

    /// Runs one call of a program.
    pub(crate) fn run_call(&mut self, program: &Program, call: usize) {
        self.launch(&program.launches[program.starts[call]..program.starts[call + 1]]);
    }

    fn launch(&mut self, launches: &[Bound]) {
        let mut pass = self.0.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        launches.iter().for_each(|bound| launch(&mut pass, bound));
    }

    /// Copies `len` elements; both places are given in elements.
    pub(crate) fn copy(&mut self, from: &Buffer, start: usize, to: &Buffer, at: usize, len: usize) {
        self.0.copy_buffer_to_buffer(&from.0, 4 * start as u64, &to.0, 4 * at as u64, 4 * len as u64);
    }

    /// Runs launches in a pass each, with a timestamp before and after.
    fn run_timed(&mut self, launches: &[Bound], query_set: &wgpu::QuerySet) {
        for (i, bound) in launches.iter().enumerate() {
            let mut pass = self.0.begin_compute_pass(&wgpu::ComputePassDescriptor {
                label: None,
                timestamp_writes: Some(wgpu::ComputePassTimestampWrites {
                    query_set,
                    beginning_of_pass_write_index: Some(2 * i as u32),
                    end_of_pass_write_index: Some(2 * i as u32 + 1),
                }),
            });
            launch(&mut pass, bound);
        }
    }
}

fn launch(pass: &mut wgpu::ComputePass, bound: &Bound) {
    pass.set_pipeline(&bound.pipeline.pipeline);
    pass.set_bind_group(0, &bound.group, &[]);
    pass.dispatch_workgroups(bound.workgroups[0], bound.workgroups[1], bound.workgroups[2]);
}

impl Gpu {
    /// A buffer for `len` elements that kernels read and write. That there was no memory for it is reported by
    /// [`check`](Self::check).
    pub(crate) fn storage(&self, len: usize) -> Buffer {
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC;
        Buffer(self.buffer(4 * len as u64, usage))
    }

    /// A buffer for `len` elements that can be copied to and then taken by [`read`](Self::read).
    pub(crate) fn readback(&self, len: usize) -> Buffer {
        Buffer(self.mappable(4 * len as u64))
    }

    fn mappable(&self, bytes: u64) -> wgpu::Buffer {
        self.buffer(bytes, wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST)
    }

    fn buffer(&self, bytes: u64, usage: wgpu::BufferUsages) -> wgpu::Buffer {
        self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            // Kernels may see any tensor as vectors of 4 elements.
            size: bytes.max(16).next_multiple_of(16),
            usage,
            mapped_at_creation: false,
        })
    }

    /// Writes `data` into a buffer from element `start` on.
    pub(crate) fn upload(&self, buffer: &Buffer, start: usize, data: &[f32]) {
        self.queue.write_buffer(&buffer.0, 4 * start as u64, bytemuck::cast_slice(data));
    }

    /// Hands the device what `record` records, as one submission.
    pub(crate) fn submit(&self, record: impl FnOnce(&mut Recorder)) {
        let mut recorder = Recorder(self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default()));
        record(&mut recorder);
        self.queue.submit([recorder.0.finish()]);
    }

    /// The elements of a readback buffer, once all that was submitted is done.
    ///
    /// # Errors
    /// [`GpuError::Device`] if the driver reports an error.
    pub(crate) async fn read(&self, buffer: &Buffer) -> Result<Vec<f32>, GpuError> {
        self.mapped(&buffer.0).await
    }

    async fn mapped<T: bytemuck::AnyBitPattern>(&self, buffer: &wgpu::Buffer) -> Result<Vec<T>, GpuError> {
        let slice = buffer.slice(..);
        let (mapped, complete) = signal();
        slice.map_async(wgpu::MapMode::Read, complete);
        self.wait()?;
        mapped.await.map_err(|e| GpuError::Device(e.to_string()))?;
        self.check()?;
        let view = slice.get_mapped_range().map_err(|e| GpuError::Device(e.to_string()))?;
        let data = bytemuck::cast_slice(&view).to_vec();
        drop(view);
        buffer.unmap();
        Ok(data)
    }

    /// Compiles the kernels of `calls` and binds their buffers.
    ///
    /// # Errors
    /// [`GpuError`] if a launch does not suit its kernel, a kernel does not compile or the driver reports an error.
    pub(crate) fn program(&self, calls: &[Call]) -> Result<Program, GpuError> {
        let mut prepared = Vec::new();
        let mut starts = vec![0];
        for (i, call) in calls.iter().enumerate() {
            for launch in call.launches {
                let pipeline = self.pipeline(&launch.kernel)?;
                let resolved = pipeline.interface.resolve(launch)?;
                prepared.push((i, pipeline, resolved));
            }
            starts.push(prepared.len());
        }
        let (uniform, offsets) = self.uniforms(prepared.iter().map(|(.., resolved)| resolved));
        let absent = self.storage(0);
        let bound = |((i, pipeline, resolved), offset): ((usize, Arc<Pipeline>, Resolved), u64)| {
            let params = pipeline.interface.params.map(|binding| wgpu::BindGroupEntry {
                binding,
                resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                    buffer: &uniform,
                    offset,
                    size: std::num::NonZeroU64::new(resolved.params.len().next_multiple_of(16) as u64),
                }),
            });
            let tensors = pipeline.interface.bindings.iter().zip(&resolved.binds).map(|(binding, bind)| {
                let buffer = bind.map_or(&absent.0, |bind| calls[i].buffer(bind));
                wgpu::BindGroupEntry { binding: binding.number, resource: buffer.as_entire_binding() }
            });
            let entries: Vec<wgpu::BindGroupEntry> = params.into_iter().chain(tensors).collect();
            let group = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(calls[i].label),
                layout: &pipeline.layout,
                entries: &entries,
            });
            Bound { pipeline, group, workgroups: resolved.workgroups }
        };
        let launches = prepared.into_iter().zip(offsets).map(bound).collect();
        self.check()?;
        Ok(Program { launches, starts })
    }

    /// One buffer with the parameters of all launches, and at which byte those of each begin.
    fn uniforms<'a>(&self, launches: impl Iterator<Item = &'a Resolved>) -> (wgpu::Buffer, Vec<u64>) {
        let alignment = self.device.limits().min_uniform_buffer_offset_alignment as usize;
        let mut bytes: Vec<u8> = Vec::new();
        let mut offsets = Vec::new();
        for resolved in launches {
            offsets.push(bytes.len() as u64);
            bytes.extend_from_slice(&resolved.params);
            bytes.resize(bytes.len().next_multiple_of(alignment.max(16)), 0);
        }
        let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
        let buffer = self.buffer(bytes.len() as u64, usage);
        self.queue.write_buffer(&buffer, 0, &bytes);
        (buffer, offsets)
    }

    /// Runs a program and gives the seconds of each call on the device, `None` where the adapter has no timestamps.
    ///
    /// # Errors
    /// [`GpuError::Device`] if the driver reports an error.
    pub(crate) async fn time(&self, program: &Program) -> Result<Option<Vec<f64>>, GpuError> {
        if !self.has_timestamps() {
            return Ok(None);
        }
        let mut of_launch = Vec::with_capacity(program.launches.len());
        for launches in program.launches.chunks(TIMED_LAUNCHES) {
            let ticks = self.ticks(launches).await?;
            let period = f64::from(self.queue.get_timestamp_period()) * 1e-9;
            of_launch.extend(ticks.chunks(2).map(|pair| pair[1].saturating_sub(pair[0]) as f64 * period));
        }
        let calls = program.starts.windows(2).map(|range| of_launch[range[0]..range[1]].iter().sum());
        Ok(Some(calls.collect()))
    }

    /// The timestamps before and after each launch, in ticks of the device's clock.
    async fn ticks(&self, launches: &[Bound]) -> Result<Vec<u64>, GpuError> {
        let count = 2 * launches.len() as u32;
        let wanted = wgpu::QuerySetDescriptor { label: None, ty: wgpu::QueryType::Timestamp, count };
        let queries = self.device.create_query_set(&wanted);
        let bytes = 8 * u64::from(count);
        let resolved = self.buffer(bytes, wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC);
        let mapped = self.mappable(bytes);
        self.submit(|recorder| {
            recorder.run_timed(launches, &queries);
            recorder.0.resolve_query_set(&queries, 0..count, &resolved, 0);
            recorder.0.copy_buffer_to_buffer(&resolved, 0, &mapped, 0, bytes);
        });
        self.mapped(&mapped).await
    }
}
