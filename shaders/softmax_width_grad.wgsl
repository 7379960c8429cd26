// The gradient of a softmax along rows, y * (dy - sum(y * dy)). A workgroup computes one row.
//#use lanes

struct Params {
    y_offset: u32,
    y_batch_stride: u32,
    dy_offset: u32,
    dy_batch_stride: u32,
    out_offset: u32,
    out_batch_stride: u32,
    batch: u32,
    // Rows of one item.
    rows: u32,
    width: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> y: array<f32>;
@group(0) @binding(2) var<storage, read> dy: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = group.y * groups.x + group.x;
    let item = index / p.rows;
    if item >= p.batch {
        return;
    }
    let row = (index % p.rows) * p.width;
    let source = p.y_offset + item * p.y_batch_stride + row;
    let grads = p.dy_offset + item * p.dy_batch_stride + row;
    var sum = 0.0;
    for (var i = lane; i < p.width; i += 64u) {
        sum += y[source + i] * dy[grads + i];
    }
    let centre = total(lane, vec2(sum, 0.0)).x;
    let to = p.out_offset + item * p.out_batch_stride + row;
    for (var i = lane; i < p.width; i += 64u) {
        out[to + i] = y[source + i] * (dy[grads + i] - centre);
    }
}
