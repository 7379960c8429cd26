// The two neighbours of output position `o` on an axis of `len` inputs, and the weight of the second. The place in the
// input, o * (len - 1) / (2 * len - 1), is half of o less the fraction f = o / (2 * len - 1).
struct Neighbours {
    near: u32,
    other: u32,
    weight: f32,
}

fn neighbours(o: u32, len: u32) -> Neighbours {
    let near = o / 2u;
    let f = f32(o) / f32(2u * len - 1u);
    if (o & 1u) == 1u {
        return Neighbours(near, min(near + 1u, len - 1u), 0.5 - 0.5 * f);
    }
    return Neighbours(near, max(near, 1u) - 1u, 0.5 * f);
}
