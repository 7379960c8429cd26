//! Pointwise operations: any expression of tensors, element by element, with broadcast of single channels and planes.
//!
//! Each expression is one kernel: chains are joined by the plan, and the expression's text becomes the body of
//! `shaders/pointwise.wgsl`.

mod grad;

use std::fmt::Write;
use std::ops::{Add, Div, Mul, Sub};
use std::sync::Arc;

use rayon::prelude::*;

use crate::cpu::activation::Activation;
use crate::cpu::view::{View, ViewMut};
use crate::cpu::wide::wide_fn;
use crate::gpu::{Launch, Operand};
use crate::graph::{Backward, Gradients, Graph, Lowered, Op, Target};
use crate::tensor::Shape;

/// The most tensors that one expression reads: together with the result they are eight, WebGPU's default limit of
/// storage buffers.
pub(crate) const MAX_INPUTS: usize = 7;
/// The most tensors that an expression made by joining others reads: one less, for its gradient also reads the gradient
/// with respect to the result.
const MAX_JOINED: usize = MAX_INPUTS - 1;

/// Elements that the CPU twin evaluates at a time, few enough for the first-level cache.
const BLOCK: usize = 256;
/// Elements of a plane that one CPU task takes.
const PART: usize = 64 * BLOCK;

/// One instruction; operands are the numbers of earlier ones.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Instr {
    /// An element of an input tensor.
    Input(usize),
    /// `scale * a + shift`.
    Affine {
        a: usize,
        scale: f32,
        shift: f32,
    },
    /// An activation function.
    Act(Activation, usize),
    /// The derivative of an activation function. It is differentiated as if it were constant.
    Slope(Activation, usize),
    Add(usize, usize),
    Sub(usize, usize),
    Mul(usize, usize),
    Div(usize, usize),
    Sqrt(usize),
    /// The absolute value. It is not written as the value times its sign: compilers join that product with the sums
    /// around it into fused multiply-adds, which round differently, so that the difference of two equal values would no
    /// longer be exactly zero.
    Abs(usize),
    /// 1 where positive, 0 where negative, `at_zero` at zero: the derivative of a function with a corner.
    Step {
        a: usize,
        at_zero: f32,
    },
}

impl Instr {
    /// The instruction with its operands and inputs renumbered.
    fn map(self, mut reg: impl FnMut(usize) -> usize, mut input: impl FnMut(usize) -> usize) -> Self {
        match self {
            Self::Input(i) => Self::Input(input(i)),
            Self::Affine { a, scale, shift } => Self::Affine { a: reg(a), scale, shift },
            Self::Act(act, a) => Self::Act(act, reg(a)),
            Self::Slope(act, a) => Self::Slope(act, reg(a)),
            Self::Add(a, b) => Self::Add(reg(a), reg(b)),
            Self::Sub(a, b) => Self::Sub(reg(a), reg(b)),
            Self::Mul(a, b) => Self::Mul(reg(a), reg(b)),
            Self::Div(a, b) => Self::Div(reg(a), reg(b)),
            Self::Sqrt(a) => Self::Sqrt(reg(a)),
            Self::Abs(a) => Self::Abs(reg(a)),
            Self::Step { a, at_zero } => Self::Step { a: reg(a), at_zero },
        }
    }
}

/// An expression over input tensors, evaluated for every element of the result.
#[derive(Clone, PartialEq, Debug)]
pub struct Pointwise {
    program: Vec<Instr>,
    inputs: usize,
}

/// A value of an expression while it is written, see [`Pointwise::build`].
#[derive(Clone, Debug)]
pub struct Expr(Vec<Instr>);

impl Expr {
    /// Appends those of `other`'s instructions that are not there yet; returns the number of the one that computes
    /// `other`'s value.
    fn join(&mut self, other: &Self) -> usize {
        let mut place: Vec<usize> = Vec::new();
        for instr in &other.0 {
            let instr = instr.map(|r| place[r], |i| i);
            let at = self.0.iter().position(|&known| known == instr);
            place.push(at.unwrap_or_else(|| {
                self.0.push(instr);
                self.0.len() - 1
            }));
        }
        place[place.len() - 1]
    }

    fn binary(mut self, other: &Self, instr: impl Fn(usize, usize) -> Instr) -> Self {
        let a = self.0.len() - 1;
        let b = self.join(other);
        self.0.push(instr(a, b));
        self
    }

    /// The activation of this value.
    pub fn act(mut self, activation: Activation) -> Self {
        self.0.push(Instr::Act(activation, self.0.len() - 1));
        self
    }

    /// The derivative of an activation at this value.
    fn slope(mut self, activation: Activation) -> Self {
        self.0.push(Instr::Slope(activation, self.0.len() - 1));
        self
    }

    /// The square root; NaN below zero.
    pub fn sqrt(mut self) -> Self {
        self.0.push(Instr::Sqrt(self.0.len() - 1));
        self
    }

    /// 1 where this is positive, 0 where it is negative and `at_zero` at zero. It is differentiated as if it were
    /// constant.
    pub fn step(mut self, at_zero: f32) -> Self {
        self.0.push(Instr::Step { a: self.0.len() - 1, at_zero });
        self
    }

    /// The larger of two values; between equals the gradient goes half to each, as in PyTorch.
    pub fn max(self, other: Self) -> Self {
        (self.clone() - other.clone()).step(0.5).select(self, other)
    }

    /// The smaller of two values, see [`Expr::max`].
    pub fn min(self, other: Self) -> Self {
        (other.clone() - self.clone()).step(0.5).select(self, other)
    }

    /// The absolute value, whose gradient at zero is zero.
    pub fn abs(mut self) -> Self {
        self.0.push(Instr::Abs(self.0.len() - 1));
        self
    }

    /// `a` where this is 1, `b` where it is 0, and a mixture in between. Exact at 0 and 1 for finite values.
    pub fn select(self, a: Self, b: Self) -> Self {
        self.clone() * a + self.affine(-1.0, 1.0) * b
    }

    /// `scale * self + shift`.
    pub fn affine(mut self, scale: f32, shift: f32) -> Self {
        let a = self.0.len() - 1;
        self.0.push(Instr::Affine { a, scale, shift });
        self
    }
}

impl Add for Expr {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        self.binary(&other, Instr::Add)
    }
}

impl Sub for Expr {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        self.binary(&other, Instr::Sub)
    }
}

impl Mul for Expr {
    type Output = Self;
    fn mul(self, other: Self) -> Self {
        self.binary(&other, Instr::Mul)
    }
}

impl Div for Expr {
    type Output = Self;
    fn div(self, other: Self) -> Self {
        self.binary(&other, Instr::Div)
    }
}

impl Pointwise {
    /// The operation whose value `write` builds from its `N` inputs.
    pub fn build<const N: usize>(write: impl FnOnce([Expr; N]) -> Expr) -> Self {
        const { assert!(N >= 1 && N <= MAX_INPUTS) }
        let inputs = std::array::from_fn(|i| Expr(vec![Instr::Input(i)]));
        Self { program: write(inputs).0, inputs: N }
    }

    /// One activation.
    pub fn act(activation: Activation) -> Self {
        Self::build(|[x]| x.act(activation))
    }

    /// The sum of two tensors.
    pub fn add() -> Self {
        Self::build(|[a, b]| a + b)
    }

    /// The product of two tensors.
    pub fn mul() -> Self {
        Self::build(|[a, b]| a * b)
    }

    /// The activation, if that is all this does.
    pub(crate) fn as_activation(&self) -> Option<Activation> {
        match self.program[..] {
            [Instr::Input(0), Instr::Act(activation, 0)] => Some(activation),
            _ => None,
        }
    }

    /// Whether this is the sum of two tensors.
    pub(crate) fn is_add(&self) -> bool {
        *self == Self::add()
    }

    /// The WGSL of the expression: a `let` for each instruction, then the `return` of the last.
    fn wgsl(&self) -> String {
        let mut text = String::new();
        for (i, instr) in self.program.iter().enumerate() {
            let value = match *instr {
                Instr::Input(k) => {
                    format!("in{k}[p.t{k}.x + n * p.t{k}.y + c * p.t{k}.z + pixel * p.t{k}.w]")
                }
                Instr::Affine { a, scale, shift } => format!("fma(v{a}, {scale:?}f, {shift:?}f)"),
                Instr::Act(activation, a) => activation.wgsl(&format!("v{a}")),
                Instr::Slope(activation, a) => activation.wgsl_derivative(&format!("v{a}")),
                Instr::Add(a, b) => format!("v{a} + v{b}"),
                Instr::Sub(a, b) => format!("v{a} - v{b}"),
                Instr::Mul(a, b) => format!("v{a} * v{b}"),
                Instr::Div(a, b) => format!("v{a} / v{b}"),
                Instr::Sqrt(a) => format!("sqrt(v{a})"),
                Instr::Abs(a) => format!("abs(v{a})"),
                Instr::Step { a, at_zero } => {
                    format!("select(select(0.0, {at_zero:?}f, v{a} == 0.0), 1.0, v{a} > 0.0)")
                }
            };
            // Writing to a String cannot fail.
            let _ = writeln!(text, "    let v{i} = {value};");
        }
        let _ = writeln!(text, "    return v{};", self.program.len() - 1);
        text
    }
}

/// How far apart the elements of an input are from item to item, channel to channel and pixel to pixel; 0 where it is
/// broadcast.
fn strides(slot_batch_stride: usize, shape: Shape, output: Shape) -> [usize; 3] {
    let of = |stride: usize, len: usize, full: usize| if len == full { stride } else { 0 };
    [
        of(slot_batch_stride, shape.n(), output.n()),
        of(shape.plane(), shape.c(), output.c()),
        of(1, shape.plane(), output.plane()),
    ]
}

impl Op for Pointwise {
    fn name(&self) -> &'static str {
        "pointwise"
    }

    fn infer(&self, inputs: &[Shape]) -> Result<Shape, String> {
        if inputs.len() != self.inputs {
            return Err(format!("it takes {} tensors", self.inputs));
        }
        let mut output = inputs[0];
        for shape in inputs {
            for (size, &other) in output.0.iter_mut().zip(&shape.0) {
                *size = (*size).max(other);
            }
        }
        let fits = |s: &Shape| {
            let whole_plane = (s.h(), s.w()) == (output.h(), output.w());
            (s.n() == output.n() || s.n() == 1)
                && (s.c() == output.c() || s.c() == 1)
                && (whole_plane || s.plane() == 1)
        };
        if !inputs.iter().all(fits) {
            return Err("batch and channels must agree or be 1, planes must agree or be 1x1".into());
        }
        Ok(output)
    }

    fn absorb_consumer(&self, next: &dyn Op, slot: usize, shapes: &[Shape]) -> Option<Arc<dyn Op>> {
        let next = next.as_any().downcast_ref::<Self>()?;
        let inputs = self.inputs + next.inputs - 1;
        if inputs > MAX_JOINED || shapes.len() != next.inputs {
            return None;
        }
        let others = |i: usize| self.inputs + i - usize::from(i > slot);
        let mut program = self.program.clone();
        let mut place = Vec::new();
        for instr in &next.program {
            if *instr == Instr::Input(slot) {
                place.push(self.program.len() - 1);
            } else {
                program.push(instr.map(|r| place[r], others));
                place.push(program.len() - 1);
            }
        }
        // An expression's value is that of its last instruction. If `next` does nothing but hand its input on, that is
        // the last one of this.
        program.truncate(place[place.len() - 1] + 1);
        Some(Arc::new(Self { program, inputs }))
    }

    fn grad(&self, g: &mut Graph, at: Backward) -> Gradients {
        grad::grad(self, g, at)
    }

    fn lower(&self, target: &Target, inputs: &[Operand], output: Operand) -> Lowered {
        match target {
            Target::Cpu => {
                let op = self.clone();
                Lowered::cpu(move |inputs, out| op.compute(inputs, out))
            }
            Target::Gpu(_) => Lowered::gpu([self.launch(inputs, output)]),
        }
    }
}

impl Pointwise {
    fn compute(&self, inputs: &[View], mut out: ViewMut) {
        let shape = out.shape;
        let plane = shape.plane();
        let strides: Vec<[usize; 3]> = inputs.iter().map(|v| strides(v.batch_stride, v.shape, shape)).collect();
        let fold = |registers: &mut Vec<[f32; BLOCK]>, [n, c, first]: [usize; 3], part: &mut [f32]| {
            let mut operands: [Elements; MAX_INPUTS] = [(&[], 0); MAX_INPUTS];
            for ((operand, input), &[sn, sc, sp]) in operands.iter_mut().zip(inputs).zip(&strides) {
                *operand = (&input.data[n * sn + c * sc + first * sp..], sp);
            }
            evaluate(&self.program, &operands, registers, part);
        };
        let registers = || vec![[0f32; BLOCK]; self.program.len()];
        for n in 0..shape.n() {
            let planes = out.item(n).par_chunks_mut(plane).enumerate();
            let parts = planes.flat_map(|(c, row)| {
                row.par_chunks_mut(PART).enumerate().map(move |(i, part)| ([n, c, i * PART], part))
            });
            parts.for_each_init(registers, |registers, (place, part)| fold(registers, place, part));
        }
    }

    fn launch(&self, inputs: &[Operand], output: Operand) -> Launch {
        /// The names of the kernel's inputs, and of the fields that say where each lies and how it is broadcast.
        const NAMES: [(&str, &str); MAX_INPUTS] =
            [("in0", "t0"), ("in1", "t1"), ("in2", "t2"), ("in3", "t3"), ("in4", "t4"), ("in5", "t5"), ("in6", "t6")];
        let shape = output.shape();
        let mut launch = Launch::new("pointwise", "main").text("value", self.wgsl());
        for (k, (name, place)) in NAMES.into_iter().enumerate() {
            // An input that the expression does not read is no binding of the kernel.
            launch = match inputs.get(k).filter(|_| self.program.contains(&Instr::Input(k))) {
                Some(input) => {
                    let [n, c, pixel] = strides(input.slot.batch_stride, input.shape(), shape);
                    launch.read(name, input.buffer()).vec4(place, [input.slot.offset, n, c, pixel])
                }
                None => launch.vec4(place, [0; 4]),
            };
        }
        let blocks = shape.plane().div_ceil(256);
        launch.write("out", output).u32("plane", shape.plane()).over_grid([blocks, shape.c(), shape.n()])
    }
}

/// An input from the first element of a part of a plane on, and the elements from pixel to pixel: 1, or 0 where it is
/// broadcast.
type Elements<'a> = (&'a [f32], usize);

wide_fn! {
    /// Evaluates a part of a plane, a block after the other.
    fn evaluate<'a>(
        program: &'a [Instr],
        inputs: &'a [Elements<'a>],
        registers: &'a mut [[f32; BLOCK]],
        out: &'a mut [f32],
    ) -> () {
        for (b, out) in out.chunks_mut(BLOCK).enumerate() {
            for (i, instr) in program.iter().enumerate() {
                let (done, rest) = registers.split_at_mut(i);
                let value = &mut rest[0];
                match *instr {
                    Instr::Input(k) => match inputs[k] {
                        (data, 0) => value.fill(data[0]),
                        (data, _) => value[..out.len()].copy_from_slice(&data[b * BLOCK..][..out.len()]),
                    },
                    Instr::Act(activation, a) => {
                        *value = done[a];
                        activation.apply_slice(&mut value[..out.len()]);
                    }
                    Instr::Slope(activation, a) => unary(value, &done[a], |a| activation.derivative(a)),
                    Instr::Affine { a, scale, shift } => unary(value, &done[a], |a| a.mul_add(scale, shift)),
                    Instr::Add(a, b) => binary(value, &done[a], &done[b], |a, b| a + b),
                    Instr::Sub(a, b) => binary(value, &done[a], &done[b], |a, b| a - b),
                    Instr::Mul(a, b) => binary(value, &done[a], &done[b], |a, b| a * b),
                    Instr::Div(a, b) => binary(value, &done[a], &done[b], |a, b| a / b),
                    Instr::Sqrt(a) => unary(value, &done[a], f32::sqrt),
                    Instr::Abs(a) => unary(value, &done[a], f32::abs),
                    Instr::Step { a, at_zero } => unary(value, &done[a], |a| {
                        let at_most_zero = if a == 0.0 { at_zero } else { 0.0 };
                        if a > 0.0 { 1.0 } else { at_most_zero }
                    }),
                }
            }
            out.copy_from_slice(&registers[program.len() - 1][..out.len()]);
        }
    }
}

#[inline(always)]
fn unary(value: &mut [f32; BLOCK], a: &[f32; BLOCK], f: impl Fn(f32) -> f32) {
    for (value, a) in value.iter_mut().zip(a) {
        *value = f(*a);
    }
}

#[inline(always)]
fn binary(value: &mut [f32; BLOCK], a: &[f32; BLOCK], b: &[f32; BLOCK], f: impl Fn(f32, f32) -> f32) {
    for ((value, a), b) in value.iter_mut().zip(a).zip(b) {
        *value = f(*a, *b);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check_gradient, check_kernels, check_twins, check_views, compute};
    use super::*;

    fn gate() -> Pointwise {
        Pointwise::build(|[w, x, y]| w.clone() * x.clone() + w.affine(-1.0, 1.0) * y.clone() + x + y)
    }

    #[test]
    fn expressions_agree_on_both_devices() {
        let full = Shape::new(2, 5, 7, 301);
        let plane = Shape::new(2, 1, 7, 301);
        let channels = Shape::new(1, 5, 1, 1);
        for (op, shapes) in [
            (gate(), vec![full, full, full]),
            (gate(), vec![full, plane, channels]),
            (gate(), vec![Shape::new(3, 70, 1, 1); 3]),
        ] {
            check_kernels(&op, &shapes);
            let out = check_twins(op, &shapes, 1e-6);
            assert_eq!(out.len(), shapes[0].numel());
        }
    }

    #[test]
    fn more_channels_or_items_than_workgroups_in_a_dimension() {
        for shape in [Shape::new(1, 70_000, 1, 2), Shape::new(70_000, 1, 1, 3)] {
            let one = Shape::new(1, 1, 1, 1);
            check_twins(Pointwise::mul(), &[shape, one], 0.0);
        }
    }

    #[test]
    fn parts_of_concatenations() {
        let full = Shape::new(3, 5, 4, 7);
        check_views(gate(), &[full, full, full], 1e-6);
        check_views(Pointwise::mul(), &[full, Shape::new(1, 5, 1, 1)], 1e-6);
    }

    #[test]
    fn slopes_agree_on_both_devices() {
        for &act in Activation::ALL {
            let op = Pointwise::build(|[x, y]| x.affine(9.0, 0.5).slope(act) * y);
            check_kernels(&op, &[Shape::new(1, 3, 33, 5); 2]);
            check_twins(op, &[Shape::new(1, 3, 33, 5); 2], 1e-5);
        }
    }

    #[test]
    fn activations_agree_on_both_devices() {
        for &act in Activation::ALL {
            let op = Pointwise::build(|[x]| x.affine(130.0, 0.5).act(act));
            check_kernels(&op, &[Shape::new(1, 3, 33, 5)]);
            check_twins(op, &[Shape::new(1, 3, 33, 5)], 1e-5);
        }
    }

    #[test]
    fn the_value_is_the_expressions() {
        let shape = Shape::new(1, 1, 1, 3);
        let inputs = [[0.25f32, 0.5, 2.0], [1.0, -2.0, 4.0], [3.0, 5.0, -6.0]];
        let views: Vec<View> = inputs.iter().map(|v| View::contiguous(v, shape)).collect();
        let mut out = [0f32; 3];
        compute(&gate(), &views, ViewMut::contiguous(&mut out, shape));
        let expected = std::array::from_fn(|i| {
            let [w, x, y] = [inputs[0][i], inputs[1][i], inputs[2][i]];
            w * x + (1.0 - w) * y + x + y
        });
        assert_eq!(out, expected);
    }

    #[test]
    fn gradients_of_every_instruction() {
        use Activation::{None, Sigmoid, Silu, Tanh};
        let full = Shape::new(2, 3, 4, 5);
        check_gradient(gate(), &[full, Shape::new(1, 3, 1, 1), Shape::new(2, 1, 4, 5)], 0.0, 1e-3);
        for act in [None, Silu, Tanh, Sigmoid] {
            check_gradient(Pointwise::build(|[x]| x.affine(3.0, 0.5).act(act)), &[full], 0.0, 2e-3);
        }
        let ratio = Pointwise::build(|[a, b]| a.clone() / b.clone() + (a * b.clone()).affine(0.3, 2.0).sqrt() - b);
        check_gradient(ratio, &[full, full], 2.5, 2e-3);
        // No value comes near a corner: the two ranges are apart.
        let corners = Pointwise::build(|[a, b]| {
            let c = b.clone().affine(0.5, -4.0);
            a.clone().max(c.clone()) * a.clone().min(c.clone()) + c.abs() + b.act(Activation::Relu) - a.step(0.0)
        });
        check_gradient(corners, &[full, full], 2.5, 2e-3);
    }

    #[test]
    fn corners_differentiate_as_in_pytorch() {
        use crate::device::Device;
        use crate::ops::gradients;
        let shape = Shape::new(1, 1, 1, 3);
        let mut g = Graph::new();
        let (a, b, dy) = (g.input("a", shape), g.input("b", shape), g.input("dy", shape));
        let max = g.apply("max", Pointwise::build(|[a, b]| a.max(b)), &[a, b]).unwrap();
        let abs = g.apply("abs", Pointwise::build(|[a]| a.abs()), &[a]).unwrap();
        let by_max = gradients(&mut g, &[(max, dy)], &[a, b]).unwrap();
        let by_abs = gradients(&mut g, &[(abs, dy)], &[a, b]).unwrap();
        assert_eq!(by_abs[1], None);
        let outputs: Vec<_> = [by_max[0], by_max[1], by_abs[0]].into_iter().flatten().collect();
        let none = std::collections::BTreeMap::new();
        let exe = Device::Cpu.compile(&g, &outputs, &none).unwrap();
        let given: [(&str, &[f32]); 3] = [("a", &[0.0, 2.0, -1.0]), ("b", &[0.0, 1.0, 3.0]), ("dy", &[4.0; 3])];
        assert_eq!(exe.run(&given).unwrap(), [[2.0, 4.0, 0.0], [2.0, 0.0, 4.0], [0.0, 4.0, -4.0]]);
    }

    #[test]
    fn chains_become_one_expression() {
        let first = Pointwise::add();
        let joined = first.absorb_consumer(&gate(), 1, &[Shape::new(1, 1, 2, 2); 3]);
        let joined = joined.expect("pointwise joins pointwise");
        let joined: &Pointwise = joined.as_any().downcast_ref().expect("into a pointwise");
        let by_hand = Pointwise::build(|[a, b, w, y]| {
            let x = a + b;
            w.clone() * x.clone() + w.affine(-1.0, 1.0) * y.clone() + x + y
        });
        let shape = Shape::new(1, 1, 1, 2);
        let inputs = [[1.0f32, 2.0], [3.0, 5.0], [0.5, 0.25], [7.0, -1.0]];
        let views: Vec<View> = inputs.iter().map(|v| View::contiguous(v, shape)).collect();
        let run = |op: &Pointwise| {
            let mut out = [0f32; 2];
            compute(op, &views, ViewMut::contiguous(&mut out, shape));
            out
        };
        assert_eq!(run(joined), run(&by_hand));
    }

    #[test]
    fn a_joined_value_that_is_returned_as_it_is() {
        let spread = Pointwise::build(|[_, dy]| dy);
        let shapes = [Shape::new(1, 1, 1, 1); 4];
        let square = Pointwise::build(|[a]| a.clone() * a);
        let both = square.absorb_consumer(&spread, 0, &shapes[..2]).expect("pointwise joins pointwise");
        let double = Pointwise::build(|[dy]| dy.affine(2.0, 0.0));
        let both = double.absorb_consumer(both.as_ref(), 1, &shapes[..2]).expect("pointwise joins pointwise");
        let (views, mut out) = ([[3.0f32], [5.0]], [0f32]);
        let views: Vec<View> = views.iter().map(|v| View::contiguous(v, shapes[0])).collect();
        compute(both.as_ref(), &views, ViewMut::contiguous(&mut out, shapes[0]));
        assert_eq!(out, [6.0]);
    }
}
