// The maximum over channels.
//#use planes
//#use channels

fn compute(source: u32, to: u32) {
    // Eight at a time: llvmpipe ends every loop after 65,535 rounds.
    var top = x[source];
    var c = 0u;
    for (; c + 7u < p.channels; c += 8u) {
        let at = source + c * p.plane;
        let both = max(load4(at), load4(at + 4u * p.plane));
        top = max(top, max(max(both.x, both.y), max(both.z, both.w)));
    }
    for (; c < p.channels; c++) {
        top = max(top, x[source + c * p.plane]);
    }
    out[to] = top;
}
