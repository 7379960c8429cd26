// Parameters and operands of batched matrix products:
// weight[row_blocks][batch][depth + 1][32 rows], columns[blocks][batch][depth + 1][32], result[blocks][batch][rows + 1][32].

struct Params {
    depth: u32,
    row_blocks: u32,
    blocks: u32,
    batch: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> columns: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> result: array<vec4<f32>>;
