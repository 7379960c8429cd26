// The mean of each plane. A workgroup computes one channel of one item.
//#use lanes
//#use planes

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
    var sums = vec4(0.0);
    var lost = vec4(0.0);
    var i = lane;
    for (; i + 960u < p.plane; i += 1024u) {
        let at = source + i;
        let sum = (load4(at) + load4(at + 256u)) + (load4(at + 512u) + load4(at + 768u)) - lost;
        let next = sums + sum;
        lost = (next - sums) - sum;
        sums = next;
    }
    for (; i < p.plane; i += 64u) {
        sums.x += x[source + i];
    }
    let all = total(lane, vec2(dot(sums, vec4(1.0)), 0.0)).x;
    if lane == 0u {
        let to = p.out_offset + (row / p.channels) * p.out_batch_stride + row % p.channels;
        out[to] = all / f32(p.plane);
    }
}
