// Bilinear upsampling by two with aligned corners. A workgroup writes a tile of 8 rows by 64 columns of one channel.
//#use bilinear

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
    let width = 2u * p.width;
    let height = 2u * p.height;
    let tiles_x = (width + 63u) / 64u;
    let tiles_y = (height + 7u) / 8u;
    let index = group.y * groups.x + group.x;
    let plane = index / (tiles_x * tiles_y);
    if plane >= p.batch * p.channels {
        return;
    }
    let tile = index % (tiles_x * tiles_y);
    let item = plane / p.channels;
    let c = plane % p.channels;
    let column = (tile % tiles_x) * 64u + lane;
    if column >= width {
        return;
    }
    let source = p.x_offset + item * p.x_batch_stride + c * p.height * p.width;
    let to = p.out_offset + item * p.out_batch_stride + c * height * width + column;
    let h = neighbours(column, p.width);
    let first = (tile / tiles_x) * 8u;
    for (var row = first; row < min(first + 8u, height); row++) {
        let v = neighbours(row, p.height);
        let near = source + v.near * p.width;
        let other = source + v.other * p.width;
        let a = mix(x[near + h.near], x[near + h.other], h.weight);
        let b = mix(x[other + h.near], x[other + h.other], h.weight);
        out[to + row * width] = mix(a, b, v.weight);
    }
}
