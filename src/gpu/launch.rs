//! A launch of a kernel: it gives tensors and values under the names that the kernel's text declares.

use crate::tensor::{Shape, Slot};

/// A WGSL kernel: a file under `shaders/`, one of its entry points, and the variant that constants and texts make.
#[derive(Clone, PartialEq, Debug)]
pub struct Kernel {
    /// The file's name without `.wgsl`.
    pub file: &'static str,
    /// The entry point.
    pub entry: &'static str,
    /// Values of the `override` constants.
    pub constants: Vec<(&'static str, f64)>,
    /// Texts that take the place of the lines `//@NAME` in the file.
    pub texts: Vec<(&'static str, String)>,
}

/// A buffer of the call that a launch is part of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bind {
    /// The buffer that holds an input.
    Input(usize),
    /// The buffer that holds the result.
    Output,
    /// One of the call's scratch buffers.
    Scratch(usize),
}

/// A tensor of a call: which buffer, and where in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Operand {
    /// The buffer.
    pub bind: Bind,
    /// Where in the buffer.
    pub slot: Slot,
}

impl Operand {
    /// Scratch buffer `index`, which has `len` elements.
    pub const fn scratch(index: usize, len: usize) -> Self {
        Self { bind: Bind::Scratch(index), slot: Slot::contiguous(Shape::new(1, 1, 1, len)) }
    }

    /// The tensor's shape.
    pub const fn shape(&self) -> Shape {
        self.slot.shape
    }

    /// The same buffer seen as `slot`.
    pub(crate) const fn with_slot(self, slot: Slot) -> Self {
        Self { slot, ..self }
    }

    /// The whole buffer that it lies in, for kernels that are told by other values where the tensor is.
    pub(crate) const fn buffer(self) -> Self {
        self.with_slot(Slot::contiguous(self.slot.shape))
    }

    /// `count` of its channels from `first` on.
    pub const fn channels(self, first: usize, count: usize) -> Self {
        self.with_slot(self.slot.channels(first, count))
    }

    /// `count` of its batch items from `first` on.
    pub const fn items(self, first: usize, count: usize) -> Self {
        self.with_slot(self.slot.items(first, count))
    }

    /// The tensor as one of `n` batch items: if it has a single item, all of them read that one.
    pub const fn repeated(self, n: usize) -> Self {
        let batch_stride = if self.slot.shape.n() < n { 0 } else { self.slot.batch_stride };
        self.with_slot(Slot { batch_stride, ..self.slot })
    }
}

/// A value of a kernel's `Params`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Value {
    /// A `u32`.
    U32(u32),
    /// An `i32`.
    I32(i32),
    /// An `f32`.
    F32(f32),
    /// A `vec4<u32>`.
    Vec4([u32; 4]),
    /// A number that does not fit 32 bits. Resolving a launch with such a value fails.
    TooLarge(usize),
}

/// How a launch uses a tensor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Use {
    /// The kernel reads it.
    Read(Operand),
    /// The kernel writes it, and may read it.
    Write(Operand),
    /// This launch has no such tensor: an empty buffer is bound under the name, and the kernel must not read it.
    Absent,
}

/// One launch of a kernel.
///
/// Tensors are given under the names of the kernel's bindings, values under the names of the fields of its `Params`.
/// The fields `NAME_offset` and `NAME_batch_stride` of a tensor and the field `grid` are not given: they are filled in
/// from the tensors and the grid. Anything missing, unknown or of another type is an error when the launch is resolved
/// (`resolve.rs`).
#[derive(Clone, PartialEq, Debug)]
pub struct Launch {
    /// The kernel.
    pub kernel: Kernel,
    /// The tensors by name.
    pub tensors: Vec<(&'static str, Use)>,
    /// The values by name.
    pub values: Vec<(&'static str, Value)>,
    /// Workgroups in x, y and z, any number of them: see `shaders/shared/place.wgsl`.
    pub grid: [usize; 3],
}

impl Launch {
    /// A launch of the entry point `entry` of `shaders/FILE.wgsl` on one workgroup.
    pub fn new(file: &'static str, entry: &'static str) -> Self {
        let kernel = Kernel { file, entry, constants: Vec::new(), texts: Vec::new() };
        Self { kernel, tensors: Vec::new(), values: Vec::new(), grid: [1; 3] }
    }

    /// Sets an `override` constant.
    pub fn constant(mut self, name: &'static str, value: f64) -> Self {
        self.kernel.constants.push((name, value));
        self
    }

    /// Sets a boolean `override` constant.
    pub fn flag(self, name: &'static str, value: bool) -> Self {
        self.constant(name, f64::from(u8::from(value)))
    }

    /// Sets the text that takes the place of the line `//@NAME`.
    pub fn text(mut self, name: &'static str, text: impl Into<String>) -> Self {
        self.kernel.texts.push((name, text.into()));
        self
    }

    /// A tensor that the kernel reads.
    pub fn read(mut self, name: &'static str, tensor: Operand) -> Self {
        self.tensors.push((name, Use::Read(tensor)));
        self
    }

    /// A tensor that the kernel reads, or none: a field of its `Params` then has to say so.
    pub fn read_if_any(mut self, name: &'static str, tensor: Option<Operand>) -> Self {
        self.tensors.push((name, tensor.map_or(Use::Absent, Use::Read)));
        self
    }

    /// A tensor that the kernel writes.
    pub fn write(mut self, name: &'static str, tensor: Operand) -> Self {
        self.tensors.push((name, Use::Write(tensor)));
        self
    }

    /// A `u32`.
    pub fn u32(mut self, name: &'static str, value: usize) -> Self {
        self.values.push((name, u32::try_from(value).map_or(Value::TooLarge(value), Value::U32)));
        self
    }

    /// An `i32`.
    pub fn i32(mut self, name: &'static str, value: usize) -> Self {
        self.values.push((name, i32::try_from(value).map_or(Value::TooLarge(value), Value::I32)));
        self
    }

    /// An `f32`.
    pub fn f32(mut self, name: &'static str, value: f32) -> Self {
        self.values.push((name, Value::F32(value)));
        self
    }

    /// A `vec4<u32>`.
    pub fn vec4(mut self, name: &'static str, values: [usize; 4]) -> Self {
        let value = match values.iter().find(|v| u32::try_from(**v).is_err()) {
            Some(&large) => Value::TooLarge(large),
            None => Value::Vec4(values.map(|v| v as u32)),
        };
        self.values.push((name, value));
        self
    }

    /// On a row of `count` workgroups.
    pub fn over(self, count: usize) -> Self {
        self.over_grid([count, 1, 1])
    }

    /// On a grid of workgroups: x, y, z.
    pub fn over_grid(mut self, grid: [usize; 3]) -> Self {
        self.grid = grid;
        self
    }
}
