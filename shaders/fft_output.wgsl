// Convolution by Fourier transforms, last stage: products transformed back.
// A workgroup computes two tiles of the result (see `fft_operand`), with bias, channel add, residual and activation.
// Workgroups: x over pairs of tiles, y over output channels.
//#use place
//#use conv2d_epilogue
//#use fft_sums

struct Params {
    grid: vec3<u32>,
//#use conv2d_output_fields
//#use fft_tile_fields
    // Output channels, in blocks of 32; the layout has one row more, so that what is written together does not fall
    // into the same cache sets.
    rows: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> sums: array<f32>;
@group(0) @binding(2) var<storage, read> bias: array<f32>;
@group(0) @binding(3) var<storage, read> channel_add: array<f32>;
@group(0) @binding(4) var<storage, read> residual: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> out: array<f32>;

// Which column of the products the first of both tiles is, the output channel, and what is added to the pixels of each
// tile: bias and channel add.
var<private> column: u32;
var<private> oc: u32;
var<private> shifts: vec2<f32>;

fn load(kx: u32) -> vec2<f32> {
    let spot = spot_of(lane, kx);
    return complex_product(product_at(spot, column, oc) + u32(spot.other)) * vec2(select(1.0, -1.0, spot.other), 1.0);
}

fn store_pixel(value: f32, tile: u32, y: u32) {
    let row = tile / p.row_tiles;
    let line = row % p.image_rows * (33u - p.kernel_h) + y;
    let pixel = tile % p.row_tiles * (33u - p.kernel_w) + lane;
    if tile < p.tiles && line < p.out_h && pixel < p.out_w {
        let n = row / p.image_rows;
        let at = (oc * p.out_h + line) * p.out_w + pixel;
        out[p.out_offset + n * p.out_batch_stride + at] = finish(value, n, at);
    }
}

fn store(y: u32, z: vec2<f32>) {
    if y < min(33u - p.kernel_h, 29u) {
        // The transform and its inverse together multiply by 1,024.
        store_pixel(z.y / 1024.0 + shifts.x, p.first_tile + column, y);
        store_pixel(z.x / 1024.0 + shifts.y, p.first_tile + column + 1u, y);
    }
}

@compute @workgroup_size(32)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) launched: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let group = place(id, launched);
    if outside(group) {
        return;
    }
    lane = index;
    column = 2u * group.x;
    oc = group.y;
    load_all();
    fourier();
    hand_round();
    if lane >= 33u - p.kernel_w {
        return;
    }
    fourier();
    let tile = p.first_tile + column;
    let items = vec2(tile, min(tile + 1u, p.tiles - 1u)) / (p.row_tiles * p.image_rows);
    shifts = vec2(shift_of(items.x, oc), shift_of(items.y, oc));
    store_all();
}
