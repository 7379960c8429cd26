// The weight of a convolution's adjoint: in each group input and output channels are swapped, and kernels are turned by
// 180 degrees. weight is [groups * group_out][group_in][taps], out is [groups * group_in][group_out][taps].
// An invocation moves one element.
// Workgroups: x over the elements of a row of the result, 64 each, y over its rows.
//#use place

struct Params {
    grid: vec3<u32>,
    weight_offset: u32,
    weight_batch_stride: u32,
    out_offset: u32,
    out_batch_stride: u32,
    group_out: u32,
    group_in: u32,
    taps: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> weight: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) launched: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = place(id, launched);
    let i = at.x * 64u + lane;
    if outside(at) || i >= p.group_out * p.taps {
        return;
    }
    let o = at.y / p.group_in * p.group_out + i / p.taps;
    let tap = at.y % p.group_in * p.taps + p.taps - 1u - i % p.taps;
    out[p.out_offset + at.y * p.out_batch_stride + i] = weight[p.weight_offset + o * p.weight_batch_stride + tap];
}
