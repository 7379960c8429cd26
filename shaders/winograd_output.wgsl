// Winograd F(4x4, 3x3), last stage: sums transformed back to pixels (A^T m A in Lavin and Gray 2016), with bias,
// channel add, residual and activation. An invocation computes 4 neighbouring tiles of one channel: 4 rows of 16
// pixels. sums[blocks][36][rows + 1][32 tiles]. Workgroups: x over blocks, y over groups of 8 channels.
//#use place
//#use conv2d_quads
//#use conv2d_epilogue

// Whether the width is a multiple of 16 and the height one of 4, so that every quad of tiles is whole.
override EXACT: bool = false;
// Whether all rows of the result and of the residual begin at multiples of 4 elements.
override ALIGNED: bool = false;

struct Params {
    grid: vec3<u32>,
//#use conv2d_output_fields
//#use conv2d_quad_fields
    // Output channels, in blocks of 32; the layout has one row more, so that what is written together does not fall
    // into the same cache sets.
    rows: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> sums: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> bias: array<f32>;
@group(0) @binding(3) var<storage, read> channel_add: array<f32>;
@group(0) @binding(4) var<storage, read> residual: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> out: array<vec4<f32>>;

// The product of A^T with a column of the sums, for four tiles side by side.
struct Four {
    a: vec4<f32>,
    b: vec4<f32>,
    c: vec4<f32>,
    d: vec4<f32>,
}

fn transform(m0: vec4<f32>, m1: vec4<f32>, m2: vec4<f32>, m3: vec4<f32>, m4: vec4<f32>, m5: vec4<f32>) -> Four {
    let a = m1 + m2;
    let b = m1 - m2;
    let c = m3 + m4;
    let d = m3 - m4;
    return Four(m0 + a + c, b + 2.0 * d, a + 4.0 * c, b + 8.0 * d + m5);
}

// Column `i` of the sums that begin at `at`.
fn column(i: u32, at: u32, stride: u32) -> Four {
    return transform(
        sums[at + i * stride],
        sums[at + (6u + i) * stride],
        sums[at + (12u + i) * stride],
        sums[at + (18u + i) * stride],
        sums[at + (24u + i) * stride],
        sums[at + (30u + i) * stride],
    );
}

fn store(n: u32, at: u32, x: u32, value: f32) {
    if EXACT || x < p.out_w {
        let to = p.out_offset + n * p.out_batch_stride + at + x;
        out[to / 4u][to % 4u] = finish(value, n, at + x);
    }
}

// Stores four pixels of a row, which begins `at` elements into batch item `n`, from column `x` on.
fn store4(n: u32, at: u32, x: u32, values: vec4<f32>) {
    if !ALIGNED {
        store(n, at, x, values.x);
        store(n, at, x + 1u, values.y);
        store(n, at, x + 2u, values.z);
        store(n, at, x + 3u, values.w);
    } else if EXACT || x < p.out_w {
        out[(p.out_offset + n * p.out_batch_stride + at + x) / 4u] = finish4(values, n, at + x);
    }
}

// Stores a row of the tiles: `pixels` are the first, second, third and fourth pixel of each.
fn store_row(n: u32, at: u32, left: u32, pixels: Four, shift: f32) {
    store4(n, at, left, vec4(pixels.a.x, pixels.b.x, pixels.c.x, pixels.d.x) + shift);
    store4(n, at, left + 4u, vec4(pixels.a.y, pixels.b.y, pixels.c.y, pixels.d.y) + shift);
    store4(n, at, left + 8u, vec4(pixels.a.z, pixels.b.z, pixels.c.z, pixels.d.z) + shift);
    store4(n, at, left + 12u, vec4(pixels.a.w, pixels.b.w, pixels.c.w, pixels.d.w) + shift);
}

@compute @workgroup_size(8, 8)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) launched: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let group = place(id, launched);
    if outside(group) {
        return;
    }
    // Invocations beyond the last channel repeat it, which costs less than a branch: see `quad_of`.
    let channel = min(group.y * 8u + lane.y, p.out_channels - 1u);
    let quad = quad_of(group.x, lane.x);
    let row = quad / p.row_quads;
    let n = row / p.image_rows;
    let top = (row % p.image_rows) * 4u;
    let left = (quad % p.row_quads) * 16u;
    let stride = (p.rows + 1u) * 8u;
    let at = group.x * 36u * stride + channel * 8u + (quad - p.first_quad) % 8u;
//#for I in 0..6
    let column$I = column($Iu, at, stride);
//#end
    let shift = shift_of(n, channel);
    let first = (channel * p.out_h + top) * p.out_w;
//#for J,L in 0u,a 1u,b 2u,c 3u,d
    if EXACT || top + $J < p.out_h {
        let row$L = transform(column0.$L, column1.$L, column2.$L, column3.$L, column4.$L, column5.$L);
        store_row(n, first + $J * p.out_w, left, row$L, shift);
    }
//#end
}
