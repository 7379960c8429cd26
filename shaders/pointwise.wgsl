// One expression of up to seven tensors, element by element; `Pointwise` writes its text. out is [n][channels][plane];
// an input may have 1 in place of any of these and is then broadcast.
// An invocation computes 4 pixels of one channel, 64 apart.
// Workgroups: x over 256 pixels, y over channels, z over the batch.
//#use place
//#use activation

struct Params {
    grid: vec3<u32>,
    // For each input: its offset, then how far apart its elements are from item to item, channel to channel and pixel
    // to pixel (0 where it is broadcast).
    t0: vec4<u32>, t1: vec4<u32>, t2: vec4<u32>, t3: vec4<u32>, t4: vec4<u32>, t5: vec4<u32>, t6: vec4<u32>,
    out_offset: u32,
    out_batch_stride: u32,
    plane: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> in0: array<f32>;
@group(0) @binding(2) var<storage, read> in1: array<f32>;
@group(0) @binding(3) var<storage, read> in2: array<f32>;
@group(0) @binding(4) var<storage, read> in3: array<f32>;
@group(0) @binding(5) var<storage, read> in4: array<f32>;
@group(0) @binding(6) var<storage, read> in5: array<f32>;
@group(0) @binding(7) var<storage, read> in6: array<f32>;
@group(0) @binding(8) var<storage, read_write> out: array<f32>;

fn value(n: u32, c: u32, pixel: u32) -> f32 {
//@value
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
    let out_base = p.out_offset + at.z * p.out_batch_stride + at.y * p.plane;
    for (var k = 0u; k < 4u; k++) {
        let pixel = at.x * 256u + k * 64u + lane;
        if pixel < p.plane {
            out[out_base + pixel] = value(at.z, at.y, pixel);
        }
    }
}
