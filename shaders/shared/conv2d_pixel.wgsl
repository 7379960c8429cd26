// How kernels that read single pixels see their input. Needs the binding `x`.
//#use conv2d_input

// The pixel of the padded input at column `i` of the row that begins at `base`.
fn pixel(base: u32, used: bool, i: i32) -> f32 {
    let column = source_line(i, p.in_w);
    let value = x[base + u32(max(column, 0))];
    return select(0.0, value, used && column >= 0);
}
