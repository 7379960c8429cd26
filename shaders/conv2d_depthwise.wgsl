// Convolution by its definition, for one or two output channels a group, such as depthwise ones.
// An invocation computes 16 neighbouring pixels of a row in one output channel.
// weight[oc][group_in][kernel_h][kernel_w].
// Workgroups: x over 128 pixels, y over 8 rows, z over output channels of one batch item after the other.
//#use place
//#use conv2d_pixel
//#use conv2d_epilogue

// Whether stride and dilation along rows are 1. Neighbouring taps then read all but one pixel in common, so pixels
// slide through registers and each tap loads one.
override SLIDE: bool = true;

struct Params {
    grid: vec3<u32>,
//#use conv2d_input_fields
//#use conv2d_window_fields
    weight_offset: u32,
    weight_batch_stride: u32,
    // Input and output channels of a group.
    group_in: u32,
    group_out: u32,
//#use conv2d_output_fields
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read> channel_add: array<f32>;
@group(0) @binding(5) var<storage, read> residual: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(8, 8)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) launched: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let at = place(id, launched);
    let ox = (at.x * 8u + lane.x) * 16u;
    let oy = at.y * 8u + lane.y;
    if outside(at) || ox >= p.out_w || oy >= p.out_h {
        return;
    }
    let oc = at.z % p.out_channels;
    let n = at.z / p.out_channels;
    var w = p.weight_offset + oc * p.weight_batch_stride;
    let step = i32(p.stride_w);
    let left = i32(ox) * step - p.pad_w;
    let top = i32(oy * p.stride_h) - p.pad_h;
    var plane = p.x_offset + n * p.x_batch_stride + oc / p.group_out * p.group_in * in_plane();
//#for K in 0 1 2 3 4 5 6 7 8 9 A B C D E F
    var sum$K = 0.0;
//#end
    for (var ic = 0u; ic < p.group_in; ic++) {
        for (var i = 0u; i < p.kernel_h; i++) {
            let line = source_line(top + i32(i * p.dilation_h), p.in_h);
            let used = line >= 0;
            let row = plane + u32(max(line, 0)) * in_row();
            // The pixels that the present tap is multiplied with. Where they slide, each tap begins by moving them one
            // to the left, so before the first tap they lie one further on.
            var pixel0 = 0.0;
//#for K,L in 0,1 1,2 2,3 3,4 4,5 5,6 6,7 7,8 8,9 9,A 10,B 11,C 12,D 13,E 14,F
            var pixel$L = 0.0;
            if SLIDE {
                pixel$L = pixel(row, used, left + $K);
            }
//#end
            for (var j = 0u; j < p.kernel_w; j++) {
                if SLIDE {
//#for K,L in 0,1 1,2 2,3 3,4 4,5 5,6 6,7 7,8 8,9 9,A A,B B,C C,D D,E E,F
                    pixel$K = pixel$L;
//#end
                    pixelF = pixel(row, used, left + 15 + i32(j));
                } else {
//#for K,L in 0,0 1,1 2,2 3,3 4,4 5,5 6,6 7,7 8,8 9,9 10,A 11,B 12,C 13,D 14,E 15,F
                    pixel$L = pixel(row, used, left + $K * step + i32(j * p.dilation_w));
//#end
                }
                let tap = weight[w];
//#for K in 0 1 2 3 4 5 6 7 8 9 A B C D E F
                sum$K = fma(tap, pixel$K, sum$K);
//#end
                w += 1u;
            }
        }
        plane += in_plane();
    }
    let shift = shift_of(n, oc);
    let to = p.out_offset + n * p.out_batch_stride;
    let spot = (oc * p.out_h + oy) * p.out_w + ox;
//#for K,L in 0u,0 1u,1 2u,2 3u,3 4u,4 5u,5 6u,6 7u,7 8u,8 9u,9 10u,A 11u,B 12u,C 13u,D 14u,E 15u,F
    if ox + $K < p.out_w {
        out[to + spot + $K] = finish(sum$L + shift, n, spot + $K);
    }
//#end
}
