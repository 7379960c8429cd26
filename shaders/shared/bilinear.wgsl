// Bilinear upsampling by two with aligned corners, on one axis: output position `o` lies between the inputs `near` and
// `other` of `len`. `weight` is that of `other`; `near` has 1 - weight.
// The place in the input is o * (len - 1) / (2 * len - 1) = o / 2 - f / 2 with f = o / (2 * len - 1). Written so the
// weight is rounded once, however long the axis is.
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
