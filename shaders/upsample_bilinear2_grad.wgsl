// The gradient of bilinear upsampling by two with respect to its input: dy is [batch][channels][2 height][2 width], out
// [batch][channels][height][width]. A pixel of out sums dy over the at most 4 by 4 pixels that it went into, times its
// weight there.
// A workgroup writes 8 rows by 64 columns of one channel of out. Workgroups: x over columns, y over rows, z over the
// channels of all items.
//#use place
//#use bilinear

struct Params {
    grid: vec3<u32>,
    dy_offset: u32,
    dy_batch_stride: u32,
    out_offset: u32,
    out_batch_stride: u32,
    channels: u32,
    // Of out.
    height: u32,
    width: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> dy: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

// The positions on an axis of dy, 2i - 1 to 2i + 2, that pixel i of `len` went into. At the ends of the axis, where
// there are fewer, the nearest position stands in, for which `weights` gives 0.
fn positions(i: u32, len: u32) -> vec4<u32> {
    return min(vec4(max(2u * i, 1u) - 1u, 2u * i, 2u * i + 1u, 2u * i + 2u), vec4(2u * len - 1u));
}

// Pixel i's weights in the pixels at these positions.
fn weights(i: u32, len: u32) -> vec4<f32> {
    let o = positions(i, len);
    return vec4(
        select(0.0, neighbours(o.x, len).weight, i > 0u),
        1.0 - neighbours(o.y, len).weight,
        1.0 - neighbours(o.z, len).weight,
        select(0.0, neighbours(o.w, len).weight, i + 1u < len),
    );
}

// The sum of four elements of a row of dy times their weights. `columns` are their places in row 0, to which `row` is
// added.
fn across(columns: vec4<u32>, row: u32, weight: vec4<f32>) -> f32 {
    let at = columns + row;
    return dot(weight, vec4(dy[at.x], dy[at.y], dy[at.z], dy[at.w]));
}

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
    if column >= p.width {
        return;
    }
    let item = at.z / p.channels;
    let channel = at.z % p.channels;
    let source = p.dy_offset + item * p.dy_batch_stride + channel * 4u * p.height * p.width;
    let to = p.out_offset + item * p.out_batch_stride + channel * p.height * p.width + column;
    let columns = source + positions(column, p.width);
    let right = weights(column, p.width);
    let end = min((at.y + 1u) * 8u, p.height);
    for (var row = at.y * 8u; row < end; row++) {
        let rows = positions(row, p.height) * 2u * p.width;
        let down = weights(row, p.height);
        var sum = down.x * across(columns, rows.x, right);
        sum = fma(down.y, across(columns, rows.y, right), sum);
        sum = fma(down.z, across(columns, rows.z, right), sum);
        sum = fma(down.w, across(columns, rows.w, right), sum);
        out[to + row * p.width] = sum;
    }
}
