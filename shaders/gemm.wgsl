// Batched matrix product for any adapter.
// An invocation computes 8 rows by 4 columns of two blocks; a workgroup 32 rows by 4 blocks of 32 columns.
// Workgroups: x over row blocks, y over fours of column blocks, z over the batch.
//#use gemm

@compute @workgroup_size(8, 4, 2)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) id: vec3<u32>) {
    let block = group.y * 4u + id.z * 2u;
    if block >= p.blocks {
        return;
    }
    // A last block without a partner is computed twice.
    let other = min(block + 1u, p.blocks - 1u);
    var w = (group.x * p.batch + group.z) * (p.depth + 1u) * 8u + id.y * 2u;
    var left = (block * p.batch + group.z) * (p.depth + 1u) * 8u + id.x;
    var right = (other * p.batch + group.z) * (p.depth + 1u) * 8u + id.x;
    var sums: array<vec4<f32>, 16>;
    for (var k = 0u; k < p.depth; k++) {
        let a = weight[w];
        let b = weight[w + 1u];
        let l = columns[left];
        let r = columns[right];
        for (var i = 0u; i < 4u; i++) {
            sums[i] = fma(vec4(a[i]), l, sums[i]);
            sums[i + 4u] = fma(vec4(b[i]), l, sums[i + 4u]);
            sums[i + 8u] = fma(vec4(a[i]), r, sums[i + 8u]);
            sums[i + 12u] = fma(vec4(b[i]), r, sums[i + 12u]);
        }
        w += 8u;
        left += 8u;
        right += 8u;
    }
    let stride = (p.row_blocks * 32u + 1u) * 8u;
    let row = (group.x * 32u + id.y * 8u) * 8u + id.x;
    for (var i = 0u; i < 8u; i++) {
        result[(block * p.batch + group.z) * stride + row + i * 8u] = sums[i];
        result[(other * p.batch + group.z) * stride + row + i * 8u] = sums[i + 8u];
    }
}
