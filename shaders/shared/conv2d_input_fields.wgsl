    x_offset: u32,
    x_batch_stride: u32,
    // The size of the input as the convolution sees it; the tensor has half of it if `upsample` is 1.
    in_h: i32,
    in_w: i32,
    upsample: u32,
    // 0: zeros beyond the edges, 1: reflection.
    reflect: u32,
    pad_h: i32,
    pad_w: i32,
