// The derivative of an activation of activation.wgsl, which each launch names.
//#use activation

fn derivative(x: f32) -> f32 {
//@derivative
}
