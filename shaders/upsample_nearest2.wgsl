// Nearest upsampling by two: each pixel of x becomes 2 by 2 of out; see `shared/upsample.wgsl` for shapes and grid. An
// invocation reads a column of x's pixels and writes two columns of out.
//#use upsample

const SCALE = 1u;
const ROWS = 4u;

fn write_column(item: u32, c: u32, column: u32, first: u32, end: u32) {
    let source = p.x_offset + item * p.x_batch_stride + c * p.height * p.width + column;
    let to = p.out_offset + item * p.out_batch_stride + c * p.height * p.width * 4u + 2u * column;
    for (var row = first; row < end; row++) {
        let v = x[source + row * p.width];
        let above = to + row * p.width * 4u;
        out[above] = v;
        out[above + 1u] = v;
        out[above + p.width * 2u] = v;
        out[above + p.width * 2u + 1u] = v;
    }
}
