// What kernels over channels share: an invocation takes one pixel of one item, in all channels.
// x is [n][channels][plane]. Workgroups: x over 64 pixels, y over the batch. A kernel has the function
// `compute(source, to)`, which is told where the pixel's first channel lies in x and in out.
//#use place

struct Params {
    grid: vec3<u32>,
    x_offset: u32,
    x_batch_stride: u32,
    out_offset: u32,
    out_batch_stride: u32,
    channels: u32,
    plane: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

// One pixel in four neighbouring channels.
fn load4(at: u32) -> vec4<f32> {
    return vec4(x[at], x[at + p.plane], x[at + 2u * p.plane], x[at + 3u * p.plane]);
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) launched: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = place(id, launched);
    let pixel = at.x * 64u + lane;
    if !outside(at) && pixel < p.plane {
        compute(p.x_offset + at.y * p.x_batch_stride + pixel, p.out_offset + at.y * p.out_batch_stride + pixel);
    }
}
