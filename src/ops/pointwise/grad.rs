//! The gradient of an expression: another expression of the same inputs and the gradient with respect to the result.

use super::{Activation, Expr, Instr, Pointwise};
use crate::graph::{Backward, Gradients, Graph, GraphError};
use crate::ops::gradient_name;
use crate::ops::reduce_sum::ReduceSum;

/// The gradient rule of expressions, derived by the chain rule. Where an input was broadcast its gradient is summed.
///
/// # Errors
/// [`GraphError::NoGradient`] if the expression holds the derivative of an activation, whose own derivative is not known.
pub(super) fn grad(op: &Pointwise, g: &mut Graph, at: Backward) -> Gradients {
    if op.program.iter().any(|instr| matches!(instr, Instr::Slope(..))) {
        let layer = g.node(at.output).name.clone();
        return Err(GraphError::NoGradient { layer, op: "the derivative of an activation" });
    }
    let mut grads = Vec::with_capacity(op.inputs);
    let derivatives = op.derivatives();
    for (&input, (derivative, wanted)) in at.inputs.iter().zip(derivatives.into_iter().zip(at.wanted)) {
        let Some(derivative) = derivative.filter(|_| *wanted) else {
            grads.push(None);
            continue;
        };
        let name = gradient_name(g, input);
        let (derivative, used) = compact(&derivative);
        let inputs: Vec<_> = used.iter().map(|&i| if i == op.inputs { at.dy } else { at.inputs[i] }).collect();
        let mut grad = g.apply(&name, derivative, &inputs)?;
        if let Some(sum) = ReduceSum::to(g.shape(grad), g.shape(input)) {
            grad = g.apply(&name, sum, &[grad])?;
        }
        grads.push(Some(grad));
    }
    Ok(grads)
}

impl Pointwise {
    /// The gradient with respect to the input of an activation, as an expression of its result and the gradient with
    /// respect to that; `None` where the result does not determine it.
    pub(crate) fn act_grad_from_result(activation: Activation) -> Option<Self> {
        match activation {
            Activation::None => Some(Self::build(|[_, dy]| dy)),
            Activation::Relu => Some(Self::build(|[y, dy]| dy * y.step(0.0))),
            Activation::LeakyRelu(slope) if slope > 0.0 => {
                Some(Self::build(|[y, dy]| dy * y.step(0.0).affine(1.0 - slope, slope)))
            }
            Activation::Tanh => Some(Self::build(|[y, dy]| dy * (y.clone() * y).affine(-1.0, 1.0))),
            Activation::Sigmoid => Some(Self::build(|[y, dy]| dy * y.clone() * y.affine(-1.0, 1.0))),
            _ => None,
        }
    }

    /// The gradient with respect to each input, as an expression of the inputs and of the gradient with respect to the
    /// result, which is input number `self.inputs`. `None` where the result does not depend on the input.
    fn derivatives(&self) -> Vec<Option<Expr>> {
        let value = |i: usize| Expr(self.program[..=i].to_vec());
        let mut by_register: Vec<Option<Expr>> = vec![None; self.program.len()];
        let mut by_input: Vec<Option<Expr>> = vec![None; self.inputs];
        by_register[self.program.len() - 1] = Some(Expr(vec![Instr::Input(self.inputs)]));
        let add = |slot: &mut Option<Expr>, more: Expr| {
            *slot = Some(match slot.take() {
                Some(sum) => sum + more,
                None => more,
            });
        };
        for (i, instr) in self.program.iter().enumerate().rev() {
            let Some(dy) = by_register[i].take() else {
                continue;
            };
            match *instr {
                Instr::Input(k) => add(&mut by_input[k], dy),
                Instr::Affine { a, scale, .. } => add(&mut by_register[a], dy.affine(scale, 0.0)),
                Instr::Act(activation, a) => {
                    if let Some(slope) = slope(activation, value(a)) {
                        add(&mut by_register[a], dy * slope);
                    } else {
                        add(&mut by_register[a], dy);
                    }
                }
                Instr::Add(a, b) => {
                    add(&mut by_register[a], dy.clone());
                    add(&mut by_register[b], dy);
                }
                Instr::Sub(a, b) => {
                    add(&mut by_register[a], dy.clone());
                    add(&mut by_register[b], dy.affine(-1.0, 0.0));
                }
                Instr::Mul(a, b) => {
                    add(&mut by_register[a], dy.clone() * value(b));
                    add(&mut by_register[b], dy * value(a));
                }
                Instr::Div(a, b) => {
                    let by_a = dy / value(b);
                    add(&mut by_register[a], by_a.clone());
                    add(&mut by_register[b], (by_a * value(i)).affine(-1.0, 0.0));
                }
                Instr::Sqrt(a) => add(&mut by_register[a], dy.affine(0.5, 0.0) / value(i)),
                Instr::Abs(a) => add(&mut by_register[a], dy * value(a).step(0.5).affine(2.0, -1.0)),
                Instr::Step { .. } | Instr::Slope(..) => {}
            }
        }
        by_input
    }
}

/// The derivative of an activation at `x`, see [`Activation::derivative`]; `None` if it is 1 everywhere. Those that are
/// written out share values with the expression that they are the derivative of, such as the sigmoid in SiLU; for
/// others the table of activations has the derivative.
fn slope(activation: Activation, x: Expr) -> Option<Expr> {
    Some(match activation {
        Activation::None => return None,
        Activation::Relu => x.step(0.0),
        Activation::LeakyRelu(slope) => x.step(0.0).affine(1.0 - slope, slope),
        Activation::Silu => {
            let s = x.clone().act(Activation::Sigmoid);
            s.clone() * (x * s.affine(-1.0, 1.0)).affine(1.0, 1.0)
        }
        Activation::Tanh => {
            let y = x.act(Activation::Tanh);
            (y.clone() * y).affine(-1.0, 1.0)
        }
        Activation::Sigmoid => {
            let s = x.act(Activation::Sigmoid);
            s.clone() * s.affine(-1.0, 1.0)
        }
        #[allow(unreachable_patterns)]
        other => x.slope(other),
    })
}

/// The expression without the instructions that its value does not need, with its inputs renumbered, and the numbers
/// that these had.
fn compact(expr: &Expr) -> (Pointwise, Vec<usize>) {
    let program = &expr.0;
    let mut needed = vec![false; program.len()];
    needed[program.len() - 1] = true;
    for (i, instr) in program.iter().enumerate().rev() {
        if needed[i] {
            instr.map(
                |r| {
                    needed[r] = true;
                    r
                },
                |k| k,
            );
        }
    }
    let mut used = Vec::new();
    let (mut kept, mut place) = (Vec::new(), vec![0; program.len()]);
    for (i, instr) in program.iter().enumerate().filter(|&(i, _)| needed[i]) {
        let instr = instr.map(
            |r| place[r],
            |k| match used.iter().position(|&u| u == k) {
                Some(at) => at,
                None => {
                    used.push(k);
                    used.len() - 1
                }
            },
        );
        place[i] = kept.len();
        kept.push(instr);
    }
    (Pointwise { program: kept, inputs: used.len() }, used)
}
