// Nearest upsampling by two. A workgroup writes a tile of 8 rows by 128 columns of one channel, a lane 2 columns at once.

struct Params {
    x_offset: u32,
    x_batch_stride: u32,
    out_offset: u32,
    out_batch_stride: u32,
    batch: u32,
    channels: u32,
    // Of the input.
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
    let tiles_x = (p.width + 63u) / 64u;
    let tiles_y = (p.height + 3u) / 4u;
    let index = group.y * groups.x + group.x;
    let plane = index / (tiles_x * tiles_y);
    if plane >= p.batch * p.channels {
        return;
    }
    let tile = index % (tiles_x * tiles_y);
    let item = plane / p.channels;
    let c = plane % p.channels;
    let column = (tile % tiles_x) * 64u + lane;
    if column >= p.width {
        return;
    }
    let source = p.x_offset + item * p.x_batch_stride + c * p.height * p.width + column;
    let to = p.out_offset + item * p.out_batch_stride + c * p.height * p.width * 4u + 2u * column;
    let first = (tile / tiles_x) * 4u;
    for (var row = first; row < min(first + 4u, p.height); row++) {
        let v = x[source + row * p.width];
        let above = to + row * p.width * 4u;
        out[above] = v;
        out[above + 1u] = v;
        out[above + p.width * 2u] = v;
        out[above + p.width * 2u + 1u] = v;
    }
}
