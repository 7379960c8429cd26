// The gradient of bilinear upsampling by two: each pixel gathers the gradients of the 4 by 4 pixels that it went into.
// A workgroup writes a tile of 8 rows by 64 columns of one channel.
//#use bilinear

struct Params {
    dy_offset: u32,
    dy_batch_stride: u32,
    out_offset: u32,
    out_batch_stride: u32,
    batch: u32,
    channels: u32,
    // Of the result.
    height: u32,
    width: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> dy: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

// The output positions 2i - 1 to 2i + 2, to which input i of `len` goes, and its weights there.
fn positions(i: u32, len: u32) -> vec4<u32> {
    return min(vec4(max(2u * i, 1u) - 1u, 2u * i, 2u * i + 1u, 2u * i + 2u), vec4(2u * len - 1u));
}

fn weights(i: u32, len: u32) -> vec4<f32> {
    let o = positions(i, len);
    return vec4(
        select(0.0, neighbours(o.x, len).weight, i > 0u),
        1.0 - neighbours(o.y, len).weight,
        1.0 - neighbours(o.z, len).weight,
        select(0.0, neighbours(o.w, len).weight, i + 1u < len),
    );
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let tiles_x = (p.width + 63u) / 64u;
    let tiles_y = (p.height + 7u) / 8u;
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
    let source = p.dy_offset + item * p.dy_batch_stride + c * 4u * p.height * p.width;
    let to = p.out_offset + item * p.out_batch_stride + c * p.height * p.width + column;
    let columns = source + positions(column, p.width);
    let across = weights(column, p.width);
    let first = (tile / tiles_x) * 8u;
    for (var row = first; row < min(first + 8u, p.height); row++) {
        let rows = positions(row, p.height) * 2u * p.width;
        let down = weights(row, p.height);
        var sum = 0.0;
        for (var i = 0u; i < 4u; i++) {
            let at = columns + rows[i];
            sum = fma(down[i], dot(across, vec4(dy[at.x], dy[at.y], dy[at.z], dy[at.w])), sum);
        }
        out[to + row * p.width] = sum;
    }
}
