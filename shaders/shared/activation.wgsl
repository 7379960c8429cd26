// Activation functions and their derivatives, NAME_value and NAME_derivative for every row of the table in
// src/cpu/activation.rs. They stay finite for every finite input.

fn identity_value(x: f32) -> f32 {
    return x;
}

fn identity_derivative(x: f32) -> f32 {
    return 1.0;
}

fn relu_value(x: f32) -> f32 {
    return max(x, 0.0);
}

fn relu_derivative(x: f32) -> f32 {
    return select(0.0, 1.0, x > 0.0);
}

fn leaky_relu_value(x: f32, slope: f32) -> f32 {
    return select(slope * x, x, x > 0.0);
}

fn leaky_relu_derivative(x: f32, slope: f32) -> f32 {
    return select(slope, 1.0, x > 0.0);
}

fn sigmoid_value(x: f32) -> f32 {
    // f32 holds exp(88) but not exp(89).
    return 1.0 / (1.0 + exp(min(-x, 88.0)));
}

fn sigmoid_derivative(x: f32) -> f32 {
    let s = sigmoid_value(x);
    return s * (1.0 - s);
}

fn silu_value(x: f32) -> f32 {
    return x * sigmoid_value(x);
}

fn silu_derivative(x: f32) -> f32 {
    let s = sigmoid_value(x);
    return s * fma(x, 1.0 - s, 1.0);
}

// WGSL's own tanh may be built from exp and overflow for large inputs. Beyond 10 it is 1 in f32.
fn tanh_value(x: f32) -> f32 {
    return tanh(clamp(x, -10.0, 10.0));
}

fn tanh_derivative(x: f32) -> f32 {
    let y = tanh_value(x);
    return fma(-y, y, 1.0);
}
