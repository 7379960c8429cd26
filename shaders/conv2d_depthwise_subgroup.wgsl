// Depthwise convolution by its definition (one input channel and one or two output channels a group), stride and
// dilation 1, for adapters with subgroups of 8 invocations. On llvmpipe, which is such an adapter, a storage load costs
// as much as dozens of multiply-adds. So an invocation computes 4 rows of 16 neighbouring pixels in one output channel,
// where a loaded pixel serves up to 4 rows, and the lanes of a subgroup load different weights and hand them round.
// weight[oc][1][kernel_h][kernel_w].
// Workgroups: x over 64 pixels, y over 64 rows, z over output channels of one batch item after the other.
//#use place
//#use conv2d_pixel
//#use conv2d_epilogue

struct Params {
    grid: vec3<u32>,
//#use conv2d_input_fields
    kernel_h: u32,
    kernel_w: u32,
    weight_offset: u32,
    weight_batch_stride: u32,
    // Output channels of a group.
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

// Weight `j` of the kernel's row that begins at `at`; 0 if the row is not `taken` or has no such weight.
fn taps(at: u32, taken: bool, j: u32) -> f32 {
    return select(0.0, weight[at + j], taken && j < p.kernel_w);
}

// `sum` and the products of four neighbouring weights with four neighbouring pixels: the pixels of the first weight are
// `a`, and `b` are the four to the right of `a`.
fn add(sum: vec4<f32>, t: vec4<f32>, a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    let first = fma(vec4(t.y), vec4(a.yzw, b.x), fma(vec4(t.x), a, sum));
    return fma(vec4(t.w), vec4(a.w, b.xyz), fma(vec4(t.z), vec4(a.zw, b.xy), first));
}

// Pixels `i` to `i + 3` of a row.
fn four(base: u32, used: bool, i: i32) -> vec4<f32> {
    return vec4(pixel(base, used, i), pixel(base, used, i + 1), pixel(base, used, i + 2), pixel(base, used, i + 3));
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) launched: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_invocation_id) in_subgroup: u32,
) {
    let at = place(id, launched);
    if outside(at) {
        return;
    }
    // Lanes beyond the edges repeat the last block: every lane must take part in handing weights round.
    let ox = min(at.x * 4u + lane % 4u, (p.out_w - 1u) / 16u) * 16u;
    let oy = min(at.y * 16u + lane / 4u, (p.out_h - 1u) / 4u) * 4u;
    let oc = at.z % p.out_channels;
    let n = at.z / p.out_channels;
    let left = i32(ox) - p.pad_w;
    let top = i32(oy) - p.pad_h;
    let w = p.weight_offset + oc * p.weight_batch_stride;
    let plane = p.x_offset + n * p.x_batch_stride + oc / p.group_out * in_plane();
    // Sums of 4 rows of 4 times 4 pixels.
//#for R in 0..4
//#for Q in 0..4
    var sum$R$Q = vec4(0.0);
//#end
//#end
    for (var i = 0u; i < p.kernel_h + 3u; i++) {
        let line = source_line(top + i32(i), p.in_h);
        let used = line >= 0;
        let row = plane + u32(max(line, 0)) * in_row();
        // Lanes `r` and `r + 4` have the weights that bring this line to row `r` of the block.
        let r = in_subgroup % 4u;
        let taken = r <= i && i - r < p.kernel_h;
        let first_tap = w + select(0u, i - r, taken) * p.kernel_w;
        var a = four(row, used, left);
        var b = four(row, used, left + 4);
        var c = four(row, used, left + 8);
        var d = four(row, used, left + 12);
        for (var j = 0u; j < p.kernel_w; j += 4u) {
            let e = four(row, used, left + 16 + i32(j));
            // Weights `j` and `j + 2` in the first four lanes, `j + 1` and `j + 3` in the others.
            let t = taps(first_tap, taken, j + in_subgroup / 4u);
            let u = taps(first_tap, taken, j + 2u + in_subgroup / 4u);
//#for R,S in 0,4 1,5 2,6 3,7
            let t$R = vec4(
                subgroupBroadcast(t, $Ru),
                subgroupBroadcast(t, $Su),
                subgroupBroadcast(u, $Ru),
                subgroupBroadcast(u, $Su),
            );
            sum$R0 = add(sum$R0, t$R, a, b);
            sum$R1 = add(sum$R1, t$R, b, c);
            sum$R2 = add(sum$R2, t$R, c, d);
            sum$R3 = add(sum$R3, t$R, d, e);
//#end
            a = b;
            b = c;
            c = d;
            d = e;
        }
    }
    let shift = shift_of(n, oc);
    let to = p.out_offset + n * p.out_batch_stride;
//#for R in 0..4
    if oy + $Ru < p.out_h {
        let spot = (oc * p.out_h + oy + $Ru) * p.out_w + ox;
//#for Q in 0..4
//#for K,I in 0,x 1,y 2,z 3,w
        if ox + $Qu * 4u + $Ku < p.out_w {
            out[to + spot + $Qu * 4u + $Ku] = finish(sum$R$Q.$I + shift, n, spot + $Qu * 4u + $Ku);
        }
//#end
//#end
    }
//#end
}
