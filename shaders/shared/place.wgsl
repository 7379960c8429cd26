// Where in its launch's grid a workgroup stands. WebGPU allows 65,535 workgroups in a dimension; larger grids are
// launched as rows of a plane, and their places are computed here. Needs the field `grid: vec3<u32>` of `Params`, which
// every launch fills in.

// Chosen by select: with a branch a softmax over channels took llvmpipe 7% longer, which then seems to hold the place for
// each invocation instead of once for all.
fn place(id: vec3<u32>, launched: vec3<u32>) -> vec3<u32> {
    let number = id.y * launched.x + id.x;
    let row = number / p.grid.x;
    let numbered = vec3(number % p.grid.x, row % p.grid.y, row / p.grid.y);
    return select(numbered, id, vec3(all(launched == p.grid)));
}

// Whether the place is beyond the grid: the last row of a large one is not full.
fn outside(at: vec3<u32>) -> bool {
    return at.z >= p.grid.z;
}
