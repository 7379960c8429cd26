// The mean over channels: out is [n][1][plane].
//#use channels

fn compute(source: u32, to: u32) {
    // Eight sums side by side round less than a single one, and take an eighth of the loop's rounds: software adapters
    // end an invocation's loops after 65,535 together.
    var a = vec4(0.0);
    var b = vec4(0.0);
    var c = 0u;
    for (; c + 7u < p.channels; c += 8u) {
        let first = source + c * p.plane;
        a += load4(first);
        b += load4(first + 4u * p.plane);
    }
    for (; c < p.channels; c++) {
        a.x += x[source + c * p.plane];
    }
    out[to] = dot(a + b, vec4(1.0)) / f32(p.channels);
}
