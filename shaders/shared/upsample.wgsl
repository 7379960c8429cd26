// What the kernels of upsampling by two share: a workgroup writes `ROWS` rows by 64 columns of one channel, in units that
// are pixels of the smaller tensor if `SCALE` is 1, of the larger one if it is 2. Needs both constants and the function
// `write_column`, which writes the rows from `first` to before `end`.

struct Params {
    x_offset: u32,
    x_batch_stride: u32,
    out_offset: u32,
    out_batch_stride: u32,
    batch: u32,
    channels: u32,
    // Of the smaller tensor.
    height: u32,
    width: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let height = SCALE * p.height;
    let width = SCALE * p.width;
    let tiles_x = (width + 63u) / 64u;
    let tiles_y = (height + ROWS - 1u) / ROWS;
    let index = group.y * groups.x + group.x;
    let plane = index / (tiles_x * tiles_y);
    let tile = index % (tiles_x * tiles_y);
    let column = (tile % tiles_x) * 64u + lane;
    if plane < p.batch * p.channels && column < width {
        let first = (tile / tiles_x) * ROWS;
        write_column(plane / p.channels, plane % p.channels, column, first, min(first + ROWS, height));
    }
}
