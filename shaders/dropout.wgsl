// Dropout: elements whose hash is below the threshold become zero, the others are scaled. A workgroup computes 1,024
// elements of one item.

struct Params {
    x_offset: u32,
    x_batch_stride: u32,
    seed_offset: u32,
    out_offset: u32,
    out_batch_stride: u32,
    batch: u32,
    // Elements of one item.
    len: u32,
    layer: u32,
    threshold: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> seed: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

// The output function of PCG-RXS-M-XS after one step of its generator (O'Neill 2014).
fn mix_bits(v: u32) -> u32 {
    let state = v * 747796405u + 2891336453u;
    let word = ((state >> ((state >> 28u) + 4u)) ^ state) * 277803737u;
    return (word >> 22u) ^ word;
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let blocks = (p.len + 1023u) / 1024u;
    let index = group.y * groups.x + group.x;
    let item = index / blocks;
    if item >= p.batch {
        return;
    }
    let seeds = vec2(u32(seed[p.seed_offset]), u32(seed[p.seed_offset + 1u]));
    let key = mix_bits(mix_bits(mix_bits(p.layer) ^ seeds.x) ^ seeds.y);
    let second = mix_bits(~key);
    let source = p.x_offset + item * p.x_batch_stride;
    let to = p.out_offset + item * p.out_batch_stride;
    let first = (index % blocks) * 1024u;
    for (var i = first + lane; i < min(first + 1024u, p.len); i += 64u) {
        let bits = mix_bits(mix_bits(item * p.len + i + key) ^ second);
        out[to + i] = select(x[source + i] * p.scale, 0.0, bits < p.threshold);
    }
}
