// Sums over a workgroup of 64 invocations, in a tree: always in the same order.

var<workgroup> lanes: array<vec2<f32>, 64>;

// The sums of what all lanes bring; every lane gets them.
fn total(lane: u32, mine: vec2<f32>) -> vec2<f32> {
    // A former total may still be read.
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
