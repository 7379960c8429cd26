// Sums over any axes of a tensor of four, in two launches: a workgroup of `chunks` sums a chunk of what belongs to one
// element of the result, one of `main` adds up an element's chunks. x is [n][channels][height][width], partial
// [elements of the result][chunk_count].
//#use place
//#use lanes

struct Params {
    grid: vec3<u32>,
    x_offset: u32,
    out_offset: u32,
    out_batch_stride: u32,
    // The result's shape, and for each axis how many elements are summed (1 where it is kept).
    out_shape: vec4<u32>,
    summed: vec4<u32>,
    // How far apart the input's elements are from one index to the next, on each axis.
    strides: vec4<u32>,
    // Elements summed for one of the result, how many chunks they are cut into, and the length of a chunk.
    count: u32,
    chunk_count: u32,
    chunk: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> partial: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

// The index on each axis of element i of a block of this shape.
fn index_in(i: u32, shape: vec4<u32>) -> vec4<u32> {
    let row = i / shape.w;
    let plane = row / shape.z;
    return vec4(plane / shape.y, plane % shape.y, row % shape.z, i % shape.w);
}

@compute @workgroup_size(64)
fn chunks(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) launched: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = place(id, launched);
    if outside(at) {
        return;
    }
    let i = at.x;
    let element = i / p.chunk_count;
    let base = p.x_offset + dot(index_in(element, p.out_shape), p.strides);
    let first = (i % p.chunk_count) * p.chunk;
    let end = min(first + p.chunk, p.count);
    var sum = 0.0;
    for (var k = first + lane; k < end; k += 64u) {
        sum += x[base + dot(index_in(k, p.summed), p.strides)];
    }
    let all = total(lane, vec2(sum, 0.0)).x;
    if lane == 0u {
        partial[i] = all;
    }
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) launched: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = place(id, launched);
    if outside(at) {
        return;
    }
    let element = at.x;
    var sum = 0.0;
    for (var k = lane; k < p.chunk_count; k += 64u) {
        sum += partial[element * p.chunk_count + k];
    }
    let all = total(lane, vec2(sum, 0.0)).x;
    if lane == 0u {
        let item = p.out_shape.y * p.out_shape.z * p.out_shape.w;
        out[p.out_offset + element / item * p.out_batch_stride + element % item] = all;
    }
}
