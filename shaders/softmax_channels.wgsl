// Softmax over channels. An invocation computes one pixel of one item.

struct Params {
    x_offset: u32,
    x_batch_stride: u32,
    out_offset: u32,
    out_batch_stride: u32,
    batch: u32,
    channels: u32,
    plane: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

// One pixel of four channels.
fn load4(at: u32) -> vec4<f32> {
    return vec4(x[at], x[at + p.plane], x[at + 2u * p.plane], x[at + 3u * p.plane]);
}

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
    // Four at a time: llvmpipe ends all loops of an invocation after 65,535 rounds together.
    let whole = p.channels / 4u * 4u;
    var top = x[source];
    for (var c = 0u; c < whole; c += 4u) {
        let v = load4(source + c * p.plane);
        top = max(top, max(max(v.x, v.y), max(v.z, v.w)));
    }
    for (var c = whole; c < p.channels; c++) {
        top = max(top, x[source + c * p.plane]);
    }
    var sums = vec4(0.0);
    for (var c = 0u; c < whole; c += 4u) {
        sums += exp(load4(source + c * p.plane) - top);
    }
    for (var c = whole; c < p.channels; c++) {
        sums.x += exp(x[source + c * p.plane] - top);
    }
    let total = dot(sums, vec4(1.0));
    let to = p.out_offset + item * p.out_batch_stride + pixel;
    for (var c = 0u; c < whole; c += 4u) {
        let v = exp(load4(source + c * p.plane) - top) / total;
        let at = to + c * p.plane;
        out[at] = v.x;
        out[at + p.plane] = v.y;
        out[at + 2u * p.plane] = v.z;
        out[at + 3u * p.plane] = v.w;
    }
    for (var c = whole; c < p.channels; c++) {
        out[to + c * p.plane] = exp(x[source + c * p.plane] - top) / total;
    }
}
