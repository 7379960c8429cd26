// Self-attention of one head over all pixels: softmax(q . k / sqrt(channels)) v, the three stacked in x's channels.
// An invocation computes 32 channels of one query. It runs over the keys eight at a time and keeps the softmax's
// maximum and sum as it goes (Milakov and Gimelshein 2018), so the matrix of weights is never stored. The scores are
// computed again for every 32 channels, which costs less than sharing them between invocations.

struct Params {
    x_offset: u32,
    x_batch_stride: u32,
    out_offset: u32,
    out_batch_stride: u32,
    batch: u32,
    channels: u32,
    tokens: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

// Below every score, and far enough from the end of f32 that differences stay finite.
const LOWEST = -1e38;

// The numbers of eight keys.
struct Keys {
    a: vec4<u32>,
    b: vec4<u32>,
}

// One query's products with eight keys.
struct Scores {
    a: vec4<f32>,
    b: vec4<f32>,
}

fn gather(row: u32, k: vec4<u32>) -> vec4<f32> {
    return vec4(x[row + k.x], x[row + k.y], x[row + k.z], x[row + k.w]);
}

// Adds the products of channel `c`; a channel beyond the last adds zero.
fn score(s: Scores, q: u32, k: u32, c: u32, keys: Keys) -> Scores {
    let row = min(c, p.channels - 1u) * p.tokens;
    let own = vec4(select(0.0, x[q + row], c < p.channels));
    return Scores(fma(own, gather(k + row, keys.a), s.a), fma(own, gather(k + row, keys.b), s.b));
}

fn weigh(row: u32, keys: Keys, a: vec4<f32>, b: vec4<f32>) -> f32 {
    return dot(gather(row, keys.a), a) + dot(gather(row, keys.b), b);
}

// Four channels of the values, from channel `c` on; those beyond the last repeat it and are not written.
fn weigh4(v: u32, c: u32, keys: Keys, a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    let row = min(vec4(c, c + 1u, c + 2u, c + 3u), vec4(p.channels - 1u)) * p.tokens + v;
    return vec4(
        weigh(row.x, keys, a, b),
        weigh(row.y, keys, a, b),
        weigh(row.z, keys, a, b),
        weigh(row.w, keys, a, b),
    );
}

fn store4(to: u32, c: u32, value: vec4<f32>) {
    for (var i = 0u; i < 4u; i++) {
        if c + i < p.channels {
            out[to + (c + i) * p.tokens] = value[i];
        }
    }
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let blocks = (p.channels + 31u) / 32u;
    let tiles = (p.tokens + 63u) / 64u;
    let index = group.y * groups.x + group.x;
    let item = index / (tiles * blocks);
    if item >= p.batch {
        return;
    }
    let query = ((index / blocks) % tiles) * 64u + lane;
    let first = (index % blocks) * 32u;
    let q = p.x_offset + item * p.x_batch_stride + min(query, p.tokens - 1u);
    let k = p.x_offset + item * p.x_batch_stride + p.channels * p.tokens;
    let v = k + p.channels * p.tokens;

    var top = LOWEST;
    var total = 0.0;
    var s0 = vec4(0.0);
    var s1 = vec4(0.0);
    var s2 = vec4(0.0);
    var s3 = vec4(0.0);
    var s4 = vec4(0.0);
    var s5 = vec4(0.0);
    var s6 = vec4(0.0);
    var s7 = vec4(0.0);
    for (var key = 0u; key < p.tokens; key += 8u) {
        let ka = vec4(key) + vec4(0u, 1u, 2u, 3u);
        let kb = ka + vec4(4u);
        // Keys beyond the last repeat it, with a weight of zero.
        let keys = Keys(min(ka, vec4(p.tokens - 1u)), min(kb, vec4(p.tokens - 1u)));
        var a = vec4(0.0);
        var b = vec4(0.0);
        // Eight at a time: llvmpipe ends all loops of an invocation after 65,535 rounds together.
        for (var c = 0u; c < p.channels; c += 8u) {
            var s = Scores(a, b);
            s = score(s, q, k, c, keys);
            s = score(s, q, k, c + 1u, keys);
            s = score(s, q, k, c + 2u, keys);
            s = score(s, q, k, c + 3u, keys);
            s = score(s, q, k, c + 4u, keys);
            s = score(s, q, k, c + 5u, keys);
            s = score(s, q, k, c + 6u, keys);
            s = score(s, q, k, c + 7u, keys);
            a = s.a;
            b = s.b;
        }
        a = select(vec4(LOWEST), a * p.scale, ka < vec4(p.tokens));
        b = select(vec4(LOWEST), b * p.scale, kb < vec4(p.tokens));
        let both = max(a, b);
        let next = max(top, max(max(both.x, both.y), max(both.z, both.w)));
        let keep = exp(top - next);
        a = exp(a - next);
        b = exp(b - next);
        top = next;
        total = total * keep + dot(a, vec4(1.0)) + dot(b, vec4(1.0));
        s0 = s0 * keep + weigh4(v, first, keys, a, b);
        s1 = s1 * keep + weigh4(v, first + 4u, keys, a, b);
        s2 = s2 * keep + weigh4(v, first + 8u, keys, a, b);
        s3 = s3 * keep + weigh4(v, first + 12u, keys, a, b);
        s4 = s4 * keep + weigh4(v, first + 16u, keys, a, b);
        s5 = s5 * keep + weigh4(v, first + 20u, keys, a, b);
        s6 = s6 * keep + weigh4(v, first + 24u, keys, a, b);
        s7 = s7 * keep + weigh4(v, first + 28u, keys, a, b);
    }
    if query < p.tokens {
        let to = p.out_offset + item * p.out_batch_stride + query;
        store4(to, first, s0 / total);
        store4(to, first + 4u, s1 / total);
        store4(to, first + 8u, s2 / total);
        store4(to, first + 12u, s3 / total);
        store4(to, first + 16u, s4 / total);
        store4(to, first + 20u, s5 / total);
        store4(to, first + 24u, s6 / total);
        store4(to, first + 28u, s7 / total);
    }
}
