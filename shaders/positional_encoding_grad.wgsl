// The gradient of a positional encoding y, [batch][2][count], with respect to its levels, one an item: the sum over i
// of f[i] * (y[1][i] * dy[0][i] - y[0][i] * dy[1][i]), since y[0][i] is the sine of f[i] * level and y[1][i] its
// cosine.
// A workgroup computes one item. Workgroups: x over the batch.
//#use place
//#use lanes
//#use frequencies

struct Params {
    grid: vec3<u32>,
    y_offset: u32,
    y_batch_stride: u32,
    dy_offset: u32,
    dy_batch_stride: u32,
    out_offset: u32,
    out_batch_stride: u32,
    // Frequencies.
    count: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> y: array<f32>;
@group(0) @binding(2) var<storage, read> dy: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) launched: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = place(id, launched);
    if outside(at) {
        return;
    }
    let sines = p.y_offset + at.x * p.y_batch_stride;
    let grads = p.dy_offset + at.x * p.dy_batch_stride;
    var sum = 0.0;
    for (var i = lane; i < p.count; i += 64u) {
        let turned = y[sines + p.count + i] * dy[grads + i] - y[sines + i] * dy[grads + p.count + i];
        sum = fma(FREQUENCIES[i], turned, sum);
    }
    let all = total(lane, vec2(sum, 0.0)).x;
    if lane == 0u {
        out[p.out_offset + at.x * p.out_batch_stride] = all;
    }
}
