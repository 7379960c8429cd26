// Quads are numbered along rows, rows down the image, images along the batch. Needs the fields of `conv2d_quad_fields`.

// The quad that a lane computes in a block of 8. Lanes beyond the last quad repeat it: they store the same values to
// the same place, which costs llvmpipe less than a branch.
fn quad_of(block: u32, lane: u32) -> u32 {
    return min(p.first_quad + block * 8u + lane, p.quads - 1u);
}
