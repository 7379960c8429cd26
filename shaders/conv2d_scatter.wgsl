// The last stage of a convolution as a matrix product (GEMM): adds bias, channel add and residual to sums[blocks][rows
// + 1][32 pixels], applies the activation and writes the result.
// An invocation writes 4 neighbouring pixels of a row in 8 channels.
// Workgroups: x over blocks, y over groups of 32 channels.
//#use place
//#use conv2d_quads
//#use conv2d_epilogue

// Whether the width is a multiple of 4, so that rows are whole quads.
override EXACT: bool = false;
// Whether moreover all quads begin at multiples of 4 elements.
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

@compute @workgroup_size(8, 4)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) launched: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let group = place(id, launched);
    if outside(group) {
        return;
    }
    let first = (group.y * 4u + lane.y) * 8u;
    let quad = quad_of(group.x, lane.x);
    let row = quad / p.row_quads;
    let n = row / p.image_rows;
    let left = (quad % p.row_quads) * 4u;
    // The width of the rows that the quads are cut from. For a 1x1 kernel an image is a single row.
    let plane = p.out_h * p.out_w;
    let width = plane / p.image_rows;
    let pixel = (row % p.image_rows) * width + left;
    let block = group.x * (p.rows + 1u) * 8u + (quad - p.first_quad) % 8u;
    let to = p.out_offset + n * p.out_batch_stride;
    for (var c = 0u; c < 8u; c++) {
        // Channels beyond the last repeat it, which costs less than a branch: see `quad_of`.
        let channel = min(first + c, p.out_channels - 1u);
        let value = sums[block + channel * 8u];
        let shift = shift_of(n, channel);
        let at = channel * plane + pixel;
        if ALIGNED {
            out[(to + at) / 4u] = finish4(value + shift, n, at);
        } else {
//#for K,I in 0u,x 1u,y 2u,z 3u,w
            if EXACT || left + $K < width {
                out[(to + at + $K) / 4u][(to + at + $K) % 4u] = finish(value.$I + shift, n, at + $K);
            }
//#end
        }
    }
}
