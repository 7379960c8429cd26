// Parameters and operands of batched matrix products: every element of product is the sum of `depth` products of a row
// of left and a column of right. The layouts have one row or term more than is used.
// left[row_blocks][batch][depth + 1][32 rows], right[column_blocks][batch][depth + 1][32 columns],
// product[column_blocks][batch][rows + 1][32 columns].
//#use place

struct Params {
    grid: vec3<u32>,
    // Terms of a sum.
    depth: u32,
    row_blocks: u32,
    column_blocks: u32,
    batch: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> left: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> right: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> product: array<vec4<f32>>;
