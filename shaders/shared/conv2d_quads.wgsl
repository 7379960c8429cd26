// Quads are numbered along rows, rows down the image, images along the batch. Needs the fields of `conv2d_quad_fields`.

// The quad of a lane in a block of 8. Lanes past the end repeat the last quad: they store the same values to the same
// place, which costs llvmpipe less than a branch.
fn quad_of(block: u32, lane: u32) -> u32 {
    return min(p.first_quad + block * 8u + lane, p.quads - 1u);
}
