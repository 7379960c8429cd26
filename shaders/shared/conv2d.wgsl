// What the kernels of a convolution share: its parameters, how it sees its input, what it does to its sums.
// Needs `activation`.

// The activation's number and its slope.
override ACTIVATION: u32 = 0u;
override SLOPE: f32 = 0.0;

struct Params {
    in_offset: u32,
    in_batch_stride: u32,
    // The size of the input as the kernel sees it; the tensor has half of it if `upsample` is 1.
    in_h: i32,
    in_w: i32,
    upsample: u32,
    // 0: zeros beyond the edges, 1: reflection.
    reflect: u32,
    in_channels: u32,
    kernel_h: u32,
    kernel_w: u32,
    stride_h: u32,
    stride_w: u32,
    pad_h: i32,
    pad_w: i32,
    dilation_h: u32,
    dilation_w: u32,
    // Input and output channels of a group.
    group_in: u32,
    group_out: u32,
    out_offset: u32,
    out_batch_stride: u32,
    batch: u32,
    out_channels: u32,
    out_h: u32,
    out_w: u32,
    // Bits: 1 bias, 2 channel add.
    parts: u32,
    bias_offset: u32,
    add_offset: u32,
    add_batch_stride: u32,
    residual_offset: u32,
    residual_batch_stride: u32,
    weight_offset: u32,
    weight_batch_stride: u32,
    // Rows of the GEMM's operands, without the one that keeps apart what is written together.
    depth: u32,
    rows: u32,
    // Quads (4 neighbours, pixels or tiles) in a row, rows in an image, the first quad of this launch and all quads.
    row_quads: u32,
    image_rows: u32,
    first_quad: u32,
    quads: u32,
}

// Line `i` of the padded input, as a line of the tensor; -1 stands for zeros. `size` is that of the unpadded input.
fn source_line(i: i32, size: i32) -> i32 {
    let last = size - 1;
    let reflected = abs(last - abs(last - abs(i)));
    let outside = select(-1, reflected, p.reflect != 0u);
    return select(outside, i, i >= 0 && i < size) >> p.upsample;
}

// The quad of a lane in a block. Lanes past the end repeat the last quad: they store the same values to the same place,
// which costs llvmpipe less than a branch.
fn quad_of(block: u32, lane: u32) -> u32 {
    return min(p.first_quad + block * 8u + lane, p.quads - 1u);
}

// Elements of a row and of a channel of the input tensor.
fn in_row() -> u32 {
    return u32(p.in_w) >> p.upsample;
}

fn in_plane() -> u32 {
    return in_row() * (u32(p.in_h) >> p.upsample);
}
