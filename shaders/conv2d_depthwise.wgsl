// Convolution by its definition, for one or two output channels a group, such as depthwise ones.
// An invocation computes 16 neighbouring pixels of a row in one output channel. weight[oc][group_in][kernel_h][kernel_w].
// Workgroups: x over 128 pixels, y over 8 rows, z over output channels of one batch item after the other.
//#use activation
//#use conv2d
//#use conv2d_pixel
//#use conv2d_epilogue

// Whether stride and dilation along rows are 1: neighbouring taps then share all but one pixel.
override SLIDE: bool = true;

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read> channel_add: array<f32>;
@group(0) @binding(5) var<storage, read> residual: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(8, 8)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) lane: vec3<u32>) {
    let ox = (group.x * 8u + lane.x) * 16u;
    let oy = group.y * 8u + lane.y;
    let oc = group.z % p.out_channels;
    let n = group.z / p.out_channels;
    if ox >= p.out_w || oy >= p.out_h {
        return;
    }
    var w = p.weight_offset + oc * p.weight_batch_stride;
    let step = i32(p.stride_w);
    let left = i32(ox) * step - p.pad_w;
    let top = i32(oy * p.stride_h) - p.pad_h;
    var plane = p.in_offset + n * p.in_batch_stride + oc / p.group_out * p.group_in * in_plane();
    var sums: array<f32, 16>;
    for (var ic = 0u; ic < p.group_in; ic++) {
        for (var i = 0u; i < p.kernel_h; i++) {
            let line = source_line(top + i32(i * p.dilation_h), p.in_h);
            let used = line >= 0;
            let row = plane + u32(max(line, 0)) * in_row();
            var window: array<f32, 16>;
            if SLIDE {
                for (var k = 0; k < 15; k++) {
                    window[k + 1] = pixel(row, used, left + k);
                }
            }
            for (var j = 0u; j < p.kernel_w; j++) {
                if SLIDE {
                    for (var k = 0; k < 15; k++) {
                        window[k] = window[k + 1];
                    }
                    window[15] = pixel(row, used, left + 15 + i32(j));
                } else {
                    for (var k = 0; k < 16; k++) {
                        window[k] = pixel(row, used, left + k * step + i32(j * p.dilation_w));
                    }
                }
                let tap = weight[w];
                for (var k = 0; k < 16; k++) {
                    sums[k] = fma(tap, window[k], sums[k]);
                }
                w += 1u;
            }
        }
        plane += in_plane();
    }
    let shift = shift_of(n, oc);
    let to = p.out_offset + n * p.out_batch_stride;
    let at = (oc * p.out_h + oy) * p.out_w + ox;
    for (var k = 0u; k < 16u; k++) {
        if ox + k < p.out_w {
            out[to + at + k] = finish(sums[k] + shift, n, at + k);
        }
    }
}
