// The gradient of a convolution with respect to its weight:
// dW[o, i, ky, kx] = sum over n, y, x of dy[n, o, y, x] * x[n, i, y * stride + ky * dilation - pad, ...].
// The pixels (n, y, x) are summed a chunk after the other, then the chunks.
// tile: a workgroup computes 32 output channels by 32 taps of a group over a chunk.
// element: a workgroup computes one element over a chunk, where groups are small.
// main: an invocation adds up the chunks of one element. partial[chunks][oc][group_in][kernel_h][kernel_w].
// Workgroups of tile: x over chunks, y over taps, z over output channels of one group after the other; of element: x
// over chunks, y over elements; of main: x over elements.
//#use place
//#use conv2d_input
//#use lanes

struct Params {
    grid: vec3<u32>,
//#use conv2d_input_fields
//#use conv2d_window_fields
    // Input and output channels of a group.
    group_in: u32,
    group_out: u32,
    dy_offset: u32,
    dy_batch_stride: u32,
    batch: u32,
    out_channels: u32,
    out_h: u32,
    out_w: u32,
    out_offset: u32,
    out_batch_stride: u32,
    // Pixels of a chunk, and how many chunks there are.
    chunk_len: u32,
    chunks: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> dy: array<f32>;
@group(0) @binding(3) var<storage, read_write> partial: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;

// 16 pixels of 32 channels or taps. Rows are 33 elements apart, not 32, so that they begin in different banks of the
// memory.
var<workgroup> xs: array<f32, 528>;
var<workgroup> ys: array<f32, 528>;

// An input channel and a tap.
struct Tap {
    plane: u32,
    y: i32,
    x: i32,
}

fn tap_of(in_group: u32, k: u32) -> Tap {
    let taps = p.kernel_h * p.kernel_w;
    let within = k % taps;
    return Tap(
        p.x_offset + (in_group * p.group_in + k / taps) * in_plane(),
        i32(within / p.kernel_w * p.dilation_h) - p.pad_h,
        i32(within % p.kernel_w * p.dilation_w) - p.pad_w,
    );
}

// The input pixel that output pixel (item, line, column) multiplies with the weight of a tap.
fn seen(pixel: vec3<u32>, tap: Tap) -> f32 {
    let y = source_line(i32(pixel.y * p.stride_h) + tap.y, p.in_h);
    let column = source_line(i32(pixel.z * p.stride_w) + tap.x, p.in_w);
    let at = tap.plane + pixel.x * p.x_batch_stride + u32(max(y, 0)) * in_row() + u32(max(column, 0));
    return select(0.0, x[at], y >= 0 && column >= 0);
}

fn pixel_of(i: u32) -> vec3<u32> {
    let row = i / p.out_w;
    return vec3(row / p.out_h, row % p.out_h, i % p.out_w);
}

fn read_dy(pixel: vec3<u32>, oc: u32) -> f32 {
    return dy[p.dy_offset + pixel.x * p.dy_batch_stride + (oc * p.out_h + pixel.y) * p.out_w + pixel.z];
}

@compute @workgroup_size(64)
fn tile(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) launched: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = place(id, launched);
    if outside(at) {
        return;
    }
    let item = p.group_in * p.kernel_h * p.kernel_w;
    let oc_tiles = (p.group_out + 31u) / 32u;
    let chunk = at.x;
    let first_k = at.y * 32u;
    let first_oc = at.z % oc_tiles * 32u;
    let in_group = at.z / oc_tiles;
    // Each lane copies one pixel of every fourth channel and tap into workgroup memory; channels and taps beyond the
    // last repeat it.
    let staged = lane % 16u;
//#for J in 0..8
    let tap$J = tap_of(in_group, min(first_k + lane / 16u + 4u * $Ju, item - 1u));
//#end
    let rows = lane / 8u * 4u;
    let columns = lane % 8u * 4u;
//#for I in 0..4
    var sums$I = vec4(0.0);
//#end
    let end = min((chunk + 1u) * p.chunk_len, p.batch * p.out_h * p.out_w);
    for (var start = chunk * p.chunk_len; start < end; start += 16u) {
        let inside = start + staged < end;
        let pixel = pixel_of(min(start + staged, end - 1u));
//#for J in 0..8
        let row$J = lane / 16u + 4u * $Ju;
        let oc$J = in_group * p.group_out + min(first_oc + row$J, p.group_out - 1u);
        xs[staged * 33u + row$J] = seen(pixel, tap$J);
        ys[staged * 33u + row$J] = select(0.0, read_dy(pixel, oc$J), inside);
//#end
        workgroupBarrier();
        for (var k = 0u; k < 16u; k++) {
            let a = k * 33u + rows;
            let b = k * 33u + columns;
            let values = vec4(xs[b], xs[b + 1u], xs[b + 2u], xs[b + 3u]);
//#for I in 0..4
            sums$I = fma(vec4(ys[a + $Iu]), values, sums$I);
//#end
        }
        workgroupBarrier();
    }
    let to = chunk * p.out_channels + in_group * p.group_out;
//#for I in 0..4
//#for J,C in 0u,x 1u,y 2u,z 3u,w
    if first_oc + rows + $Iu < p.group_out && first_k + columns + $J < item {
        partial[(to + first_oc + rows + $Iu) * item + first_k + columns + $J] = sums$I.$C;
    }
//#end
//#end
}

@compute @workgroup_size(64)
fn element(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) launched: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = place(id, launched);
    if outside(at) {
        return;
    }
    let item = p.group_in * p.kernel_h * p.kernel_w;
    let chunk = at.x;
    let oc = at.y / item;
    let tap = tap_of(oc / p.group_out, at.y % item);
    let end = min((chunk + 1u) * p.chunk_len, p.batch * p.out_h * p.out_w);
    var sum = 0.0;
    for (var i = chunk * p.chunk_len + lane; i < end; i += 64u) {
        let pixel = pixel_of(i);
        sum = fma(read_dy(pixel, oc), seen(pixel, tap), sum);
    }
    let all = total(lane, vec2(sum, 0.0)).x;
    if lane == 0u {
        partial[chunk * p.out_channels * item + at.y] = all;
    }
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) launched: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = place(id, launched);
    let item = p.group_in * p.kernel_h * p.kernel_w;
    let elements = p.out_channels * item;
    let i = at.x * 64u + lane;
    if outside(at) || i >= elements {
        return;
    }
    var sum = 0.0;
    for (var chunk = 0u; chunk < p.chunks; chunk++) {
        sum += partial[chunk * elements + i];
    }
    out[p.out_offset + i / item * p.out_batch_stride + i % item] = sum;
}
