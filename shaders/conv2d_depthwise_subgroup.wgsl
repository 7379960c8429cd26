// Depthwise convolution by its definition (one input and one or two output channels a group), stride and dilation of 1, on
// adapters with subgroups of 8 invocations, where a storage load costs as much as dozens of multiply-adds: an invocation
// computes 4 rows of 16 neighbouring pixels in one output channel, so that a pixel serves 4 rows of the kernel, and lanes
// hand each other its weights. weight[oc][1][kernel_h][kernel_w].
// Workgroups: x over 64 pixels, y over 64 rows, z over output channels of one batch item after the other.
//#use activation
//#use conv2d
//#use conv2d_pixel
//#use conv2d_epilogue

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read> channel_add: array<f32>;
@group(0) @binding(5) var<storage, read> residual: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> out: array<f32>;

// Sums of 4 rows of 4 times 4 pixels.
var<private> sums: array<vec4<f32>, 16>;

// Weight `j` of the kernel's row that begins at `at`, nothing if this lane has no row or the row no such weight.
fn taps(at: u32, taken: bool, j: u32) -> f32 {
    return select(0.0, weight[at + j], taken && j < p.kernel_w);
}

// Adds to the sums of a row what four neighbouring weights give with the 20 pixels from the first one's on.
fn add(row: u32, t: vec4<f32>, a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32>, e: vec4<f32>) {
    let s = 4u * row;
    sums[s] = add4(sums[s], t, a, b);
    sums[s + 1u] = add4(sums[s + 1u], t, b, c);
    sums[s + 2u] = add4(sums[s + 2u], t, c, d);
    sums[s + 3u] = add4(sums[s + 3u], t, d, e);
}

fn add4(sum: vec4<f32>, t: vec4<f32>, a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    let first = fma(vec4(t.y), vec4(a.yzw, b.x), fma(vec4(t.x), a, sum));
    return fma(vec4(t.w), vec4(a.w, b.xyz), fma(vec4(t.z), vec4(a.zw, b.xy), first));
}

// Pixels `i` to `i + 3` of a row.
fn four(base: u32, used: bool, i: i32) -> vec4<f32> {
    return vec4(pixel(base, used, i), pixel(base, used, i + 1), pixel(base, used, i + 2), pixel(base, used, i + 3));
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_invocation_id) id: u32,
) {
    // Lanes past the end repeat the last block: all take part in handing weights round.
    let ox = min(group.x * 4u + lane % 4u, (p.out_w - 1u) / 16u) * 16u;
    let oy = min(group.y * 16u + lane / 4u, (p.out_h - 1u) / 4u) * 4u;
    let oc = group.z % p.out_channels;
    let n = group.z / p.out_channels;
    let left = i32(ox) - p.pad_w;
    let top = i32(oy) - p.pad_h;
    let w = p.weight_offset + oc * p.weight_batch_stride;
    let plane = p.in_offset + n * p.in_batch_stride + oc / p.group_out * in_plane();
    for (var i = 0u; i < p.kernel_h + 3u; i++) {
        let line = source_line(top + i32(i), p.in_h);
        let used = line >= 0;
        let row = plane + u32(max(line, 0)) * in_row();
        // Lanes `r` and `r + 4` have the weights that bring this line to row `r` of the block.
        let r = id % 4u;
        let taken = r <= i && i - r < p.kernel_h;
        let at = w + select(0u, i - r, taken) * p.kernel_w;
        var a = four(row, used, left);
        var b = four(row, used, left + 4);
        var c = four(row, used, left + 8);
        var d = four(row, used, left + 12);
        for (var j = 0u; j < p.kernel_w; j += 4u) {
            let e = four(row, used, left + 16 + i32(j));
            // Weights `j` and `j + 2` in the first four lanes, `j + 1` and `j + 3` in the others.
            let t = taps(at, taken, j + id / 4u);
            let u = taps(at, taken, j + 2u + id / 4u);
            let t0 = vec4(
                subgroupBroadcast(t, 0u),
                subgroupBroadcast(t, 4u),
                subgroupBroadcast(u, 0u),
                subgroupBroadcast(u, 4u),
            );
            add(0u, t0, a, b, c, d, e);
            let t1 = vec4(
                subgroupBroadcast(t, 1u),
                subgroupBroadcast(t, 5u),
                subgroupBroadcast(u, 1u),
                subgroupBroadcast(u, 5u),
            );
            add(1u, t1, a, b, c, d, e);
            let t2 = vec4(
                subgroupBroadcast(t, 2u),
                subgroupBroadcast(t, 6u),
                subgroupBroadcast(u, 2u),
                subgroupBroadcast(u, 6u),
            );
            add(2u, t2, a, b, c, d, e);
            let t3 = vec4(
                subgroupBroadcast(t, 3u),
                subgroupBroadcast(t, 7u),
                subgroupBroadcast(u, 3u),
                subgroupBroadcast(u, 7u),
            );
            add(3u, t3, a, b, c, d, e);
            a = b;
            b = c;
            c = d;
            d = e;
        }
    }
    let shift = shift_of(n, oc);
    let to = p.out_offset + n * p.out_batch_stride;
    for (var row = 0u; row < 4u; row++) {
        let at = (oc * p.out_h + oy + row) * p.out_w + ox;
        for (var k = 0u; k < 16u; k++) {
            if oy + row < p.out_h && ox + k < p.out_w {
                out[to + at + k] = finish(sums[4u * row + k / 4u][k % 4u] + shift, n, at + k);
            }
        }
    }
}
