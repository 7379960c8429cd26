// The maximum over channels: out is [n][1][plane].
//#use channels

fn compute(source: u32, to: u32) {
    // Eight channels a round: software adapters end an invocation's loops after 65,535 rounds together.
    var top = x[source];
    var c = 0u;
    for (; c + 7u < p.channels; c += 8u) {
        let first = source + c * p.plane;
        let both = max(load4(first), load4(first + 4u * p.plane));
        top = max(top, max(max(both.x, both.y), max(both.z, both.w)));
    }
    for (; c < p.channels; c++) {
        top = max(top, x[source + c * p.plane]);
    }
    out[to] = top;
}
