// A copy of a tensor: x and out are [n][len].
// An invocation copies 16 elements of one batch item, 64 apart. Workgroups: x over 1,024 elements, y over the batch.
//#use place

struct Params {
    grid: vec3<u32>,
    x_offset: u32,
    x_batch_stride: u32,
    out_offset: u32,
    out_batch_stride: u32,
    // Elements of a batch item.
    len: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

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
    let source = p.x_offset + at.y * p.x_batch_stride;
    let to = p.out_offset + at.y * p.out_batch_stride;
    let last = min((at.x + 1u) * 1024u, p.len);
    for (var i = at.x * 1024u + lane; i < last; i += 64u) {
        out[to + i] = x[source + i];
    }
}
