// The mean over channels.
//#use planes
//#use channels

fn compute(source: u32, to: u32) {
    // Eight sums side by side: less rounding, and llvmpipe ends every loop after 65,535 rounds.
    var a = vec4(0.0);
    var b = vec4(0.0);
    var c = 0u;
    for (; c + 7u < p.channels; c += 8u) {
        let at = source + c * p.plane;
        a += load4(at);
        b += load4(at + 4u * p.plane);
    }
    for (; c < p.channels; c++) {
        a.x += x[source + c * p.plane];
    }
    out[to] = dot(a + b, vec4(1.0)) / f32(p.channels);
}
