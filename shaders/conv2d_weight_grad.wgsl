// The gradient of a convolution by its weight: sums over pixels, a chunk of them after the other, then over the chunks.
// `tile` computes 32 output channels by 32 taps of a group over a chunk in a workgroup, `element` one element (where
// groups are small), `main` adds up the chunks. partial[chunks][oc][group_in][kernel_h][kernel_w].
// In the parameters the result is the gradient by the result, the weight that by the weight, `depth` the pixels of a
// chunk and `rows` the number of chunks.
//#use conv2d
//#use lanes

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> dy: array<f32>;
@group(0) @binding(3) var<storage, read_write> partial: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;

// 16 pixels of 32 channels or taps; a row has one more, which spreads them over the memory's banks.
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
        p.in_offset + (in_group * p.group_in + k / taps) * in_plane(),
        i32(within / p.kernel_w * p.dilation_h) - p.pad_h,
        i32(within % p.kernel_w * p.dilation_w) - p.pad_w,
    );
}

// What the output pixel (item, line, column) multiplies by a tap.
fn seen(pixel: vec3<u32>, tap: Tap) -> f32 {
    let y = source_line(i32(pixel.y * p.stride_h) + tap.y, p.in_h);
    let column = source_line(i32(pixel.z * p.stride_w) + tap.x, p.in_w);
    let at = tap.plane + pixel.x * p.in_batch_stride + u32(max(y, 0)) * in_row() + u32(max(column, 0));
    return select(0.0, x[at], y >= 0 && column >= 0);
}

fn pixel_of(i: u32) -> vec3<u32> {
    let row = i / p.out_w;
    return vec3(row / p.out_h, row % p.out_h, i % p.out_w);
}

fn read_dy(pixel: vec3<u32>, oc: u32) -> f32 {
    return dy[p.out_offset + pixel.x * p.out_batch_stride + (oc * p.out_h + pixel.y) * p.out_w + pixel.z];
}

@compute @workgroup_size(64)
fn tile(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let item = p.group_in * p.kernel_h * p.kernel_w;
    let k_tiles = (item + 31u) / 32u;
    let oc_tiles = (p.group_out + 31u) / 32u;
    let index = group.y * groups.x + group.x;
    let chunk = index % p.rows;
    let first_k = index / p.rows % k_tiles * 32u;
    let first_oc = index / (p.rows * k_tiles) % oc_tiles * 32u;
    let in_group = index / (p.rows * k_tiles * oc_tiles);
    if in_group * p.group_out >= p.out_channels {
        return;
    }
    // A lane stages one pixel of every fourth channel and tap; past the last one it is repeated.
    let staged = lane % 16u;
    var taps: array<Tap, 8>;
    for (var j = 0u; j < 8u; j++) {
        taps[j] = tap_of(in_group, min(first_k + lane / 16u + 4u * j, item - 1u));
    }
    let rows = lane / 8u * 4u;
    let columns = lane % 8u * 4u;
    var sums: array<vec4<f32>, 4>;
    let end = min((chunk + 1u) * p.depth, p.batch * p.out_h * p.out_w);
    for (var start = chunk * p.depth; start < end; start += 16u) {
        let inside = start + staged < end;
        let pixel = pixel_of(min(start + staged, end - 1u));
        for (var j = 0u; j < 8u; j++) {
            let row = lane / 16u + 4u * j;
            let oc = in_group * p.group_out + min(first_oc + row, p.group_out - 1u);
            xs[staged * 33u + row] = seen(pixel, taps[j]);
            ys[staged * 33u + row] = select(0.0, read_dy(pixel, oc), inside);
        }
        workgroupBarrier();
        for (var k = 0u; k < 16u; k++) {
            let a = k * 33u + rows;
            let b = k * 33u + columns;
            let values = vec4(xs[b], xs[b + 1u], xs[b + 2u], xs[b + 3u]);
            for (var i = 0u; i < 4u; i++) {
                sums[i] = fma(vec4(ys[a + i]), values, sums[i]);
            }
        }
        workgroupBarrier();
    }
    let to = chunk * p.out_channels + in_group * p.group_out;
    for (var i = 0u; i < 4u; i++) {
        for (var j = 0u; j < 4u; j++) {
            let oc = first_oc + rows + i;
            let k = first_k + columns + j;
            if oc < p.group_out && k < item {
                partial[(to + oc) * item + k] = sums[i][j];
            }
        }
    }
}

@compute @workgroup_size(64)
fn element(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let item = p.group_in * p.kernel_h * p.kernel_w;
    let index = group.y * groups.x + group.x;
    let at = index / p.rows;
    if at >= p.out_channels * item {
        return;
    }
    let chunk = index % p.rows;
    let oc = at / item;
    let tap = tap_of(oc / p.group_out, at % item);
    let end = min((chunk + 1u) * p.depth, p.batch * p.out_h * p.out_w);
    var sum = 0.0;
    for (var i = chunk * p.depth + lane; i < end; i += 64u) {
        let pixel = pixel_of(i);
        sum = fma(read_dy(pixel, oc), seen(pixel, tap), sum);
    }
    let all = total(lane, vec2(sum, 0.0)).x;
    if lane == 0u {
        partial[chunk * p.out_channels * item + at] = all;
    }
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let item = p.group_in * p.kernel_h * p.kernel_w;
    let i = (group.y * groups.x + group.x) * 64u + lane;
    let elements = p.out_channels * item;
    if i >= elements {
        return;
    }
    var sum = 0.0;
    for (var chunk = 0u; chunk < p.rows; chunk++) {
        sum += partial[chunk * elements + i];
    }
    out[p.weight_offset + i / item * p.weight_batch_stride + i % item] = sum;
}
