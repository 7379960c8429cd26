// Sines and cosines of levels, one level an item, at geometrically falling frequencies. out is [batch][2][count], the
// sines first.
// An invocation computes one frequency of one item. Workgroups: x over 64 frequencies, y over the batch.
//#use place
//#use frequencies

struct Params {
    grid: vec3<u32>,
    levels_offset: u32,
    levels_batch_stride: u32,
    out_offset: u32,
    out_batch_stride: u32,
    // Frequencies.
    count: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> levels: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

// Sine and cosine within 2 ulp for angles up to some thousands, where WGSL only promises an absolute 2^-11.
// Reduction to [-pi/4, pi/4] by Cody and Waite with three parts of pi/2, polynomials of Cephes' sinf and cosf.
fn sin_cos(angle: f32) -> vec2<f32> {
    let quarter = round(angle * 0.63661977);
    var r = fma(quarter, -1.5703125, angle);
    r = fma(quarter, -4.837512969970703e-4, r);
    r = fma(quarter, -7.549789948768648e-8, r);
    let z = r * r;
    let sine = fma(r * z, fma(z, fma(z, -1.9515296e-4, 8.3321609e-3), -1.6666655e-1), r);
    let cosine = fma(z * z, fma(z, fma(z, 2.4433157e-5, -1.3887316e-3), 4.1666646e-2), fma(z, -0.5, 1.0));
    let turned = select(vec2(sine, cosine), vec2(cosine, sine), (i32(quarter) & 1) == 1);
    let turns = i32(quarter) & 3;
    return turned * vec2(select(1.0, -1.0, turns >= 2), select(1.0, -1.0, turns == 1 || turns == 2));
}

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
    let value = sin_cos(levels[p.levels_offset + at.y * p.levels_batch_stride] * FREQUENCIES[i]);
    let to = p.out_offset + at.y * p.out_batch_stride + i;
    out[to] = value.x;
    out[to + p.count] = value.y;
}
