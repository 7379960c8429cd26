// The gradient of the maximum over channels: it goes to the first channel that holds the maximum, zero to the others.
// An invocation writes one pixel of one item in all channels.

struct Params {
    x_offset: u32,
    x_batch_stride: u32,
    y_offset: u32,
    y_batch_stride: u32,
    dy_offset: u32,
    dy_batch_stride: u32,
    out_offset: u32,
    out_batch_stride: u32,
    batch: u32,
    channels: u32,
    plane: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> y: array<f32>;
@group(0) @binding(3) var<storage, read> dy: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let blocks = (p.plane + 63u) / 64u;
    let index = group.y * groups.x + group.x;
    let item = index / blocks;
    let pixel = (index % blocks) * 64u + lane;
    if item >= p.batch || pixel >= p.plane {
        return;
    }
    let source = p.x_offset + item * p.x_batch_stride + pixel;
    let to = p.out_offset + item * p.out_batch_stride + pixel;
    let top = y[p.y_offset + item * p.y_batch_stride + pixel];
    // What is still to be given away.
    var grad = dy[p.dy_offset + item * p.dy_batch_stride + pixel];
    for (var c = 0u; c < p.channels; c++) {
        let holds = x[source + c * p.plane] == top;
        out[to + c * p.plane] = select(0.0, grad, holds);
        grad = select(grad, 0.0, holds);
    }
}
