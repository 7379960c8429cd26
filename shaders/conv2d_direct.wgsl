// Convolution by its definition, for few output channels a group.
// An invocation computes 8 neighbouring pixels of a row in 4 output channels of one group.
// weight[groups][tiles of a group][group_in][kernel_h][kernel_w][4].
// Workgroups: x over 64 pixels, y over 8 rows, z over the tiles of output channels of one batch item after the other.
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
    // Input and output channels of a group.
    group_in: u32,
    group_out: u32,
//#use conv2d_output_fields
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> weight: array<vec4<f32>>;
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
    let ox = (at.x * 8u + lane.x) * 8u;
    let oy = at.y * 8u + lane.y;
    if outside(at) || ox >= p.out_w || oy >= p.out_h {
        return;
    }
    let group_tiles = (p.group_out + 3u) / 4u;
    let tiles = group_tiles * (p.out_channels / p.group_out);
    let n = at.z / tiles;
    let tile = at.z % tiles;
    let in_group = tile / group_tiles;
    let first = tile % group_tiles * 4u;
    var w = tile * p.group_in * p.kernel_h * p.kernel_w;
    let step = i32(p.stride_w);
    let left = i32(ox) * step - p.pad_w;
    let top = i32(oy * p.stride_h) - p.pad_h;
    var plane = p.x_offset + n * p.x_batch_stride + in_group * p.group_in * in_plane();
    // Of each pixel the sums of 4 output channels.
//#for K in 0..8
    var sums$K = vec4(0.0);
//#end
    for (var ic = 0u; ic < p.group_in; ic++) {
        for (var i = 0u; i < p.kernel_h; i++) {
            let line = source_line(top + i32(i * p.dilation_h), p.in_h);
            let used = line >= 0;
            let row = plane + u32(max(line, 0)) * in_row();
            // The pixels that the present tap is multiplied with. Where they slide, each tap begins by moving them one
            // to the left, so before the first tap they lie one further on.
//#for K in 0..8
            var pixel$K = 0.0;
//#end
            if SLIDE {
//#for K,L in 0,1 1,2 2,3 3,4 4,5 5,6 6,7
                pixel$L = pixel(row, used, left + $K);
//#end
            }
            for (var j = 0u; j < p.kernel_w; j++) {
                if SLIDE {
//#for K,L in 0,1 1,2 2,3 3,4 4,5 5,6 6,7
                    pixel$K = pixel$L;
//#end
                    pixel7 = pixel(row, used, left + 7 + i32(j));
                } else {
//#for K in 0..8
                    pixel$K = pixel(row, used, left + $K * step + i32(j * p.dilation_w));
//#end
                }
                let taps = weight[w];
//#for K in 0..8
                sums$K = fma(taps, vec4(pixel$K), sums$K);
//#end
                w += 1u;
            }
        }
        plane += in_plane();
    }
    let to = p.out_offset + n * p.out_batch_stride;
//#for C,I in 0u,x 1u,y 2u,z 3u,w
    if first + $C < p.group_out {
        let oc = in_group * p.group_out + first + $C;
        let shift = shift_of(n, oc);
        let spot = (oc * p.out_h + oy) * p.out_w + ox;
//#for K in 0..8
        if ox + $Ku < p.out_w {
            out[to + spot + $Ku] = finish(sums$K.$I + shift, n, spot + $Ku);
        }
//#end
    }
//#end
}
