// Batched matrix product for adapters with subgroups of 8 invocations, such as llvmpipe; the layouts are in
// `shared/gemm.wgsl`. On llvmpipe a storage load costs as much as dozens of multiply-adds, also where all lanes load
// the same element: every lane loads other weights, and broadcasts hand them round.
// A workgroup (one subgroup) computes 32 rows by 2 blocks of 32 columns of one product.
// Workgroups: x over row blocks, y over pairs of column blocks, z over the batch.
//#use gemm

@compute @workgroup_size(8)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) launched: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = place(id, launched);
    if outside(at) {
        return;
    }
    let block = at.y * 2u;
    // A last block without a partner is computed twice, and stored once.
    let other = min(block + 1u, p.column_blocks - 1u);
    var w = (at.x * p.batch + at.z) * (p.depth + 1u) * 8u + lane;
    var l = (block * p.batch + at.z) * (p.depth + 1u) * 8u + lane;
    var r = (other * p.batch + at.z) * (p.depth + 1u) * 8u + lane;
    // Sums of 32 rows by 4 columns of both blocks.
//#for L in 0..8
//#for I in x y z w
    var first$L$I = vec4(0.0);
    var second$L$I = vec4(0.0);
//#end
//#end
    // Two terms a round: the depth is even.
    for (var k = 0u; k < p.depth; k += 2u) {
        let a = left[w];
        let b = left[w + 8u];
        let columns = right[l];
        let below = right[l + 8u];
        let others = right[r];
        let others_below = right[r + 8u];
//#for L in 0..8
        let a$L = subgroupBroadcast(a, $Lu);
        let b$L = subgroupBroadcast(b, $Lu);
//#for I in x y z w
        first$L$I = fma(vec4(b$L.$I), below, fma(vec4(a$L.$I), columns, first$L$I));
        second$L$I = fma(vec4(b$L.$I), others_below, fma(vec4(a$L.$I), others, second$L$I));
//#end
//#end
        w += 16u;
        l += 16u;
        r += 16u;
    }
    let stride = (p.row_blocks * 32u + 1u) * 8u;
    let to = (block * p.batch + at.z) * stride + at.x * 256u + lane;
//#for L in 0..8
//#for I,R in x,0u y,1u z,2u w,3u
    product[to + ($Lu * 4u + $R) * 8u] = first$L$I;
//#end
//#end
    if other != block {
//#for L in 0..8
//#for I,R in x,0u y,1u z,2u w,3u
        product[to + p.batch * stride + ($Lu * 4u + $R) * 8u] = second$L$I;
//#end
//#end
    }
}
