// What is applied to a result last: an activation of activation.wgsl, which each launch names.
//#use activation

fn activated(v: f32) -> f32 {
//@activation
}
