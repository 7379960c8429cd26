// Self-attention of one head over all pixels (tokens): out = softmax(q . k / sqrt(channels)) v.
// x is [batch][3 channels][tokens], the channels of q, k and v one after the other; out is [batch][channels][tokens].
// A workgroup computes 32 queries in 128 channels. It runs over the keys 32 at a time and keeps the softmax's maximum
// and sum as it goes (Milakov and Gimelshein 2018), so the matrix of weights is never stored. Invocation (tx, ty)
// scores the queries ty, ty + 8, ty + 16, ty + 24 against the keys tx, tx + 8, tx + 16, tx + 24, and sums the channels
// tx, tx + 8 and so on to tx + 120 of its queries.
// Workgroups: x over 128 channels, y over 32 queries, z over the batch.
//#use place

struct Params {
    grid: vec3<u32>,
    x_offset: u32,
    x_batch_stride: u32,
    out_offset: u32,
    out_batch_stride: u32,
    channels: u32,
    tokens: u32,
    // 1 / sqrt(channels).
    scale: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

// [32 keys][8 invocations], four queries each.
var<workgroup> scores: array<vec4<f32>, 256>;
var<workgroup> weights: array<vec4<f32>, 256>;

// Below every score, and far enough from the end of f32 that differences stay finite.
const LOWEST = -1e38;
const SPREAD = vec4(0u, 8u, 16u, 24u);

fn four(at: vec4<u32>) -> vec4<f32> {
    return vec4(x[at.x], x[at.y], x[at.z], x[at.w]);
}

// Four vectors, one for each of four keys, whose components are four queries: their scores, or the weights that they
// give the keys.
struct Keys {
    k0: vec4<f32>,
    k1: vec4<f32>,
    k2: vec4<f32>,
    k3: vec4<f32>,
}

// Adds channel `c` to the products of four queries with four keys; a channel beyond the last adds zero.
fn multiply(s: Keys, q: vec4<u32>, k: vec4<u32>, c: u32) -> Keys {
    let row = min(c, p.channels - 1u) * p.tokens;
    let queries = select(vec4(0.0), four(q + row), c < p.channels);
    let keys = four(k + row);
    return Keys(
        fma(queries, vec4(keys.x), s.k0),
        fma(queries, vec4(keys.y), s.k1),
        fma(queries, vec4(keys.z), s.k2),
        fma(queries, vec4(keys.w), s.k3),
    );
}

// The scores of four queries by their products with `key`; lower than all others where there is no such key.
fn score(product: vec4<f32>, key: u32) -> vec4<f32> {
    return select(vec4(LOWEST), product * p.scale, key < p.tokens);
}

// The largest score of each of four queries over the four keys that begin at `at` in `scores`.
fn largest(at: u32) -> vec4<f32> {
    return max(max(scores[at], scores[at + 8u]), max(scores[at + 16u], scores[at + 24u]));
}

// Adds to the sum of channel `c` the values of four keys times their weights; the values of channel 0 lie at `keys`.
// Channels beyond the last are read as the last.
fn add(sum: vec4<f32>, keys: vec4<u32>, c: u32, w: Keys) -> vec4<f32> {
    let values = four(keys + min(c, p.channels - 1u) * p.tokens);
    let half = fma(w.k0, vec4(values.x), fma(w.k1, vec4(values.y), sum));
    return fma(w.k2, vec4(values.z), fma(w.k3, vec4(values.w), half));
}

// Writes channel `c` of four queries, those that there are. `to` is the item's first element.
fn store(to: u32, c: u32, queries: vec4<u32>, value: vec4<f32>) {
    if c >= p.channels {
        return;
    }
    let row = to + c * p.tokens;
    if queries.x < p.tokens {
        out[row + queries.x] = value.x;
    }
    if queries.y < p.tokens {
        out[row + queries.y] = value.y;
    }
    if queries.z < p.tokens {
        out[row + queries.z] = value.z;
    }
    if queries.w < p.tokens {
        out[row + queries.w] = value.w;
    }
}

@compute @workgroup_size(8, 8)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) launched: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let at = place(id, launched);
    if outside(at) {
        return;
    }
    // Queries, keys and channels beyond the last repeat it; they get no weight or are not written.
    let last = vec4(p.tokens - 1u);
    let queries = at.y * 32u + lane.y + SPREAD;
    let c = at.x * 128u + lane.x;
    let base = p.x_offset + at.z * p.x_batch_stride;
    let q = base + min(queries, last);
    let k = base + p.channels * p.tokens;
    let v = k + p.channels * p.tokens;
    let mine = lane.x * 8u + lane.y;

    var top = vec4(LOWEST);
    var total = vec4(0.0);
    // The sums of channels c, c + 8, .. to c + 120.
    var s0 = vec4(0.0);
    var s1 = vec4(0.0);
    var s2 = vec4(0.0);
    var s3 = vec4(0.0);
    var s4 = vec4(0.0);
    var s5 = vec4(0.0);
    var s6 = vec4(0.0);
    var s7 = vec4(0.0);
    var s8 = vec4(0.0);
    var s9 = vec4(0.0);
    var s10 = vec4(0.0);
    var s11 = vec4(0.0);
    var s12 = vec4(0.0);
    var s13 = vec4(0.0);
    var s14 = vec4(0.0);
    var s15 = vec4(0.0);
    for (var first = 0u; first < p.tokens; first += 32u) {
        let keys = first + lane.x + SPREAD;
        let k_column = k + min(keys, last);
        var s = Keys();
        // Four at a time: llvmpipe ends all loops of an invocation after 65,535 rounds together.
        for (var i = 0u; i < p.channels; i += 4u) {
            s = multiply(s, q, k_column, i);
            s = multiply(s, q, k_column, i + 1u);
            s = multiply(s, q, k_column, i + 2u);
            s = multiply(s, q, k_column, i + 3u);
        }
        s = Keys(score(s.k0, keys.x), score(s.k1, keys.y), score(s.k2, keys.z), score(s.k3, keys.w));
        scores[mine] = s.k0;
        scores[mine + 64u] = s.k1;
        scores[mine + 128u] = s.k2;
        scores[mine + 192u] = s.k3;
        workgroupBarrier();
        var next = top;
        for (var i = 0u; i < 256u; i += 32u) {
            next = max(next, largest(i + lane.y));
        }
        weights[mine] = exp(s.k0 - next);
        weights[mine + 64u] = exp(s.k1 - next);
        weights[mine + 128u] = exp(s.k2 - next);
        weights[mine + 192u] = exp(s.k3 - next);
        workgroupBarrier();
        let keep = exp(top - next);
        top = next;
        total *= keep;
        s0 *= keep;
        s1 *= keep;
        s2 *= keep;
        s3 *= keep;
        s4 *= keep;
        s5 *= keep;
        s6 *= keep;
        s7 *= keep;
        s8 *= keep;
        s9 *= keep;
        s10 *= keep;
        s11 *= keep;
        s12 *= keep;
        s13 *= keep;
        s14 *= keep;
        s15 *= keep;
        for (var i = 0u; i < 32u; i += 4u) {
            let row = i * 8u + lane.y;
            let w = Keys(weights[row], weights[row + 8u], weights[row + 16u], weights[row + 24u]);
            total += (w.k0 + w.k1) + (w.k2 + w.k3);
            let v_column = v + min(first + i + vec4(0u, 1u, 2u, 3u), last);
            s0 = add(s0, v_column, c, w);
            s1 = add(s1, v_column, c + 8u, w);
            s2 = add(s2, v_column, c + 16u, w);
            s3 = add(s3, v_column, c + 24u, w);
            s4 = add(s4, v_column, c + 32u, w);
            s5 = add(s5, v_column, c + 40u, w);
            s6 = add(s6, v_column, c + 48u, w);
            s7 = add(s7, v_column, c + 56u, w);
            s8 = add(s8, v_column, c + 64u, w);
            s9 = add(s9, v_column, c + 72u, w);
            s10 = add(s10, v_column, c + 80u, w);
            s11 = add(s11, v_column, c + 88u, w);
            s12 = add(s12, v_column, c + 96u, w);
            s13 = add(s13, v_column, c + 104u, w);
            s14 = add(s14, v_column, c + 112u, w);
            s15 = add(s15, v_column, c + 120u, w);
        }
    }
    let to = p.out_offset + at.z * p.out_batch_stride;
    store(to, c, queries, s0 / total);
    store(to, c + 8u, queries, s1 / total);
    store(to, c + 16u, queries, s2 / total);
    store(to, c + 24u, queries, s3 / total);
    store(to, c + 32u, queries, s4 / total);
    store(to, c + 40u, queries, s5 / total);
    store(to, c + 48u, queries, s6 / total);
    store(to, c + 56u, queries, s7 / total);
    store(to, c + 64u, queries, s8 / total);
    store(to, c + 72u, queries, s9 / total);
    store(to, c + 80u, queries, s10 / total);
    store(to, c + 88u, queries, s11 / total);
    store(to, c + 96u, queries, s12 / total);
    store(to, c + 104u, queries, s13 / total);
    store(to, c + 112u, queries, s14 / total);
    store(to, c + 120u, queries, s15 / total);
}
