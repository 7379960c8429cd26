// Convolution by its definition, for few output channels a group.
// An invocation computes 8 neighbouring pixels of a row in 4 output channels of one group.
// weight[groups][tiles of a group][group_in][kernel_h][kernel_w][4]. Workgroups: x over 64 pixels, y over 8 rows,
// z over the tiles of output channels of one batch item after the other.
//#use activation
//#use conv2d
//#use conv2d_pixel
//#use conv2d_epilogue

// Whether stride and dilation along rows are 1: neighbouring taps then share all but one pixel.
override SLIDE: bool = true;

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read> channel_add: array<f32>;
@group(0) @binding(5) var<storage, read> residual: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(8, 8)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) lane: vec3<u32>) {
    let ox = (group.x * 8u + lane.x) * 8u;
    let oy = group.y * 8u + lane.y;
    let group_tiles = (p.group_out + 3u) / 4u;
    let tiles = group_tiles * (p.out_channels / p.group_out);
    let n = group.z / tiles;
    let tile = group.z % tiles;
    let in_group = tile / group_tiles;
    let first = tile % group_tiles * 4u;
    if ox >= p.out_w || oy >= p.out_h {
        return;
    }
    var w = tile * p.group_in * p.kernel_h * p.kernel_w;
    let step = i32(p.stride_w);
    let left = i32(ox) * step - p.pad_w;
    let top = i32(oy * p.stride_h) - p.pad_h;
    var plane = p.in_offset + n * p.in_batch_stride + in_group * p.group_in * in_plane();
    var sums: array<vec4<f32>, 8>;
    for (var ic = 0u; ic < p.group_in; ic++) {
        for (var i = 0u; i < p.kernel_h; i++) {
            let line = source_line(top + i32(i * p.dilation_h), p.in_h);
            let used = line >= 0;
            let row = plane + u32(max(line, 0)) * in_row();
            var window: array<f32, 8>;
            if SLIDE {
                for (var k = 0; k < 7; k++) {
                    window[k + 1] = pixel(row, used, left + k);
                }
            }
            for (var j = 0u; j < p.kernel_w; j++) {
                if SLIDE {
                    for (var k = 0; k < 7; k++) {
                        window[k] = window[k + 1];
                    }
                    window[7] = pixel(row, used, left + 7 + i32(j));
                } else {
                    for (var k = 0; k < 8; k++) {
                        window[k] = pixel(row, used, left + k * step + i32(j * p.dilation_w));
                    }
                }
                let taps = weight[w];
                for (var k = 0; k < 8; k++) {
                    sums[k] = fma(taps, vec4(window[k]), sums[k]);
                }
                w += 1u;
            }
        }
        plane += in_plane();
    }
    let to = p.out_offset + n * p.out_batch_stride;
    for (var c = 0u; c < 4u; c++) {
        if first + c < p.group_out {
            let oc = in_group * p.group_out + first + c;
            let shift = shift_of(n, oc);
            let at = (oc * p.out_h + oy) * p.out_w + ox;
            for (var k = 0u; k < 8u; k++) {
                if ox + k < p.out_w {
                    out[to + at + k] = finish(sums[k][c] + shift, n, at + k);
                }
            }
        }
    }
}
