// The gradient of self-attention with respect to q, k and v, which are the thirds of x's channels: x and out are
// [batch][3 channels][tokens], dy is [batch][channels][tokens].
// With P the softmax of the scores S = Q^T K / sqrt(channels) and dO the gradient with respect to the result:
// dV = P^T dO, dP = dO V^T, dS = P * (dP - rowsum(P * dP)), dQ = dS K / sqrt(channels), dK = dS^T Q / sqrt(channels).
// Three launches, one after the other:
// scores: a workgroup writes 32 queries by 32 keys of S and dP.
//     Workgroups: x over keys, y over queries, z over the batch.
// rows: a workgroup turns one query's S and dP into P and dS / sqrt(channels).
//     Workgroups: x over queries, y over the batch.
// main: a workgroup writes 32 channels by 32 tokens of dQ, dK or dV.
//     Workgroups: x over tokens, y over channels, z over dQ, dK and dV of each item.
//#use place
//#use lanes

struct Params {
    grid: vec3<u32>,
    x_offset: u32,
    x_batch_stride: u32,
    dy_offset: u32,
    dy_batch_stride: u32,
    out_offset: u32,
    out_batch_stride: u32,
    channels: u32,
    tokens: u32,
    // 1 / sqrt(channels).
    scale: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> dy: array<f32>;
// [batch][queries][keys]: S, then P.
@group(0) @binding(3) var<storage, read_write> weights: array<f32>;
// [batch][queries][keys]: dP, then dS / sqrt(channels).
@group(0) @binding(4) var<storage, read_write> slopes: array<f32>;
@group(0) @binding(5) var<storage, read_write> out: array<f32>;

const SPREAD = vec4(0u, 8u, 16u, 24u);

fn from_x(at: vec4<u32>) -> vec4<f32> {
    return vec4(x[at.x], x[at.y], x[at.z], x[at.w]);
}

fn from_dy(at: vec4<u32>) -> vec4<f32> {
    return vec4(dy[at.x], dy[at.y], dy[at.z], dy[at.w]);
}

// Sums of 4 by 4 products, one row a vector.
struct Tile {
    r0: vec4<f32>,
    r1: vec4<f32>,
    r2: vec4<f32>,
    r3: vec4<f32>,
}

fn add(t: Tile, rows: vec4<f32>, columns: vec4<f32>) -> Tile {
    return Tile(
        fma(vec4(rows.x), columns, t.r0),
        fma(vec4(rows.y), columns, t.r1),
        fma(vec4(rows.z), columns, t.r2),
        fma(vec4(rows.w), columns, t.r3),
    );
}

fn store_score(at: u32, score: f32, slope: f32) {
    weights[at] = score * p.scale;
    slopes[at] = slope;
}

// Writes one query's scores against four keys, where there are such, and their gradients.
fn store_scores(item: u32, query: u32, keys: vec4<u32>, s: vec4<f32>, g: vec4<f32>) {
    if query >= p.tokens {
        return;
    }
    let row = (item * p.tokens + query) * p.tokens;
    if keys.x < p.tokens {
        store_score(row + keys.x, s.x, g.x);
    }
    if keys.y < p.tokens {
        store_score(row + keys.y, s.y, g.y);
    }
    if keys.z < p.tokens {
        store_score(row + keys.z, s.z, g.z);
    }
    if keys.w < p.tokens {
        store_score(row + keys.w, s.w, g.w);
    }
}

@compute @workgroup_size(8, 8)
fn scores(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) launched: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let at = place(id, launched);
    if outside(at) {
        return;
    }
    let keys = at.x * 32u + lane.x + SPREAD;
    let queries = at.y * 32u + lane.y + SPREAD;
    // Those beyond the last repeat it and are not written.
    let last = vec4(p.tokens - 1u);
    let third = p.channels * p.tokens;
    let base = p.x_offset + at.z * p.x_batch_stride;
    let q = base + min(queries, last);
    let k = base + third + min(keys, last);
    let v = k + third;
    let d = p.dy_offset + at.z * p.dy_batch_stride + min(queries, last);
    var s = Tile();
    var g = Tile();
    for (var c = 0u; c < p.channels; c++) {
        let row = c * p.tokens;
        s = add(s, from_x(q + row), from_x(k + row));
        g = add(g, from_dy(d + row), from_x(v + row));
    }
    store_scores(at.z, queries.x, keys, s.r0, g.r0);
    store_scores(at.z, queries.y, keys, s.r1, g.r1);
    store_scores(at.z, queries.z, keys, s.r2, g.r2);
    store_scores(at.z, queries.w, keys, s.r3, g.r3);
}

@compute @workgroup_size(64)
fn rows(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) launched: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = place(id, launched);
    if outside(at) {
        return;
    }
    let first = (at.y * p.tokens + at.x) * p.tokens;
    let end = first + p.tokens;
    // Below every score, and far enough from the end of f32 that differences stay finite.
    var top = -1e38;
    for (var i = first + lane; i < end; i += 64u) {
        top = max(top, weights[i]);
    }
    lanes[lane] = vec2(top);
    for (var half = 32u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            lanes[lane] = max(lanes[lane], lanes[lane + half]);
        }
    }
    workgroupBarrier();
    top = lanes[0].x;
    var own = vec2(0.0);
    for (var i = first + lane; i < end; i += 64u) {
        let weight = exp(weights[i] - top);
        weights[i] = weight;
        own += vec2(weight, weight * slopes[i]);
    }
    let sums = total(lane, own);
    let centre = sums.y / sums.x;
    for (var i = first + lane; i < end; i += 64u) {
        let weight = weights[i] / sums.x;
        weights[i] = weight;
        slopes[i] = weight * (slopes[i] - centre) * p.scale;
    }
}

// Writes one channel of four tokens, where there are such. `to` is the first element of the third of out.
fn store(to: u32, channel: u32, tokens: vec4<u32>, value: vec4<f32>) {
    if channel >= p.channels {
        return;
    }
    let row = to + channel * p.tokens;
    if tokens.x < p.tokens {
        out[row + tokens.x] = value.x;
    }
    if tokens.y < p.tokens {
        out[row + tokens.y] = value.y;
    }
    if tokens.z < p.tokens {
        out[row + tokens.z] = value.z;
    }
    if tokens.w < p.tokens {
        out[row + tokens.w] = value.w;
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
    let item = at.z / 3u;
    // 0: dQ, 1: dK, 2: dV.
    let part = at.z % 3u;
    let tokens = at.x * 32u + lane.x + SPREAD;
    let channels = at.y * 32u + lane.y + SPREAD;
    let third = p.channels * p.tokens;
    let rows = min(channels, vec4(p.channels - 1u)) * p.tokens;
    // Token t of dQ sums along row t of dS, of dK and dV down column t of dS and P.
    let step = select(p.tokens, 1u, part == 0u);
    let start = min(tokens, vec4(p.tokens - 1u)) * select(1u, p.tokens, part == 0u) + item * p.tokens * p.tokens;
    // dQ is a product with K, dK with Q, dV with dO.
    let factors = select(p.x_offset + item * p.x_batch_stride + select(0u, third, part == 0u),
        p.dy_offset + item * p.dy_batch_stride, part == 2u) + rows;
    var sums = Tile();
    for (var t = 0u; t < p.tokens; t++) {
        let i = start + t * step;
        if part == 2u {
            sums = add(sums, from_dy(factors + t), vec4(weights[i.x], weights[i.y], weights[i.z], weights[i.w]));
        } else {
            sums = add(sums, from_x(factors + t), vec4(slopes[i.x], slopes[i.y], slopes[i.z], slopes[i.w]));
        }
    }
    let to = p.out_offset + item * p.out_batch_stride + part * third;
    store(to, channels.x, tokens, sums.r0);
    store(to, channels.y, tokens, sums.r1);
    store(to, channels.z, tokens, sums.r2);
    store(to, channels.w, tokens, sums.r3);
}
