// Weights [oc][ic / groups][kh][kw], laid out in tiles of `ROWS` output channels of one group:
// tiles[groups][tiles of a group][depth][ROWS], zero where there is no such channel or product.
// An invocation writes one element. Workgroups: x over elements, 64 each.
//#use place

override ROWS: u32 = 32u;

struct Params {
    grid: vec3<u32>,
    weight_offset: u32,
    weight_batch_stride: u32,
    // Output channels of a group, and tiles that they fill.
    group_out: u32,
    group_tiles: u32,
    // Products that an output sums up, and how many of them the layout has room for: the rest is zero.
    products: u32,
    depth: u32,
    elements: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> weight: array<f32>;
@group(0) @binding(2) var<storage, read_write> tiles: array<f32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) launched: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = place(id, launched);
    let i = at.x * 64u + lane;
    if outside(at) || i >= p.elements {
        return;
    }
    let k = i / ROWS % p.depth;
    let tile = i / (ROWS * p.depth);
    let row = tile % p.group_tiles * ROWS + i % ROWS;
    let oc = tile / p.group_tiles * p.group_out + row;
    var value = 0.0;
    if row < p.group_out && k < p.products {
        value = weight[p.weight_offset + oc * p.weight_batch_stride + k];
    }
    tiles[i] = value;
}
