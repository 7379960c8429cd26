// Softmax over channels, relative to the pixel's maximum so that nothing overflows. x and out are [n][channels][plane].
//#use channels

fn compute(source: u32, to: u32) {
    // Four channels a round: software adapters end an invocation's loops after 65,535 rounds together.
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
        let first = to + c * p.plane;
        out[first] = v.x;
        out[first + p.plane] = v.y;
        out[first + 2u * p.plane] = v.z;
        out[first + 3u * p.plane] = v.w;
    }
    for (var c = whole; c < p.channels; c++) {
        out[to + c * p.plane] = exp(x[source + c * p.plane] - top) / total;
    }
}
