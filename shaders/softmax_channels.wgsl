// Softmax over channels.
//#use planes
//#use channels

fn compute(source: u32, to: u32) {
    // Four at a time: llvmpipe ends all loops of an invocation after 65,535 rounds together.
    let whole = p.channels / 4u * 4u;
    var top = x[source];
    for (var c = 0u; c < whole; c += 4u) {
        let v = load4(source + c * p.plane);
        top = max(top, max(max(v.x, v.y), max(v.z, v.w)));
    }
    for (var c = whole; c < p.channels; c++) {
        top = max(top, x[source + c * p.plane]);
    }
    var sums = vec4(0.0);
    for (var c = 0u; c < whole; c += 4u) {
        sums += exp(load4(source + c * p.plane) - top);
    }
    for (var c = whole; c < p.channels; c++) {
        sums.x += exp(x[source + c * p.plane] - top);
    }
    let total = dot(sums, vec4(1.0));
    for (var c = 0u; c < whole; c += 4u) {
        let v = exp(load4(source + c * p.plane) - top) / total;
        let at = to + c * p.plane;
        out[at] = v.x;
        out[at + p.plane] = v.y;
        out[at + 2u * p.plane] = v.z;
        out[at + 3u * p.plane] = v.w;
    }
    for (var c = whole; c < p.channels; c++) {
        out[to + c * p.plane] = exp(x[source + c * p.plane] - top) / total;
    }
}
