// The derivative of the activation of an operation. The launch gives its text, a call of a function of activation.wgsl.
//#use activation

fn derivative(x: f32) -> f32 {
//@derivative
}
