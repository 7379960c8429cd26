// The first stage of a convolution as a matrix product (GEMM): writes, for every output pixel, the input pixels that it
// multiplies as a column, with a row for each input channel and tap: columns[blocks][depth + 1][32 pixels].
// An invocation gathers 4 neighbouring pixels of a row in 8 channels.
// Workgroups: x over eights of blocks, y over groups of 8 channels: what a workgroup reads of a channel is contiguous.
//#use place
//#use conv2d_input
//#use conv2d_quads

// Whether the kernel has a single tap.
override POINT: bool = false;
// Whether moreover the 4 pixels of every quad are neighbours in the tensor and begin at a multiple of 4 elements.
override ALIGNED: bool = false;

struct Params {
    grid: vec3<u32>,
//#use conv2d_input_fields
//#use conv2d_window_fields
//#use conv2d_quad_fields
    in_channels: u32,
    // Rows of a column that are used, made even; the layout has one row more, so that what is written together does not
    // fall into the same cache sets.
    depth: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> columns: array<vec4<f32>>;

// Channel `first + c`, or the last one where that is beyond it: repeating costs less than a branch, see `quad_of`.
fn channel_of(first: u32, c: u32) -> u32 {
    return min(first + c, p.in_channels - 1u);
}

fn element(i: u32) -> f32 {
    return x[i / 4u][i % 4u];
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
    // The first pixel of all channels, then the second of all: their cache misses overlap.
//#for C in 0..8
    let plane$C = channel_of(first, $Cu) * in_plane();
    var values$C = vec4(0.0);
//#end
    if ALIGNED {
//#for C in 0..8
        values$C = x[(pixels.x + plane$C) / 4u];
//#end
    } else {
//#for I in x y z w
//#for C in 0..8
        values$C.$I = element(pixels.$I + plane$C);
//#end
//#end
    }
//#for C in 0..8
    columns[at + (channel_of(first, $Cu) * taps + row) * 8u] = select(vec4(0.0), values$C, used);
//#end
}

@compute @workgroup_size(8, 8)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) launched: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let group = place(id, launched);
    if outside(group) {
        return;
    }
    let first = group.y * 8u;
    let quad = quad_of(group.x * 8u + lane.y, lane.x);
    let row = quad / p.row_quads;
    let n = row / p.image_rows;
    let top = i32((row % p.image_rows) * p.stride_h) - p.pad_h;
    let left = i32((quad % p.row_quads) * 4u * p.stride_w) - p.pad_w;
    let base = p.x_offset + n * p.x_batch_stride;
    let in_launch = quad - p.first_quad;
    let at = in_launch / 8u * (p.depth + 1u) * 8u + in_launch % 8u;
    // The products sum an even number of rows. Where the taps are odd in number, the row that fills up must be finite,
    // for the packed weight is zero there. Row `depth` is never read.
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
