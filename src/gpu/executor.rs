//! Runs a plan on a GPU: buffers, bind groups and launches are made once; a run is one submission.

use std::sync::{Arc, Mutex, PoisonError};

use super::adapter::{Gpu, GpuError};
use super::pipeline::Pipeline;
use crate::graph::plan::{Life, Location, Plan, Step};
use crate::ops::{Bind, Dispatch};

/// Timestamps that one query set holds (WebGPU's limit is 4,096), two a step.
const TIMED_STEPS: usize = 2048;

/// A kernel with everything bound.
struct Launch {
    pipeline: Arc<Pipeline>,
    bind_group: wgpu::BindGroup,
    workgroups: [u32; 3],
    /// The step it belongs to.
    step: usize,
}

/// A plan with its memory on a GPU, ready to run.
pub struct GpuExecutable {
    gpu: Arc<Gpu>,
    plan: Plan,
    buffers: Vec<Option<wgpu::Buffer>>,
    launches: Vec<Launch>,
    commits: Vec<Launch>,
    readback: wgpu::Buffer,
    /// Runs share the buffers, so one at a time.
    running: Mutex<()>,
}

impl std::fmt::Debug for GpuExecutable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GpuExecutable").field("launches", &self.launches.len()).finish_non_exhaustive()
    }
}

impl GpuExecutable {
    /// Allocates the plan's buffers, uploads `weights` (in the order of [`Plan::params`]) and prepares them.
    ///
    /// # Errors
    /// [`GpuError`] if a kernel does not compile or the driver runs out of memory.
    pub fn new(gpu: Arc<Gpu>, plan: Plan, weights: &[&[f32]]) -> Result<Self, GpuError> {
        let storage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC;
        let mut buffers: Vec<Option<wgpu::Buffer>> =
            plan.buffers.iter().map(|b| Some(gpu.buffer(4 * b.len as u64, storage))).collect();
        gpu.check()?;
        gpu.upload(&buffers, &plan.params, weights);
        let setup = launches(&gpu, &plan.setup, &buffers)?;
        gpu.submit(|encoder| encode(encoder, &setup, None));
        gpu.wait()?;
        for (buffer, spec) in buffers.iter_mut().zip(&plan.buffers) {
            if spec.life == Life::Setup {
                *buffer = None;
            }
        }
        let commits = launches(&gpu, &plan.commits, &buffers)?;
        let launches = launches(&gpu, &plan.steps, &buffers)?;
        let out_len: usize = plan.outputs.iter().map(|l| l.slot.shape.numel()).sum();
        let readback = gpu.mappable(4 * out_len as u64);
        gpu.check()?;
        Ok(Self { gpu, plan, buffers, launches, commits, readback, running: Mutex::new(()) })
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Runs the plan on `inputs` (in the order of [`Plan::inputs`]); returns the outputs, each contiguous.
    ///
    /// # Errors
    /// [`GpuError::Device`] if the driver reports an error.
    pub fn run(&self, inputs: &[&[f32]]) -> Result<Vec<Vec<f32>>, GpuError> {
        let _one = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        self.gpu.upload(&self.buffers, &self.plan.inputs, inputs);
        self.gpu.submit(|encoder| {
            encode(encoder, &self.launches, None);
            let mut to = 0;
            for location in &self.plan.outputs {
                self.copy_out(encoder, location, &self.readback, to);
                to += 4 * location.slot.shape.numel() as u64;
            }
        });
        self.read_outputs()
    }

    /// Gives the weights that the plan changes the values that the last run computed for them.
    ///
    /// # Errors
    /// [`GpuError::Device`] if the driver reports an error.
    pub fn commit(&self) -> Result<(), GpuError> {
        if self.commits.is_empty() {
            return Ok(());
        }
        let _one = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        self.gpu.submit(|encoder| encode(encoder, &self.commits, None));
        self.gpu.check()
    }

    /// The present value of what lies there: a weight that the plan changes.
    ///
    /// # Errors
    /// [`GpuError::Device`] if the driver reports an error.
    pub fn read(&self, location: &Location) -> Result<Vec<f32>, GpuError> {
        let _one = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        self.values(location)
    }

    /// What lies there now.
    fn values(&self, location: &Location) -> Result<Vec<f32>, GpuError> {
        let len = location.slot.shape.numel();
        let mapped = self.gpu.mappable(4 * len as u64);
        self.gpu.submit(|encoder| self.copy_out(encoder, location, &mapped, 0));
        let mut values = self.gpu.read(&mapped)?;
        values.truncate(len);
        Ok(values)
    }

    /// Runs the steps on `inputs` (in the order of [`Plan::inputs`]) and returns each step's seconds on the device, or
    /// `None` where the adapter has no timestamps.
    ///
    /// # Errors
    /// [`GpuError::Device`] if the driver reports an error.
    pub fn time_steps(&self, inputs: &[&[f32]]) -> Result<Option<Vec<f64>>, GpuError> {
        if !self.gpu.has_timestamps() {
            return Ok(None);
        }
        let _one = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        self.gpu.upload(&self.buffers, &self.plan.inputs, inputs);
        let mut seconds = vec![0.0; self.plan.steps.len()];
        for chunk in self.launches.chunks(TIMED_STEPS) {
            let ticks = self.timed(chunk)?;
            for (launch, pair) in chunk.iter().zip(ticks.chunks(2)) {
                let elapsed = pair[1].saturating_sub(pair[0]) as f64;
                seconds[launch.step] += elapsed * f64::from(self.gpu.queue.get_timestamp_period()) * 1e-9;
            }
        }
        Ok(Some(seconds))
    }

    /// The first step whose result is not finite on `inputs`: each is run and read by itself, which is slow.
    ///
    /// # Errors
    /// [`GpuError::Device`] if the driver reports an error.
    pub fn first_not_finite(&self, inputs: &[&[f32]]) -> Result<Option<String>, GpuError> {
        let _one = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        self.gpu.upload(&self.buffers, &self.plan.inputs, inputs);
        let mut rest = &self.launches[..];
        for (i, step) in self.plan.steps.iter().enumerate() {
            let (of_step, after) = rest.split_at(rest.iter().take_while(|launch| launch.step == i).count());
            rest = after;
            self.gpu.submit(|encoder| encode(encoder, of_step, None));
            if !self.values(&step.output)?.iter().all(|v| v.is_finite()) {
                return Ok(Some(step.name.clone()));
            }
        }
        Ok(None)
    }

    /// Begin and end timestamps of each launch.
    fn timed(&self, launches: &[Launch]) -> Result<Vec<u64>, GpuError> {
        let count = 2 * launches.len() as u32;
        let wanted = wgpu::QuerySetDescriptor { label: None, ty: wgpu::QueryType::Timestamp, count };
        let queries = self.gpu.device.create_query_set(&wanted);
        let bytes = 8 * u64::from(count);
        let resolved = self.gpu.buffer(bytes, wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC);
        let mapped = self.gpu.mappable(bytes);
        self.gpu.submit(|encoder| {
            encode(encoder, launches, Some(&queries));
            encoder.resolve_query_set(&queries, 0..count, &resolved, 0);
            encoder.copy_buffer_to_buffer(&resolved, 0, &mapped, 0, bytes);
        });
        self.gpu.read(&mapped)
    }

    /// Copies what lies at `location` to `to` from byte `start` on, contiguous.
    fn copy_out(&self, encoder: &mut wgpu::CommandEncoder, location: &Location, to: &wgpu::Buffer, start: u64) {
        let slot = &location.slot;
        let Some(buffer) = &self.buffers[location.buffer] else {
            return;
        };
        let bytes = 4 * slot.shape.item() as u64;
        for n in 0..slot.shape.n() {
            let from = 4 * (slot.offset + n * slot.batch_stride) as u64;
            encoder.copy_buffer_to_buffer(buffer, from, to, start + n as u64 * bytes, bytes);
        }
    }

    fn read_outputs(&self) -> Result<Vec<Vec<f32>>, GpuError> {
        let all: Vec<f32> = self.gpu.read(&self.readback)?;
        let mut rest = &all[..];
        let mut outputs = Vec::with_capacity(self.plan.outputs.len());
        for location in &self.plan.outputs {
            let (this, next) = rest.split_at(location.slot.shape.numel());
            outputs.push(this.to_vec());
            rest = next;
        }
        Ok(outputs)
    }
}

impl Gpu {
    fn buffer(&self, bytes: u64, usage: wgpu::BufferUsages) -> wgpu::Buffer {
        self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            // Kernels may see any tensor as vectors of 4 elements.
            size: bytes.max(16).next_multiple_of(16),
            usage,
            mapped_at_creation: false,
        })
    }

    /// A buffer that [`read`](Self::read) takes.
    fn mappable(&self, bytes: u64) -> wgpu::Buffer {
        self.buffer(bytes, wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST)
    }

    /// Writes each of `data` to its place.
    fn upload(&self, buffers: &[Option<wgpu::Buffer>], places: &[(String, Location)], data: &[&[f32]]) {
        for ((_, location), data) in places.iter().zip(data) {
            if let Some(buffer) = &buffers[location.buffer] {
                let offset = 4 * location.slot.offset as u64;
                self.queue.write_buffer(buffer, offset, bytemuck::cast_slice(data));
            }
        }
    }

    /// Hands the device what `record` records.
    fn submit(&self, record: impl FnOnce(&mut wgpu::CommandEncoder)) {
        let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        record(&mut encoder);
        self.queue.submit([encoder.finish()]);
    }

    /// Waits for the submitted work and reads a mappable buffer.
    fn read<T: bytemuck::AnyBitPattern>(&self, buffer: &wgpu::Buffer) -> Result<Vec<T>, GpuError> {
        let slice = buffer.slice(..);
        slice.map_async(wgpu::MapMode::Read, |_| {});
        self.wait()?;
        let view = slice.get_mapped_range().map_err(|e| GpuError::Device(e.to_string()))?;
        let data = bytemuck::cast_slice(&view).to_vec();
        drop(view);
        buffer.unmap();
        Ok(data)
    }
}

/// Binds every kernel of `steps`.
fn launches(gpu: &Gpu, steps: &[Step], buffers: &[Option<wgpu::Buffer>]) -> Result<Vec<Launch>, GpuError> {
    let mut dispatches: Vec<(usize, Dispatch)> = Vec::new();
    for (i, step) in steps.iter().enumerate() {
        let slots: Vec<_> = step.inputs.iter().map(|l| l.slot).collect();
        let of_step = step.op.gpu(gpu.traits(), &slots, step.output.slot);
        dispatches.extend(of_step.into_iter().map(|d| (i, d)));
    }
    let alignment = gpu.device.limits().min_uniform_buffer_offset_alignment as usize;
    let mut bytes: Vec<u8> = Vec::new();
    let mut offsets: Vec<(u64, u64)> = Vec::new();
    for (_, dispatch) in &dispatches {
        let params = dispatch.params.bytes();
        offsets.push((bytes.len() as u64, params.len().next_multiple_of(16) as u64));
        bytes.extend_from_slice(params);
        bytes.resize(bytes.len().next_multiple_of(alignment.max(16)), 0);
    }
    let uniform = gpu.buffer(bytes.len() as u64, wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST);
    gpu.queue.write_buffer(&uniform, 0, &bytes);
    let absent = gpu.buffer(16, wgpu::BufferUsages::STORAGE);
    let mut launches = Vec::with_capacity(dispatches.len());
    for ((step, dispatch), (offset, size)) in dispatches.into_iter().zip(offsets) {
        let pipeline = gpu.pipeline(&dispatch.kernel)?;
        let bound = |bind: &Bind| {
            let index = match *bind {
                Bind::Input(i) => steps[step].inputs[i].buffer,
                Bind::Output => steps[step].output.buffer,
                Bind::Scratch(i) => steps[step].scratch[i],
                Bind::Absent => return absent.as_entire_binding(),
            };
            buffers[index].as_ref().unwrap_or(&absent).as_entire_binding()
        };
        let params = wgpu::BindingResource::Buffer(wgpu::BufferBinding {
            buffer: &uniform,
            offset,
            size: std::num::NonZeroU64::new(size),
        });
        let entries: Vec<wgpu::BindGroupEntry> = std::iter::once(params)
            .chain(dispatch.binds.iter().map(bound))
            .enumerate()
            .map(|(binding, resource)| wgpu::BindGroupEntry { binding: binding as u32, resource })
            .collect();
        let bind_group = gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(&steps[step].name),
            layout: &pipeline.layout,
            entries: &entries,
        });
        launches.push(Launch { pipeline, bind_group, workgroups: dispatch.workgroups, step });
    }
    gpu.check()?;
    Ok(launches)
}

/// Records the launches in one pass, or in one pass each where they are timed.
fn encode(encoder: &mut wgpu::CommandEncoder, launches: &[Launch], queries: Option<&wgpu::QuerySet>) {
    let launch = |pass: &mut wgpu::ComputePass, l: &Launch| {
        pass.set_pipeline(&l.pipeline.pipeline);
        pass.set_bind_group(0, &l.bind_group, &[]);
        pass.dispatch_workgroups(l.workgroups[0], l.workgroups[1], l.workgroups[2]);
    };
    let Some(query_set) = queries else {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        launches.iter().for_each(|l| launch(&mut pass, l));
        return;
    };
    for (i, l) in launches.iter().enumerate() {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: None,
            timestamp_writes: Some(wgpu::ComputePassTimestampWrites {
                query_set,
                beginning_of_pass_write_index: Some(2 * i as u32),
                end_of_pass_write_index: Some(2 * i as u32 + 1),
            }),
        });
        launch(&mut pass, l);
    }
}
