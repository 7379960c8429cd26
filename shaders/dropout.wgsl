// Dropout: elements of x whose hash is below the threshold become zero, the others are scaled. x and out are [n][len].
// An invocation computes 16 elements of one item, 64 apart. Workgroups: x over 1,024 elements, y over the batch.
//#use place

struct Params {
    grid: vec3<u32>,
    x_offset: u32,
    x_batch_stride: u32,
    seed_offset: u32,
    out_offset: u32,
    out_batch_stride: u32,
    // Elements of one item.
    len: u32,
    // Tells the dropout layers of a network apart.
    layer: u32,
    threshold: u32,
    // What elements that are kept are multiplied by: 1 / (1 - p).
    scale: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
// Two whole numbers, which the mask is a function of.
@group(0) @binding(2) var<storage, read> seed: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

// A permutation of the 32-bit numbers that leaves no pattern: the output function of PCG-RXS-M-XS after one step of its
// generator (O'Neill 2014).
fn mix_bits(v: u32) -> u32 {
    let state = v * 747796405u + 2891336453u;
    let word = ((state >> ((state >> 28u) + 4u)) ^ state) * 277803737u;
    return (word >> 22u) ^ word;
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
    let seeds = vec2(u32(seed[p.seed_offset]), u32(seed[p.seed_offset + 1u]));
    let key = mix_bits(mix_bits(mix_bits(p.layer) ^ seeds.x) ^ seeds.y);
    let second = mix_bits(~key);
    let source = p.x_offset + at.y * p.x_batch_stride;
    let to = p.out_offset + at.y * p.out_batch_stride;
    let end = min((at.x + 1u) * 1024u, p.len);
    for (var i = at.x * 1024u + lane; i < end; i += 64u) {
        let bits = mix_bits(mix_bits(at.y * p.len + i + key) ^ second);
        out[to + i] = select(x[source + i] * p.scale, 0.0, bits < p.threshold);
    }
}
