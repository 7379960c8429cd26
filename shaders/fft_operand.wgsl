// Convolution by Fourier transforms, first stage: the spectra of tiles or kernels as an operand of matrix products,
// operand[blocks][3 * 514][depth + 1][32]. A product of two complex numbers is computed as three real ones (Gauss), so
// a frequency has three planes: a, b - a and a + b of the left operand's value a + i b, which is conjugated, and c + d,
// c and d of the right one's, c + i d.
// A workgroup transforms two tiles of one channel at once, as real and imaginary part, or one kernel, which is taken
// for an image of one tile.
// Tiles are 32x32. They overlap: each begins 33 less the kernel's size after the one before, which is as many outputs
// as a tile yields. They are numbered along rows, down the image, along the batch.
// Workgroups: x over pairs of tiles or kernels, y over the depth; with SUMMED x over channels, y over pairs of tiles.
//#use place
//#use conv2d_input
//#use fft

// Whether the left operand is written.
override LEFT: bool = false;
// Whether the matrix products sum over tiles, as for the gradient with respect to the weight. The 32 of a block are
// then channels; otherwise channels are summed, and the 32 are tiles or kernels.
override SUMMED: bool = false;
// Whether a tile is zero beyond the outputs that it yields: tiles of the gradient with respect to the result, which
// must not overlap.
override CUT: bool = LEFT && SUMMED;

struct Params {
    grid: vec3<u32>,
//#use conv2d_input_fields
//#use fft_tile_fields
    channels: u32,
    // Terms of a sum, made even; the layout has one row more, so that what is written together does not fall into the
    // same cache sets.
    depth: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> operand: array<f32>;

// A column of a tile: where the column begins in the first line of its channel, the line of the padded input that the
// tile begins at, and whether any of it lies in the image.
struct Column {
    base: u32,
    top: i32,
    used: bool,
}

var<private> first_column: Column;
var<private> second_column: Column;
// Where the spectrum of this workgroup goes in the operand, before the planes of its frequencies.
var<private> row: u32;

fn column_of(tile: u32, channel: u32) -> Column {
    let t = min(tile, p.tiles - 1u);
    let line = t / p.row_tiles;
    let step = vec2(33u - p.kernel_w, 33u - p.kernel_h);
    let column = source_line(i32(t % p.row_tiles * step.x + lane) - p.pad_w, p.in_w);
    let base = p.x_offset + line / p.image_rows * p.x_batch_stride + min(channel, p.channels - 1u) * in_plane();
    let used = tile < p.tiles && channel < p.channels && column >= 0 && !(CUT && lane >= step.x);
    return Column(base + u32(max(column, 0)), i32(line % p.image_rows * step.y) - p.pad_h, used);
}

fn seen(column: Column, k: u32) -> f32 {
    let line = source_line(column.top + i32(k), p.in_h);
    let value = x[column.base + u32(max(line, 0)) * in_row()];
    return select(0.0, value, column.used && line >= 0 && !(CUT && k >= 33u - p.kernel_h));
}

fn load(k: u32) -> vec2<f32> {
    if !KERNELS {
        return vec2(seen(first_column, k), seen(second_column, k));
    }
    if k < 17u {
        return vec2(seen(first_column, k), 0.0);
    }
    return vec2(0.0);
}

fn store(kx: u32, z: vec2<f32>) {
    let stride = (p.depth + 1u) * 32u;
    let spot = spot_of(lane, kx);
    let a = z.x;
    let b = select(z.y, -z.y, spot.other != LEFT);
    // The value at the second frequency of a pair goes into the next element, as that of the second tile. A kernel,
    // which is alone and real, has the conjugate value there, which says nothing new.
    let side = select(select(1u, 32u, SUMMED), 0u, KERNELS);
    let to = row + spot.index * 3u * stride + select(0u, side, spot.other);
    operand[to] = select(a + b, a, LEFT);
    operand[to + stride] = select(a, b - a, LEFT);
    operand[to + 2u * stride] = select(b, a + b, LEFT);
    // Where a frequency is its own negative, it is written to both elements.
    if SUMMED && kx % 16u == 0u && lane % 16u == 0u {
        operand[to + side] = select(a - b, a, LEFT);
        operand[to + side + stride] = select(a, -b - a, LEFT);
        operand[to + side + 2u * stride] = select(-b, a - b, LEFT);
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
    let tile = select(2u, 1u, KERNELS) * select(group.x, group.y, SUMMED);
    let channel = select(group.y, group.x, SUMMED);
    first_column = column_of(p.first_tile + tile, channel);
    second_column = column_of(p.first_tile + tile + 1u, channel);
    load_all();
    fourier();
    hand_round();
    if KERNELS && lane > 16u {
        return;
    }
    fourier();
    // Workgroups that follow one another write neighbouring elements.
    let spot = select(vec2(tile, channel), vec2(channel, tile), SUMMED);
    row = (spot.x / 32u * 3u * FREQUENCIES * (p.depth + 1u) + spot.y) * 32u + spot.x % 32u;
    store_all();
}
