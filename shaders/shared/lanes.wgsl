// Sums over a workgroup of 64 invocations (lanes), in a tree, so that the order of the additions is always the same.

var<workgroup> lanes: array<vec2<f32>, 64>;

// The sum of `mine` over all lanes, which every lane gets. All lanes must call it.
fn total(lane: u32, mine: vec2<f32>) -> vec2<f32> {
    // Another lane may still be reading the sum of the call before.
    workgroupBarrier();
    lanes[lane] = mine;
    for (var half = 32u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            lanes[lane] += lanes[lane + half];
        }
    }
    workgroupBarrier();
    return lanes[0];
}
