// For kernels that read their input pixel by pixel. Needs the binding `x`.
//#use conv2d_input

// The pixel at column `i` of the padded input, in the row that begins at `base`; 0 if the row is not `used`.
fn pixel(base: u32, used: bool, i: i32) -> f32 {
    let column = source_line(i, p.in_w);
    let value = x[base + u32(max(column, 0))];
    return select(0.0, value, used && column >= 0);
}
