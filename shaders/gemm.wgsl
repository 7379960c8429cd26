// Batched matrix product for any adapter; the layouts are in `shared/gemm.wgsl`.
// An invocation computes 8 rows by 4 columns of two blocks; a workgroup 32 rows by 4 blocks of 32 columns.
// Workgroups: x over row blocks, y over fours of column blocks, z over the batch.
//#use gemm

@compute @workgroup_size(8, 4, 2)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) launched: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let at = place(id, launched);
    let block = at.y * 4u + lane.z * 2u;
    if outside(at) || block >= p.column_blocks {
        return;
    }
    // A last block without a partner is computed twice.
    let other = min(block + 1u, p.column_blocks - 1u);
    var w = (at.x * p.batch + at.z) * (p.depth + 1u) * 8u + lane.y * 2u;
    var l = (block * p.batch + at.z) * (p.depth + 1u) * 8u + lane.x;
    var r = (other * p.batch + at.z) * (p.depth + 1u) * 8u + lane.x;
//#for I in 0..8
    var first$I = vec4(0.0);
    var second$I = vec4(0.0);
//#end
    for (var k = 0u; k < p.depth; k++) {
        let a = left[w];
        let b = left[w + 1u];
        let columns = right[l];
        let others = right[r];
//#for I,W in 0,a.x 1,a.y 2,a.z 3,a.w 4,b.x 5,b.y 6,b.z 7,b.w
        first$I = fma(vec4($W), columns, first$I);
        second$I = fma(vec4($W), others, second$I);
//#end
        w += 8u;
        l += 8u;
        r += 8u;
    }
    let stride = (p.row_blocks * 32u + 1u) * 8u;
    let row = (at.x * 32u + lane.y * 8u) * 8u + lane.x;
    let to = (block * p.batch + at.z) * stride + row;
    let and_to = (other * p.batch + at.z) * stride + row;
//#for I in 0..8
    product[to + $Iu * 8u] = first$I;
    product[and_to + $Iu * 8u] = second$I;
//#end
}
