// The columns of a convolution's GEMM: what each output pixel multiplies, one row per input channel and tap.
// Result: columns[blocks][depth + 1][32 pixels]. An invocation gathers 4 neighbouring pixels of a row in 8 channels.
// Workgroups: x over eights of blocks, y over groups of 8 channels: what a workgroup reads of a channel is contiguous.
//#use conv2d

// Whether the kernel has a single tap.
override POINT: bool = false;
// Whether, besides, pixels of a quad are neighbours in the tensor and begin at a multiple of 4.
override ALIGNED: bool = false;

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> columns: array<vec4<f32>>;

// Past the last channel it is repeated, see `quad_of`.
fn channel_of(first: u32, c: u32) -> u32 {
    return min(first + c, p.in_channels - 1u);
}

// Gathers one tap of 8 channels from `first` on, for the quad of output pixels at line `top` and column `left` of the
// padded input; `base` is where the batch item begins, `at` where row 0 of the columns is.
fn gather(tap: vec2<u32>, base: u32, top: i32, left: i32, first: u32, at: u32) {
    let y = source_line(top + i32(tap.y * p.dilation_h), p.in_h);
    let step = i32(p.stride_w);
    let x0 = left + i32(tap.x * p.dilation_w);
    let xs = vec4(
        source_line(x0, p.in_w),
        source_line(x0 + step, p.in_w),
        source_line(x0 + 2 * step, p.in_w),
        source_line(x0 + 3 * step, p.in_w),
    );
    let used = vec4(y >= 0) & (xs >= vec4(0));
    let line = base + u32(max(y, 0)) * in_row();
    let taps = p.kernel_h * p.kernel_w;
    let row = tap.y * p.kernel_w + tap.x;
    let pixels = line + vec4<u32>(max(xs, vec4(0)));
    // All channels' first pixels before their second ones, so that cache misses overlap.
    var values: array<vec4<f32>, 8>;
    if ALIGNED {
        for (var c = 0u; c < 8u; c++) {
            values[c] = x[(pixels.x + channel_of(first, c) * in_plane()) / 4u];
        }
    } else {
        for (var i = 0u; i < 4u; i++) {
            for (var c = 0u; c < 8u; c++) {
                let at = pixels[i] + channel_of(first, c) * in_plane();
                values[c][i] = x[at / 4u][at % 4u];
            }
        }
    }
    for (var c = 0u; c < 8u; c++) {
        columns[at + (channel_of(first, c) * taps + row) * 8u] = select(vec4(0.0), values[c], used);
    }
}

@compute @workgroup_size(8, 8)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) lane: vec3<u32>) {
    let first = group.y * 8u;
    let quad = quad_of(group.x * 8u + lane.y, lane.x);
    let row = quad / p.row_quads;
    let n = row / p.image_rows;
    let top = i32((row % p.image_rows) * p.stride_h) - p.pad_h;
    let left = i32((quad % p.row_quads) * 4u * p.stride_w) - p.pad_w;
    let base = p.in_offset + n * p.in_batch_stride;
    let in_launch = quad - p.first_quad;
    let at = in_launch / 8u * (p.depth + 1u) * 8u + in_launch % 8u;
    // The depth is even: what an odd number of products is filled up with must be finite. Row `depth` is never read.
    let filled = p.in_channels * p.kernel_h * p.kernel_w;
    columns[at + filled * 8u] = vec4(0.0);
    if POINT {
        gather(vec2(0u), base, top, left, first, at);
    } else {
        for (var i = 0u; i < p.kernel_h; i++) {
            for (var j = 0u; j < p.kernel_w; j++) {
                gather(vec2(j, i), base, top, left, first, at);
            }
        }
    }
}
