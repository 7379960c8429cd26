//! What an operation says to have a kernel run: source, constants, parameters, bindings, workgroups.

use crate::tensor::Shape;

/// Where a tensor lies in its buffer, in elements.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slot {
    /// Shape of the tensor.
    pub shape: Shape,
    /// First element.
    pub offset: usize,
    /// Elements from one batch item to the next.
    pub batch_stride: usize,
}

impl Slot {
    /// A tensor that has its buffer to itself.
    pub fn contiguous(shape: Shape) -> Self {
        Self { shape, offset: 0, batch_stride: shape.item() }
    }
}

/// A WGSL kernel: a file under `shaders/`, one of its variants.
#[derive(Clone, PartialEq, Debug)]
pub struct Kernel {
    /// The file's name without `.wgsl`.
    pub file: &'static str,
    /// The entry point.
    pub entry: &'static str,
    /// Values of the `override` constants.
    pub constants: Vec<(&'static str, f64)>,
    /// Text that takes the place of the line `//@body` in the file.
    pub body: Option<String>,
}

impl Kernel {
    /// The entry `main` of a file, without variants.
    pub fn new(file: &'static str) -> Self {
        Self { file, entry: "main", constants: Vec::new(), body: None }
    }

    /// Another entry point of the file.
    pub fn entry(mut self, entry: &'static str) -> Self {
        self.entry = entry;
        self
    }

    /// Sets an `override` constant.
    pub fn constant(mut self, name: &'static str, value: f64) -> Self {
        self.constants.push((name, value));
        self
    }

    /// Sets a boolean `override` constant.
    pub fn flag(self, name: &'static str, value: bool) -> Self {
        self.constant(name, f64::from(u8::from(value)))
    }
}

/// What is bound at one place of a kernel. Binding 0 is the parameters; these follow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bind {
    /// An input of the operation.
    Input(usize),
    /// Its result.
    Output,
    /// One of its scratch buffers.
    Scratch(usize),
    /// Nothing: an input that this call does not have.
    Absent,
}

/// The fields of a kernel's `Params` struct, four bytes each, in order.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Params(Vec<u32>);

impl Params {
    /// No fields.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a `u32`.
    ///
    /// # Panics
    /// If the value does not fit: plans are refused before they reach such sizes.
    pub fn u(mut self, value: usize) -> Self {
        self.0.push(u32::try_from(value).expect("tensors have fewer than 2^32 elements"));
        self
    }

    /// Appends an `i32`.
    pub fn i(mut self, value: i32) -> Self {
        self.0.push(value.cast_unsigned());
        self
    }

    /// Appends an `f32`.
    pub fn f(mut self, value: f32) -> Self {
        self.0.push(value.to_bits());
        self
    }

    /// Appends offset and batch stride of a tensor.
    pub fn slot(self, slot: &Slot) -> Self {
        self.u(slot.offset).u(slot.batch_stride)
    }

    /// Appends the two zeros that stand for a tensor which is not there, or its offset and batch stride.
    pub fn optional_slot(self, slot: Option<&Slot>) -> Self {
        match slot {
            Some(slot) => self.slot(slot),
            None => self.u(0).u(0),
        }
    }

    /// The bytes of the uniform buffer.
    pub fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

/// One launch of a kernel.
#[derive(Clone, PartialEq, Debug)]
pub struct Dispatch {
    /// The kernel.
    pub kernel: Kernel,
    /// Its parameters.
    pub params: Params,
    /// What is bound after the parameters, in order.
    pub binds: Vec<Bind>,
    /// Workgroups in x, y and z, each at most 65,535.
    pub workgroups: [u32; 3],
}

impl Dispatch {
    /// A launch of `kernel` on as many workgroups as `counts` says.
    ///
    /// # Panics
    /// If a count is over WebGPU's 65,535: kernels fold such sizes into another dimension.
    pub fn new(kernel: Kernel, params: Params, binds: Vec<Bind>, counts: [usize; 3]) -> Self {
        let workgroups = counts.map(|count| {
            assert!(count <= 65_535, "{} wants {counts:?} workgroups", kernel.file);
            count as u32
        });
        Self { kernel, params, binds, workgroups }
    }

    /// A launch on at least `count` workgroups in rows of 65,535. The kernel numbers them
    /// `group.y * num_workgroups.x + group.x` and leaves what is over.
    pub fn folded(kernel: Kernel, params: Params, binds: Vec<Bind>, count: usize) -> Self {
        let rows = count.div_ceil(65_535);
        Self::new(kernel, params, binds, [count.min(65_535), rows, 1])
    }
}
