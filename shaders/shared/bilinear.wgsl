// Bilinear upsampling by two on one axis: the two inputs, of `len`, that output position `o` lies between, and the weight
// of the second; the first has the rest to 1. The place in the input is o * (len - 1) / (2 * len - 1) = o / 2 - f / 2 with
// f = o / (2 * len - 1): a single rounding, however long the axis is.
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
