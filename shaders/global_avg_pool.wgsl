// The mean of each plane. A workgroup computes one channel of one item.

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

var<workgroup> parts: array<f32, 64>;

fn load4(at: u32) -> vec4<f32> {
    return vec4(x[at], x[at + 64u], x[at + 128u], x[at + 192u]);
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group.y * groups.x + group.x;
    if row >= p.batch * p.channels {
        return;
    }
    let source = p.x_offset + (row / p.channels) * p.x_batch_stride + (row % p.channels) * p.plane;
    // Sixteen at a time: llvmpipe ends every loop after 65,535 rounds. What the additions to the sums of large planes
    // lose is kept and given back (Kahan).
    var total = vec4(0.0);
    var lost = vec4(0.0);
    var i = lane;
    for (; i + 960u < p.plane; i += 1024u) {
        let at = source + i;
        let sum = (load4(at) + load4(at + 256u)) + (load4(at + 512u) + load4(at + 768u)) - lost;
        let next = total + sum;
        lost = (next - total) - sum;
        total = next;
    }
    for (; i < p.plane; i += 64u) {
        total.x += x[source + i];
    }
    parts[lane] = dot(total, vec4(1.0));
    for (var half = 32u; half > 0u; half >>= 1u) {
        workgroupBarrier();
        if lane < half {
            parts[lane] += parts[lane + half];
        }
    }
    if lane == 0u {
        let to = p.out_offset + (row / p.channels) * p.out_batch_stride + row % p.channels;
        out[to] = parts[0] / f32(p.plane);
    }
}
