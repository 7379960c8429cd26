// A yardstick of the adapter's arithmetic: multiply-adds on registers, eight independent chains an invocation. Each
// does `rounds` rounds of 64 multiply-adds and writes the sum of its chains, so that the compiler cannot leave any out.
// Workgroups: x over 64 elements.
//#use place

struct Params {
    grid: vec3<u32>,
    count: u32,
    rounds: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> start: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) launched: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = place(id, launched);
    let i = at.x * 64u + lane;
    if outside(at) || i >= p.count {
        return;
    }
    let b = start[i];
    let a = vec4(1.0 - b);
    let c = vec4(b);
    var x = vec4(0.0, 0.1, 0.2, 0.3);
    var y = vec4(0.4, 0.5, 0.6, 0.7);
    for (var round = 0u; round < p.rounds; round++) {
        x = fma(x, a, c);
        y = fma(y, a, c);
        x = fma(x, a, c);
        y = fma(y, a, c);
        x = fma(x, a, c);
        y = fma(y, a, c);
        x = fma(x, a, c);
        y = fma(y, a, c);
        x = fma(x, a, c);
        y = fma(y, a, c);
        x = fma(x, a, c);
        y = fma(y, a, c);
        x = fma(x, a, c);
        y = fma(y, a, c);
        x = fma(x, a, c);
        y = fma(y, a, c);
    }
    let sum = x + y;
    out[i] = sum.x + sum.y + sum.z + sum.w;
}
