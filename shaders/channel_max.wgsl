// The maximum over channels. An invocation computes one pixel of one item.

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
    // Eight at a time: llvmpipe ends every loop after 65,535 rounds.
    var top = x[source];
    var c = 0u;
    for (; c + 7u < p.channels; c += 8u) {
        let at = source + c * p.plane;
        let both = max(load4(at), load4(at + 4u * p.plane));
        top = max(top, max(max(both.x, both.y), max(both.z, both.w)));
    }
    for (; c < p.channels; c++) {
        top = max(top, x[source + c * p.plane]);
    }
    out[p.out_offset + item * p.out_batch_stride + pixel] = top;
}
