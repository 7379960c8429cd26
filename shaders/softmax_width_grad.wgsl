// The gradient of a softmax y along rows with respect to its input: out = y * (dy - sum(y * dy)), the sum over the row.
// y, dy and out are [n][rows][width]. A workgroup computes one row. Workgroups: x over the rows of an item, y over the
// batch.
//#use place
//#use lanes

struct Params {
    grid: vec3<u32>,
    y_offset: u32,
    y_batch_stride: u32,
    dy_offset: u32,
    dy_batch_stride: u32,
    out_offset: u32,
    out_batch_stride: u32,
    width: u32,
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
    let source = p.y_offset + at.y * p.y_batch_stride + at.x * p.width;
    let grads = p.dy_offset + at.y * p.dy_batch_stride + at.x * p.width;
    var sum = 0.0;
    for (var i = lane; i < p.width; i += 64u) {
        sum += y[source + i] * dy[grads + i];
    }
    let all = total(lane, vec2(sum, 0.0)).x;
    let to = p.out_offset + at.y * p.out_batch_stride + at.x * p.width;
    for (var i = lane; i < p.width; i += 64u) {
        out[to + i] = y[source + i] * (dy[grads + i] - all);
    }
}
