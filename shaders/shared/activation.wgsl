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

// The activation of this number: 0 none, 1 ReLU, 2 SiLU, 3 leaky ReLU, 4 tanh, 5 sigmoid.
fn activate(code: u32, slope: f32, x: f32) -> f32 {
    switch code {
        case 1u: { return max(x, 0.0); }
        case 2u: { return silu(x); }
        case 3u: { return select(slope * x, x, x > 0.0); }
        case 4u: { return tanh_safe(x); }
        case 5u: { return sigmoid(x); }
        default: { return x; }
    }
}

// The derivative of an activation at x, numbered as above.
fn activation_derivative(code: u32, slope: f32, x: f32) -> f32 {
    switch code {
        case 1u: { return select(0.0, 1.0, x > 0.0); }
        case 2u: {
            let s = sigmoid(x);
            return s * fma(x, 1.0 - s, 1.0);
        }
        case 3u: { return select(slope, 1.0, x > 0.0); }
        case 4u: {
            let y = tanh_safe(x);
            return fma(-y, y, 1.0);
        }
        case 5u: {
            let s = sigmoid(x);
            return s * (1.0 - s);
        }
        default: { return 1.0; }
    }
}
