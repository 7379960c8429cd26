// Winograd F(4x4, 3x3), last stage: sums transformed back to pixels (A^T m A in Lavin and Gray 2016), with bias, channel
// add, residual and activation. An invocation computes 4 neighbouring tiles of one channel: 4 rows of 16 pixels.
// sums[blocks][36][rows + 1][32 tiles]. Workgroups: x over blocks, y over groups of 8 channels.
//#use activation
//#use conv2d
//#use conv2d_epilogue

// Whether rows are whole quads of tiles and columns whole tiles.
override EXACT: bool = false;
// Whether all rows begin at multiples of 4 elements.
override ALIGNED: bool = false;

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> sums: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> bias: array<f32>;
@group(0) @binding(3) var<storage, read> channel_add: array<f32>;
@group(0) @binding(4) var<storage, read> residual: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> out: array<vec4<f32>>;

// A^T of one column.
fn transform(m: array<vec4<f32>, 6>) -> array<vec4<f32>, 4> {
    let a = m[1] + m[2];
    let b = m[1] - m[2];
    let c = m[3] + m[4];
    let d = m[3] - m[4];
    return array(m[0] + a + c, b + 2.0 * d, a + 4.0 * c, b + 8.0 * d + m[5]);
}

// The rows of pixels of the 4 tiles, before the transform along rows.
var<private> rows: array<array<vec4<f32>, 6>, 4>;

fn load_column(i: u32, at: u32, stride: u32) {
    let t = transform(array(sums[at + i * stride], sums[at + (6u + i) * stride], sums[at + (12u + i) * stride], sums[at + (18u + i) * stride], sums[at + (24u + i) * stride], sums[at + (30u + i) * stride]));
    rows[0][i] = t[0];
    rows[1][i] = t[1];
    rows[2][i] = t[2];
    rows[3][i] = t[3];
}

fn store(n: u32, at: u32, x: u32, value: f32) {
    if EXACT || x < p.out_w {
        let to = p.out_offset + n * p.out_batch_stride + at + x;
        out[to / 4u][to % 4u] = finish(value, n, at + x);
    }
}

// Stores row `j` of the tiles, which begins `at` elements into batch item `n`, less its first `left` pixels.
fn store_row(j: u32, n: u32, at: u32, left: u32, shift: f32) {
    let c = transform(rows[j]);
    for (var t = 0u; t < 4u; t++) {
        let x = left + t * 4u;
        let values = vec4(c[0][t], c[1][t], c[2][t], c[3][t]) + shift;
        if !ALIGNED {
            store(n, at, x, values.x);
            store(n, at, x + 1u, values.y);
            store(n, at, x + 2u, values.z);
            store(n, at, x + 3u, values.w);
        } else if EXACT || x < p.out_w {
            out[(p.out_offset + n * p.out_batch_stride + at + x) / 4u] = finish4(values, n, at + x);
        }
    }
}

@compute @workgroup_size(8, 8)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) lane: vec3<u32>) {
    // Invocations past the last channel repeat it, see `quad_of`.
    let channel = min(group.y * 8u + lane.y, p.out_channels - 1u);
    let quad = quad_of(group.x, lane.x);
    let row = quad / p.row_quads;
    let n = row / p.image_rows;
    let top = (row % p.image_rows) * 4u;
    let left = (quad % p.row_quads) * 16u;
    let stride = (p.rows + 1u) * 8u;
    let at = group.x * 36u * stride + channel * 8u + (quad - p.first_quad) % 8u;
    load_column(0u, at, stride);
    load_column(1u, at, stride);
    load_column(2u, at, stride);
    load_column(3u, at, stride);
    load_column(4u, at, stride);
    load_column(5u, at, stride);
    let shift = shift_of(n, channel);
    let first = (channel * p.out_h + top) * p.out_w;
    store_row(0u, n, first, left, shift);
    if EXACT || top + 1u < p.out_h {
        store_row(1u, n, first + p.out_w, left, shift);
    }
    if EXACT || top + 2u < p.out_h {
        store_row(2u, n, first + 2u * p.out_w, left, shift);
    }
    if EXACT || top + 3u < p.out_h {
        store_row(3u, n, first + 3u * p.out_w, left, shift);
    }
}
