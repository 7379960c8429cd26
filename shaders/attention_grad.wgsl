// The gradient of self-attention by q, k and v. With P the softmax of the scores S and dO the gradient by the result:
// dV = P^T dO, dP = dO V^T, dS = P * (dP - rowsum(P * dP)), dQ = dS K / sqrt(c), dK = dS^T Q / sqrt(c).
// scores: a workgroup writes 32 queries by 32 keys of S and dP.
// rows: a workgroup turns one query's S and dP into P and dS / sqrt(c).
// main: a workgroup writes 32 channels by 32 tokens of one of the three gradients.
//#use lanes

struct Params {
    x_offset: u32,
    x_batch_stride: u32,
    dy_offset: u32,
    dy_batch_stride: u32,
    out_offset: u32,
    out_batch_stride: u32,
    batch: u32,
    channels: u32,
    tokens: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> dy: array<f32>;
// [batch, queries, keys]: S, then P; dP, then dS / sqrt(c).
@group(0) @binding(3) var<storage, read_write> weights: array<f32>;
@group(0) @binding(4) var<storage, read_write> slopes: array<f32>;
@group(0) @binding(5) var<storage, read_write> out: array<f32>;

const SPREAD = vec4(0u, 8u, 16u, 24u);

fn from_x(at: vec4<u32>) -> vec4<f32> {
    return vec4(x[at.x], x[at.y], x[at.z], x[at.w]);
}

fn from_dy(at: vec4<u32>) -> vec4<f32> {
    return vec4(dy[at.x], dy[at.y], dy[at.z], dy[at.w]);
}

@compute @workgroup_size(8, 8)
fn scores(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) id: vec3<u32>,
) {
    let tiles = (p.tokens + 31u) / 32u;
    let index = group.y * groups.x + group.x;
    let item = index / (tiles * tiles);
    if item >= p.batch {
        return;
    }
    let queries = ((index / tiles) % tiles) * 32u + id.y + SPREAD;
    let keys = (index % tiles) * 32u + id.x + SPREAD;
    // Those beyond the last repeat it and are not written.
    let last = vec4(p.tokens - 1u);
    let third = p.channels * p.tokens;
    let base = p.x_offset + item * p.x_batch_stride;
    let q = base + min(queries, last);
    let k = base + third + min(keys, last);
    let v = k + third;
    let d = p.dy_offset + item * p.dy_batch_stride + min(queries, last);
    var s: array<vec4<f32>, 4>;
    var g: array<vec4<f32>, 4>;
    for (var c = 0u; c < p.channels; c++) {
        let row = c * p.tokens;
        let q_values = from_x(q + row);
        let k_values = from_x(k + row);
        let v_values = from_x(v + row);
        let d_values = from_dy(d + row);
        for (var i = 0u; i < 4u; i++) {
            s[i] = fma(vec4(q_values[i]), k_values, s[i]);
            g[i] = fma(vec4(d_values[i]), v_values, g[i]);
        }
    }
    for (var i = 0u; i < 4u; i++) {
        for (var j = 0u; j < 4u; j++) {
            if queries[i] < p.tokens && keys[j] < p.tokens {
                let at = (item * p.tokens + queries[i]) * p.tokens + keys[j];
                weights[at] = s[i][j] * p.scale;
                slopes[at] = g[i][j];
            }
        }
    }
}

@compute @workgroup_size(64)
fn rows(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group.y * groups.x + group.x;
    if row >= p.batch * p.tokens {
        return;
    }
    let first = row * p.tokens;
    let end = first + p.tokens;
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

@compute @workgroup_size(8, 8)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) id: vec3<u32>,
) {
    let tiles = (p.tokens + 31u) / 32u;
    let blocks = (p.channels + 31u) / 32u;
    let index = group.y * groups.x + group.x;
    let item = index / (3u * blocks * tiles);
    if item >= p.batch {
        return;
    }
    // 0, 1, 2: the gradient by q, k, v.
    let part = (index / (blocks * tiles)) % 3u;
    let channels = ((index / tiles) % blocks) * 32u + id.y + SPREAD;
    let tokens = (index % tiles) * 32u + id.x + SPREAD;
    let third = p.channels * p.tokens;
    let rows = min(channels, vec4(p.channels - 1u)) * p.tokens;
    // The gradient by q runs along the rows of dS, the others down the columns of dS and P.
    let step = select(p.tokens, 1u, part == 0u);
    let start = min(tokens, vec4(p.tokens - 1u)) * select(1u, p.tokens, part == 0u) + item * p.tokens * p.tokens;
    // What it is multiplied with: k, q, dy.
    let factors = select(p.x_offset + item * p.x_batch_stride + select(0u, third, part == 0u),
        p.dy_offset + item * p.dy_batch_stride, part == 2u) + rows;
    var sums: array<vec4<f32>, 4>;
    for (var t = 0u; t < p.tokens; t++) {
        let at = start + t * step;
        var values: vec4<f32>;
        var by: vec4<f32>;
        if part == 2u {
            values = vec4(weights[at.x], weights[at.y], weights[at.z], weights[at.w]);
            by = from_dy(factors + t);
        } else {
            values = vec4(slopes[at.x], slopes[at.y], slopes[at.z], slopes[at.w]);
            by = from_x(factors + t);
        }
        for (var i = 0u; i < 4u; i++) {
            sums[i] = fma(vec4(by[i]), values, sums[i]);
        }
    }
    let to = p.out_offset + item * p.out_batch_stride + part * third;
    for (var i = 0u; i < 4u; i++) {
        for (var j = 0u; j < 4u; j++) {
            if channels[i] < p.channels && tokens[j] < p.tokens {
                out[to + channels[i] * p.tokens + tokens[j]] = sums[i][j];
            }
        }
    }
}
