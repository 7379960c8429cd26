// Convolution by its definition, with its epilogue. An invocation computes one output pixel of one channel;
// workgroups: x over pixels, y over output channels, z over the batch.
//#use activation

struct Params {
    x_offset: u32, x_batch_stride: u32,
    weight_offset: u32, weight_batch_stride: u32,
    residual_offset: u32, residual_batch_stride: u32,
    out_offset: u32, out_batch_stride: u32,
    bias_offset: u32, add_offset: u32, add_stride: u32,
    // Bits: 1 bias, 2 channel_add, 4 residual.
    parts: u32,
    group_in: u32, height: u32, width: u32,
    out_channels: u32, out_height: u32, out_width: u32,
    kernel_h: u32, kernel_w: u32,
    stride_h: u32, stride_w: u32,
    pad_h: u32, pad_w: u32,
    dilation_h: u32, dilation_w: u32,
    group_out: u32, reflect: u32, upsample: u32,
    activation: u32, slope: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read> channel_add: array<f32>;
@group(0) @binding(5) var<storage, read> residual: array<f32>;
@group(0) @binding(6) var<storage, read_write> out: array<f32>;

// The input line that tap position i of n lines reads, or -1 in the zero padding.
fn line(i: i32, n: i32) -> i32 {
    if i >= 0 && i < n { return i; }
    if p.reflect == 0u { return -1; }
    return select(2 * (n - 1) - i, -i, i < 0);
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let oc = group.y;
    let plane = p.height * p.width;
    let height = i32(p.height << p.upsample);
    let width = i32(p.width << p.upsample);
    let x_base = p.x_offset + group.z * p.x_batch_stride + oc / p.group_out * p.group_in * plane;
    let w_base = p.weight_offset + oc * p.weight_batch_stride;
    let out_plane = p.out_height * p.out_width;
    for (var pixel = group.x * 64u + lane; pixel < out_plane; pixel += groups.x * 64u) {
        let oy = i32(pixel / p.out_width);
        let ox = i32(pixel % p.out_width);
        var sum = 0.0;
        for (var kh = 0u; kh < p.kernel_h; kh++) {
            let y = line(oy * i32(p.stride_h) + i32(kh * p.dilation_h) - i32(p.pad_h), height);
            if y < 0 { continue; }
            for (var kw = 0u; kw < p.kernel_w; kw++) {
                let col = line(ox * i32(p.stride_w) + i32(kw * p.dilation_w) - i32(p.pad_w), width);
                if col < 0 { continue; }
                let at = x_base + (u32(y) >> p.upsample) * p.width + (u32(col) >> p.upsample);
                let tap = w_base + kh * p.kernel_w + kw;
                for (var ic = 0u; ic < p.group_in; ic++) {
                    sum = fma(weight[tap + ic * p.kernel_h * p.kernel_w], x[at + ic * plane], sum);
                }
            }
        }
        if (p.parts & 1u) != 0u { sum += bias[p.bias_offset + oc]; }
        if (p.parts & 2u) != 0u { sum += channel_add[p.add_offset + group.z * p.add_stride + oc]; }
        let inner = oc * out_plane + pixel;
        if (p.parts & 4u) != 0u { sum += residual[p.residual_offset + group.z * p.residual_batch_stride + inner]; }
        out[p.out_offset + group.z * p.out_batch_stride + inner] = activate(p.activation, p.slope, sum);
    }
}
