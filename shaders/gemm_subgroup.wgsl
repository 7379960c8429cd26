// Batched matrix product for adapters with subgroups of 8 invocations, such as llvmpipe, where a storage load costs as
// much as dozens of multiply-adds whether its index is uniform or not: every lane loads other weights, and broadcasts
// hand them round.
// A workgroup (one subgroup) computes 32 rows by 2 blocks of 32 columns of one product.
// Workgroups: x over row blocks, y over pairs of column blocks, z over the batch.
//#use gemm

// Sums of 32 rows by 2 times 4 columns.
var<private> sums: array<vec4<f32>, 64>;

// Adds to the rows `4 * lane` on what two steps of depth give, each with its 4 weights and its columns.
fn add(lane: u32, w: array<vec4<f32>, 2>, left: array<vec4<f32>, 2>, right: array<vec4<f32>, 2>) {
    for (var i = 0u; i < 4u; i++) {
        let at = lane * 8u + i * 2u;
        sums[at] = fma(vec4(w[1][i]), left[1], fma(vec4(w[0][i]), left[0], sums[at]));
        sums[at + 1u] = fma(vec4(w[1][i]), right[1], fma(vec4(w[0][i]), right[0], sums[at + 1u]));
    }
}

@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) id: vec3<u32>) {
    let block = group.y * 2u;
    // A last block without a partner is computed twice, and stored once.
    let other = min(block + 1u, p.blocks - 1u);
    var w = (group.x * p.batch + group.z) * (p.depth + 1u) * 8u + id.x;
    var left = (block * p.batch + group.z) * (p.depth + 1u) * 8u + id.x;
    var right = (other * p.batch + group.z) * (p.depth + 1u) * 8u + id.x;
    // The depth is even.
    for (var k = 0u; k < p.depth; k += 2u) {
        let a = weight[w];
        let b = weight[w + 8u];
        let l = array(columns[left], columns[left + 8u]);
        let r = array(columns[right], columns[right + 8u]);
        add(0u, array(subgroupBroadcast(a, 0u), subgroupBroadcast(b, 0u)), l, r);
        add(1u, array(subgroupBroadcast(a, 1u), subgroupBroadcast(b, 1u)), l, r);
        add(2u, array(subgroupBroadcast(a, 2u), subgroupBroadcast(b, 2u)), l, r);
        add(3u, array(subgroupBroadcast(a, 3u), subgroupBroadcast(b, 3u)), l, r);
        add(4u, array(subgroupBroadcast(a, 4u), subgroupBroadcast(b, 4u)), l, r);
        add(5u, array(subgroupBroadcast(a, 5u), subgroupBroadcast(b, 5u)), l, r);
        add(6u, array(subgroupBroadcast(a, 6u), subgroupBroadcast(b, 6u)), l, r);
        add(7u, array(subgroupBroadcast(a, 7u), subgroupBroadcast(b, 7u)), l, r);
        w += 16u;
        left += 16u;
        right += 16u;
    }
    let stride = (p.row_blocks * 32u + 1u) * 8u;
    let at = (block * p.batch + group.z) * stride + group.x * 256u + id.x;
    for (var row = 0u; row < 32u; row++) {
        result[at + row * 8u] = sums[row * 2u];
    }
    if other != block {
        for (var row = 0u; row < 32u; row++) {
            result[at + p.batch * stride + row * 8u] = sums[row * 2u + 1u];
        }
    }
}
