// Winograd F(4x4, 3x3): weights [oc][ic][3][3], transformed (G g G^T in Lavin and Gray 2016) and laid out for the GEMM:
// transformed[row_blocks][36][depth + 1][32 rows], zero where there is no such channel.
// An invocation transforms the weights of one pair of channels. Workgroups: x over depth, y over row blocks.
//#use place

struct Params {
    grid: vec3<u32>,
    weight_offset: u32,
    weight_batch_stride: u32,
    out_channels: u32,
    in_channels: u32,
    depth: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> weight: array<f32>;
@group(0) @binding(2) var<storage, read_write> transformed: array<f32>;

// The product of G with a column of a kernel: the values at the points 0, 1, -1, 2, -2 and infinity.
struct Six {
    a: f32,
    b: f32,
    c: f32,
    d: f32,
    e: f32,
    f: f32,
}

fn transform(g: vec3<f32>) -> Six {
    let even = -(g.x + g.z) / 6.0;
    let odd = -g.y / 6.0;
    let far = g.x / 24.0 + g.z / 6.0;
    return Six(0.25 * g.x, even + odd, even - odd, far + g.y / 12.0, far - g.y / 12.0, g.z);
}

@compute @workgroup_size(32)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) launched: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let group = place(id, launched);
    if outside(group) {
        return;
    }
    let oc = group.y * 32u + lane;
    let ic = group.x;
    var row0 = vec3(0.0);
    var row1 = vec3(0.0);
    var row2 = vec3(0.0);
    if oc < p.out_channels && ic < p.in_channels {
        let base = p.weight_offset + oc * p.weight_batch_stride + ic * 9u;
        row0 = vec3(weight[base], weight[base + 1u], weight[base + 2u]);
        row1 = vec3(weight[base + 3u], weight[base + 4u], weight[base + 5u]);
        row2 = vec3(weight[base + 6u], weight[base + 7u], weight[base + 8u]);
    }
    let left = transform(vec3(row0.x, row1.x, row2.x));
    let middle = transform(vec3(row0.y, row1.y, row2.y));
    let right = transform(vec3(row0.z, row1.z, row2.z));
    let stride = (p.depth + 1u) * 32u;
    let to = (group.y * 36u * (p.depth + 1u) + ic) * 32u + lane;
//#for J,P in 0u,a 1u,b 2u,c 3u,d 4u,e 5u,f
    let points$P = transform(vec3(left.$P, middle.$P, right.$P));
//#for I,Q in 0u,a 1u,b 2u,c 3u,d 4u,e 5u,f
    transformed[to + ($J * 6u + $I) * stride] = points$P.$Q;
//#end
//#end
}
