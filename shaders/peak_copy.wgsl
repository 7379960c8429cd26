// A yardstick of the adapter's memory: a plain copy, one vector of 4 elements an invocation. Workgroups: x over 64
// vectors.
//#use place

struct Params {
    grid: vec3<u32>,
    vectors: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> source: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> out: array<vec4<f32>>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) launched: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = place(id, launched);
    let i = at.x * 64u + lane;
    if outside(at) || i >= p.vectors {
        return;
    }
    out[i] = source[i];
}
