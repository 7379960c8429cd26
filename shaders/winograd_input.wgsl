// Winograd F(4x4, 3x3), first stage: the tiles of the input, transformed (B^T d B in Lavin and Gray 2016).
// An invocation transforms 4 neighbouring tiles of one channel; a row of 8 invocations fills one block of 32 tiles.
// Tiles are numbered along rows, rows down the image, images along the batch; rows are padded to 4 tiles.
// Result: transformed[blocks][36][depth + 1][32 tiles]; the row too many keeps the 36 streams that an
// invocation writes from sharing cache sets. Workgroups: x over blocks, y over groups of 8 channels.
//#use conv2d

// Whether the tensor's rows begin at multiples of 4 elements, with one column of zeros beside them.
override ALIGNED: bool = false;

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> transformed: array<vec4<f32>>;

// B^T of one column: 6 values at points 0, 1, -1, 2, -2 and infinity.
fn transform(d: array<f32, 6>) -> array<f32, 6> {
    let a = d[4] - 4.0 * d[2];
    let b = d[3] - 4.0 * d[1];
    let c = d[4] - d[2];
    let e = 2.0 * (d[3] - d[1]);
    return array(4.0 * d[0] - 5.0 * d[2] + d[4], a + b, a - b, c + e, c - e, 4.0 * d[1] - 5.0 * d[3] + d[5]);
}

// The 18 columns that 4 tiles cover.
var<private> columns: array<array<f32, 6>, 18>;

// What the lines of a tile need to be found: where the channel begins, the first line and column, whether it exists.
struct Place {
    base: u32,
    top: i32,
    left: i32,
    used: bool,
}

fn load_column(i: i32, place: Place) {
    let sx = source_line(place.left + i, p.in_w);
    for (var j = 0; j < 6; j++) {
        let sy = source_line(place.top + j, p.in_h);
        let at = place.base + u32(max(sy, 0)) * in_row() + u32(max(sx, 0));
        columns[i][j] = select(0.0, x[at / 4u][at % 4u], place.used && sy >= 0 && sx >= 0);
    }
    columns[i] = transform(columns[i]);
}

// Columns `i` to `i + 3`, which begin at a multiple of 4.
fn load_columns(i: i32, place: Place) {
    let sx = place.left + i;
    for (var j = 0; j < 6; j++) {
        let sy = source_line(place.top + j, p.in_h);
        let inside = place.used && sy >= 0 && sx < p.in_w;
        let at = place.base + u32(max(sy, 0)) * in_row() + u32(min(sx, p.in_w - 4));
        let values = select(vec4(0.0), x[at / 4u], inside);
        for (var k = 0; k < 4; k++) {
            columns[i + k][j] = values[k];
        }
    }
    for (var k = 0; k < 4; k++) {
        columns[i + k] = transform(columns[i + k]);
    }
}

// Row `j` of tile `t`, after both transforms.
fn tile_row(j: u32, t: u32) -> array<f32, 6> {
    let i = t * 4u;
    return transform(array(columns[i][j], columns[i + 1u][j], columns[i + 2u][j], columns[i + 3u][j], columns[i + 4u][j], columns[i + 5u][j]));
}

fn store_row(j: u32, at: u32, stride: u32) {
    let a = tile_row(j, 0u);
    let b = tile_row(j, 1u);
    let c = tile_row(j, 2u);
    let d = tile_row(j, 3u);
    for (var i = 0u; i < 6u; i++) {
        transformed[at + (j * 6u + i) * stride] = vec4(a[i], b[i], c[i], d[i]);
    }
}

@compute @workgroup_size(8, 8)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) lane: vec3<u32>) {
    // Invocations past the last channel repeat it, see `quad_of`.
    let channel = min(group.y * 8u + lane.y, p.depth - 1u);
    let quad = quad_of(group.x, lane.x);
    let row = quad / p.row_quads;
    let n = row / p.image_rows;
    let used = channel < p.in_channels;
    let place = Place(
        p.in_offset + n * p.in_batch_stride + select(0u, channel * in_plane(), used),
        i32(row % p.image_rows) * 4 - p.pad_h,
        i32(quad % p.row_quads) * 16 - p.pad_w,
        used,
    );
    load_column(0, place);
    if ALIGNED {
        load_columns(1, place);
        load_columns(5, place);
        load_columns(9, place);
        load_columns(13, place);
    } else {
        load_column(1, place);
        load_column(2, place);
        load_column(3, place);
        load_column(4, place);
        load_column(5, place);
        load_column(6, place);
        load_column(7, place);
        load_column(8, place);
        load_column(9, place);
        load_column(10, place);
        load_column(11, place);
        load_column(12, place);
        load_column(13, place);
        load_column(14, place);
        load_column(15, place);
        load_column(16, place);
    }
    load_column(17, place);
    let stride = (p.depth + 1u) * 8u;
    let at = group.x * 36u * stride + channel * 8u + (quad - p.first_quad) % 8u;
    store_row(0u, at, stride);
    store_row(1u, at, stride);
    store_row(2u, at, stride);
    store_row(3u, at, stride);
    store_row(4u, at, stride);
    store_row(5u, at, stride);
}
