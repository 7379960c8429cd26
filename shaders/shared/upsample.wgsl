// The parameters and the entry point of both upsamplings by two: x is [batch][channels][height][width], out is
// [batch][channels][2 height][2 width].
// A workgroup writes what belongs to ROWS rows by 64 columns of one channel, counted in pixels of x if SCALE is 1 and
// of out if it is 2. Workgroups: x over columns, y over rows, z over the channels of all items. The including file
// defines both constants and the function `write_column`, which is given a column and its rows from `first` to before
// `end`.
//#use place

struct Params {
    grid: vec3<u32>,
    x_offset: u32,
    x_batch_stride: u32,
    out_offset: u32,
    out_batch_stride: u32,
    channels: u32,
    // Of x.
    height: u32,
    width: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) launched: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = place(id, launched);
    if outside(at) {
        return;
    }
    let column = at.x * 64u + lane;
    if column < SCALE * p.width {
        let first = at.y * ROWS;
        write_column(at.z / p.channels, at.z % p.channels, column, first, min(first + ROWS, SCALE * p.height));
    }
}
