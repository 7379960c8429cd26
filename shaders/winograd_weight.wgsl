// Winograd F(4x4, 3x3): weights [oc][ic][3][3], transformed (G g G^T in Lavin and Gray 2016) and laid out for the GEMM:
// transformed[row_blocks][36][depth + 1][32 rows], zero where there is no such channel.
// An invocation transforms the weights of one pair of channels. Workgroups: x over depth, y over row blocks.

struct Params {
    weight_offset: u32,
    weight_batch_stride: u32,
    out_channels: u32,
    in_channels: u32,
    depth: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> weight: array<f32>;
@group(0) @binding(2) var<storage, read_write> transformed: array<f32>;

fn transform(g: vec3<f32>) -> array<f32, 6> {
    let even = -(g.x + g.z) / 6.0;
    let odd = -g.y / 6.0;
    let far = g.x / 24.0 + g.z / 6.0;
    return array(0.25 * g.x, even + odd, even - odd, far + g.y / 12.0, far - g.y / 12.0, g.z);
}

@compute @workgroup_size(32)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) lane: vec3<u32>) {
    let oc = group.y * 32u + lane.x;
    let ic = group.x;
    var g: array<f32, 9>;
    if oc < p.out_channels && ic < p.in_channels {
        let base = p.weight_offset + oc * p.weight_batch_stride + ic * 9u;
        for (var i = 0u; i < 9u; i++) {
            g[i] = weight[base + i];
        }
    }
    var columns: array<array<f32, 6>, 3>;
    for (var i = 0u; i < 3u; i++) {
        columns[i] = transform(vec3(g[i], g[3u + i], g[6u + i]));
    }
    let stride = (p.depth + 1u) * 32u;
    var at = (group.y * 36u * (p.depth + 1u) + ic) * 32u + lane.x;
    for (var j = 0u; j < 6u; j++) {
        let row = transform(vec3(columns[0][j], columns[1][j], columns[2][j]));
        for (var i = 0u; i < 6u; i++) {
            transformed[at] = row[i];
            at += stride;
        }
    }
}
