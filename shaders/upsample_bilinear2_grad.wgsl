// The gradient of bilinear upsampling by two: each pixel gathers the gradients of the 4 by 4 pixels that it went into.
// x is the gradient by the larger tensor.
//#use bilinear
//#use upsample

const SCALE = 1u;
const ROWS = 8u;

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

fn write_column(item: u32, c: u32, column: u32, first: u32, end: u32) {
    let source = p.x_offset + item * p.x_batch_stride + c * 4u * p.height * p.width;
    let to = p.out_offset + item * p.out_batch_stride + c * p.height * p.width + column;
    let columns = source + positions(column, p.width);
    let across = weights(column, p.width);
    for (var row = first; row < end; row++) {
        let rows = positions(row, p.height) * 2u * p.width;
        let down = weights(row, p.height);
        var sum = 0.0;
        for (var i = 0u; i < 4u; i++) {
            let at = columns + rows[i];
            sum = fma(down[i], dot(across, vec4(x[at.x], x[at.y], x[at.z], x[at.w])), sum);
        }
        out[to + row * p.width] = sum;
    }
}
