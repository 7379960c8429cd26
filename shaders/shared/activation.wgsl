// Activation functions that stay finite for every finite input.

fn sigmoid(x: f32) -> f32 {
    // exp(88) is the largest power that f32 holds.
    return 1.0 / (1.0 + exp(min(-x, 88.0)));
}

fn silu(x: f32) -> f32 {
    return x * sigmoid(x);
}

fn tanh_safe(x: f32) -> f32 {
    // tanh(10) is 1 in f32; built from exp, it would overflow for larger inputs.
    return tanh(clamp(x, -10.0, 10.0));
}
