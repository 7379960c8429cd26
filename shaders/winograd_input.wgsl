// Winograd F(4x4, 3x3), first stage: transforms the tiles of the input (B^T d B in Lavin and Gray 2016). A tile is 6x6
// pixels and yields 4x4 outputs.
// An invocation transforms 4 neighbouring tiles of one channel, a quad; 8 invocations fill one block of 32 tiles. The
// tiles of a row are filled up to whole quads. Result: transformed[blocks][36][depth + 1][32 tiles]. The row too many
// keeps the 36 streams that an invocation writes from falling into the same cache sets.
// Workgroups: x over blocks, y over groups of 8 channels.
//#use place
//#use conv2d_input
//#use conv2d_quads

// Whether rows of the tensor begin at multiples of 4 elements and one column of zeros is padded on each side.
override ALIGNED: bool = false;

struct Params {
    grid: vec3<u32>,
//#use conv2d_input_fields
//#use conv2d_quad_fields
    in_channels: u32,
    // Channels, made even.
    depth: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> transformed: array<vec4<f32>>;

// A column of a tile, or its product with B^T: the values at the points 0, 1, -1, 2, -2 and infinity.
struct Six {
    a: f32,
    b: f32,
    c: f32,
    d: f32,
    e: f32,
    f: f32,
}

fn transform(v: Six) -> Six {
    let a = v.e - 4.0 * v.c;
    let b = v.d - 4.0 * v.b;
    let c = v.e - v.c;
    let e = 2.0 * (v.d - v.b);
    return Six(4.0 * v.a - 5.0 * v.c + v.e, a + b, a - b, c + e, c - e, 4.0 * v.b - 5.0 * v.d + v.f);
}

// A quad of tiles: where its channel begins, its first line and column in the padded input, and whether it exists.
struct Tile {
    base: u32,
    top: i32,
    left: i32,
    used: bool,
}

fn pixel(tile: Tile, j: i32, sx: i32) -> f32 {
    let sy = source_line(tile.top + j, p.in_h);
    let at = tile.base + u32(max(sy, 0)) * in_row() + u32(max(sx, 0));
    return select(0.0, x[at / 4u][at % 4u], tile.used && sy >= 0 && sx >= 0);
}

// Column `i` of the 18 that the tiles of a quad cover, transformed.
fn column(tile: Tile, i: i32) -> Six {
    let sx = source_line(tile.left + i, p.in_w);
    return transform(Six(
        pixel(tile, 0, sx),
        pixel(tile, 1, sx),
        pixel(tile, 2, sx),
        pixel(tile, 3, sx),
        pixel(tile, 4, sx),
        pixel(tile, 5, sx),
    ));
}

// Line `j` of four columns from `sx` on, which begin at a multiple of 4.
fn four_pixels(tile: Tile, j: i32, sx: i32) -> vec4<f32> {
    let sy = source_line(tile.top + j, p.in_h);
    let inside = tile.used && sy >= 0 && sx < p.in_w;
    let at = tile.base + u32(max(sy, 0)) * in_row() + u32(min(sx, p.in_w - 4));
    return select(vec4(0.0), x[at / 4u], inside);
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
    let channel = min(group.y * 8u + lane.y, p.depth - 1u);
    let quad = quad_of(group.x, lane.x);
    let row = quad / p.row_quads;
    let n = row / p.image_rows;
    let used = channel < p.in_channels;
    let tile = Tile(
        p.x_offset + n * p.x_batch_stride + select(0u, channel * in_plane(), used),
        i32(row % p.image_rows) * 4 - p.pad_h,
        i32(quad % p.row_quads) * 16 - p.pad_w,
        used,
    );
    // The 18 columns that 4 tiles cover.
//#for I in 0 1 2 3 4 5 6 7 8 9 A B C D E F G H
    var column$I: Six;
//#end
    column0 = column(tile, 0);
    if ALIGNED {
//#for I,P,Q,R,S in 1,1,2,3,4 5,5,6,7,8 9,9,A,B,C 13,D,E,F,G
//#for J in 0..6
        let lines$J$P = four_pixels(tile, $J, tile.left + $I);
//#end
//#for K,C in $P,x $Q,y $R,z $S,w
        column$K = transform(Six(lines0$P.$C, lines1$P.$C, lines2$P.$C, lines3$P.$C, lines4$P.$C, lines5$P.$C));
//#end
//#end
    } else {
//#for I,K in 1,1 2,2 3,3 4,4 5,5 6,6 7,7 8,8 9,9 10,A 11,B 12,C 13,D 14,E 15,F 16,G
        column$K = column(tile, $I);
//#end
    }
    columnH = column(tile, 17);
    let stride = (p.depth + 1u) * 8u;
    let to = group.x * 36u * stride + channel * 8u + (quad - p.first_quad) % 8u;
    // Row by row of the transformed tiles.
//#for J,L in 0u,a 1u,b 2u,c 3u,d 4u,e 5u,f
//#for T,A,B,C,D,E,F in 0,0,1,2,3,4,5 1,4,5,6,7,8,9 2,8,9,A,B,C,D 3,C,D,E,F,G,H
    let tile$T$L = transform(Six(column$A.$L, column$B.$L, column$C.$L, column$D.$L, column$E.$L, column$F.$L));
//#end
//#for I,M in 0u,a 1u,b 2u,c 3u,d 4u,e 5u,f
    transformed[to + ($J * 6u + $I) * stride] = vec4(tile0$L.$M, tile1$L.$M, tile2$L.$M, tile3$L.$M);
//#end
//#end
}
