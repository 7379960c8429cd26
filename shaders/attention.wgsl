// Self-attention of one head over all pixels: softmax(q . k / sqrt(channels)) v, the three stacked in x's channels.
// A workgroup computes 32 queries in 128 channels. It runs over the keys 32 at a time and keeps the softmax's maximum
// and sum as it goes (Milakov and Gimelshein 2018), so the matrix of weights is never stored. An invocation (tx, ty)
// scores the queries ty, ty + 8, .. against the keys tx, tx + 8, .. and sums the channels tx, tx + 8, .. of its queries.

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

// [32 keys][8], four queries each.
var<workgroup> scores: array<vec4<f32>, 256>;
var<workgroup> weights: array<vec4<f32>, 256>;

// Below every score, and far enough from the end of f32 that differences stay finite.
const LOWEST = -1e38;
const SPREAD = vec4(0u, 8u, 16u, 24u);

fn four(at: vec4<u32>) -> vec4<f32> {
    return vec4(x[at.x], x[at.y], x[at.z], x[at.w]);
}

// Adds channel `c` to the products of four queries (the vectors) with four keys; a channel beyond the last adds zero.
fn multiply(s: array<vec4<f32>, 4>, q: vec4<u32>, k: vec4<u32>, c: u32) -> array<vec4<f32>, 4> {
    let row = min(c, p.channels - 1u) * p.tokens;
    let queries = select(vec4(0.0), four(q + row), c < p.channels);
    let keys = four(k + row);
    return array(
        fma(queries, vec4(keys.x), s[0]),
        fma(queries, vec4(keys.y), s[1]),
        fma(queries, vec4(keys.z), s[2]),
        fma(queries, vec4(keys.w), s[3]),
    );
}

// The largest of four keys' scores, from `at` on.
fn largest(at: u32) -> vec4<f32> {
    return max(max(scores[at], scores[at + 8u]), max(scores[at + 16u], scores[at + 24u]));
}

@compute @workgroup_size(8, 8)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) id: vec3<u32>,
) {
    let blocks = (p.channels + 127u) / 128u;
    let tiles = (p.tokens + 31u) / 32u;
    let index = group.y * groups.x + group.x;
    let item = index / (tiles * blocks);
    if item >= p.batch {
        return;
    }
    // Queries, keys and channels beyond the last repeat it; they get no weight or are not written.
    let last = vec4(p.tokens - 1u);
    let queries = ((index / blocks) % tiles) * 32u + id.y + SPREAD;
    let first = (index % blocks) * 128u + id.x;
    let base = p.x_offset + item * p.x_batch_stride;
    let q = base + min(queries, last);
    let k = base + p.channels * p.tokens;
    let v = k + p.channels * p.tokens;
    let mine = id.x * 8u + id.y;

    var top = vec4(LOWEST);
    var total = vec4(0.0);
    var sums: array<vec4<f32>, 16>;
    for (var key = 0u; key < p.tokens; key += 32u) {
        let keys = key + id.x + SPREAD;
        let at = k + min(keys, last);
        var s: array<vec4<f32>, 4>;
        // Four at a time: llvmpipe ends all loops of an invocation after 65,535 rounds together.
        for (var c = 0u; c < p.channels; c += 4u) {
            s = multiply(s, q, at, c);
            s = multiply(s, q, at, c + 1u);
            s = multiply(s, q, at, c + 2u);
            s = multiply(s, q, at, c + 3u);
        }
        for (var j = 0u; j < 4u; j++) {
            s[j] = select(vec4(LOWEST), s[j] * p.scale, keys[j] < p.tokens);
            scores[mine + j * 64u] = s[j];
        }
        workgroupBarrier();
        var next = top;
        for (var i = 0u; i < 256u; i += 32u) {
            next = max(next, largest(i + id.y));
        }
        for (var j = 0u; j < 4u; j++) {
            weights[mine + j * 64u] = exp(s[j] - next);
        }
        workgroupBarrier();
        let keep = exp(top - next);
        top = next;
        total *= keep;
        for (var m = 0u; m < 16u; m++) {
            sums[m] *= keep;
        }
        for (var i = 0u; i < 32u; i += 4u) {
            let w0 = weights[i * 8u + id.y];
            let w1 = weights[i * 8u + 8u + id.y];
            let w2 = weights[i * 8u + 16u + id.y];
            let w3 = weights[i * 8u + 24u + id.y];
            total += (w0 + w1) + (w2 + w3);
            let column = v + min(key + i + vec4(0u, 1u, 2u, 3u), last);
            for (var m = 0u; m < 16u; m++) {
                let values = four(column + min(first + m * 8u, p.channels - 1u) * p.tokens);
                sums[m] = fma(w0, vec4(values.x), fma(w1, vec4(values.y), sums[m]));
                sums[m] = fma(w2, vec4(values.z), fma(w3, vec4(values.w), sums[m]));
            }
        }
    }
    let to = p.out_offset + item * p.out_batch_stride;
    for (var m = 0u; m < 16u; m++) {
        let c = first + m * 8u;
        let value = sums[m] / total;
        for (var i = 0u; i < 4u; i++) {
            if c < p.channels && queries[i] < p.tokens {
                out[to + c * p.tokens + queries[i]] = value[i];
            }
        }
    }
}
