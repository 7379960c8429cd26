// For kernels that transform products back: sums[blocks][3 * 514][rows + 1][32] are the three real products of each
// frequency. Needs the field `rows` of `Params` and the binding `sums`.
//#use fft

// The complex product that three real ones make up, with real and imaginary part exchanged: the forward transform of
// exchanged parts is the inverse transform, exchanged again.
fn complex_product(at: u32) -> vec2<f32> {
    let stride = (p.rows + 1u) * 32u;
    let sum = sums[at];
    return vec2(sum + sums[at + stride], sum - sums[at + 2u * stride]);
}

// Where the first of the three products of a frequency is, for column `column` and output channel `oc`.
fn product_at(spot: Spot, column: u32, oc: u32) -> u32 {
    let plane = (column / 32u * FREQUENCIES + spot.index) * 3u;
    return (plane * (p.rows + 1u) + oc) * 32u + column % 32u;
}
