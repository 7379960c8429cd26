// What kernels over channels share: an invocation computes one pixel of one item. Needs `planes` and the function
// `compute`, which is told where the pixel's first channel lies in x and in the result.

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
    if item < p.batch && pixel < p.plane {
        compute(p.x_offset + item * p.x_batch_stride + pixel, p.out_offset + item * p.out_batch_stride + pixel);
    }
}
