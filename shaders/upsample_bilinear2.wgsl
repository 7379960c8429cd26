// Bilinear upsampling by two with aligned corners (PyTorch's align_corners=True); see `shared/upsample.wgsl` for shapes
// and grid. An invocation writes a column of out.
//#use bilinear
//#use upsample

const SCALE = 2u;
const ROWS = 8u;

fn write_column(item: u32, c: u32, column: u32, first: u32, end: u32) {
    let source = p.x_offset + item * p.x_batch_stride + c * p.height * p.width;
    let to = p.out_offset + item * p.out_batch_stride + c * 4u * p.height * p.width + column;
    let h = neighbours(column, p.width);
    for (var row = first; row < end; row++) {
        let v = neighbours(row, p.height);
        let near = source + v.near * p.width;
        let other = source + v.other * p.width;
        let a = mix(x[near + h.near], x[near + h.other], h.weight);
        let b = mix(x[other + h.near], x[other + h.other], h.weight);
        out[to + row * 2u * p.width] = mix(a, b, v.weight);
    }
}
