// The weight of a convolution's adjoint: input and output channels of each group swapped, kernels turned by 180 degrees.
// x[groups * group_out][group_in][taps] to out[groups * group_in][group_out][taps]. An invocation moves one element.

struct Params {
    x_offset: u32,
    x_batch_stride: u32,
    out_offset: u32,
    out_batch_stride: u32,
    groups: u32,
    group_out: u32,
    group_in: u32,
    taps: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (group.y * groups.x + group.x) * 64u + lane;
    let item = p.group_out * p.taps;
    let row = i / item;
    if row >= p.groups * p.group_in {
        return;
    }
    let o = row / p.group_in * p.group_out + i % item / p.taps;
    let tap = row % p.group_in * p.taps + p.taps - 1u - i % p.taps;
    out[p.out_offset + row * p.out_batch_stride + i % item] = x[p.x_offset + o * p.x_batch_stride + tap];
}
