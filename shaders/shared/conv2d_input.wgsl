// How a convolution reads its input, padded and perhaps upsampled by two.
// x is [n][channels][in_h >> upsample][in_w >> upsample]. Needs the fields of `conv2d_input_fields` in `Params`.

// The line (or column) of the tensor that line `i` of the padded input is read from; -1 where it is zeros. `i` counts
// from the first line that is no padding, `size` is the number of those.
fn source_line(i: i32, size: i32) -> i32 {
    let last = size - 1;
    let reflected = abs(last - abs(last - abs(i)));
    let outside = select(-1, reflected, p.reflect != 0u);
    return select(outside, i, i >= 0 && i < size) >> p.upsample;
}

// Elements of a row and of a channel of the input tensor.
fn in_row() -> u32 {
    return u32(p.in_w) >> p.upsample;
}

fn in_plane() -> u32 {
    return in_row() * (u32(p.in_h) >> p.upsample);
}
