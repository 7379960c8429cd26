// The activation that is applied to a result last. The launch gives its text, a call of a function of activation.wgsl.
//#use activation

fn activated(v: f32) -> f32 {
//@activation
}
