// Where in its launch's grid a workgroup stands. WebGPU allows 65,535 workgroups in a dimension; larger grids are
// launched as rows of a plane, and their places are computed here. Needs the field `grid: vec3<u32>` of `Params`, which
// every launch fills in.

fn place(id: vec3<u32>, launched: vec3<u32>) -> vec3<u32> {
    if all(launched == p.grid) {
        return id;
    }
    let number = id.y * launched.x + id.x;
    return vec3(number % p.grid.x, number / p.grid.x % p.grid.y, number / (p.grid.x * p.grid.y));
}

// Whether the place is beyond the grid: the last row of a large one is not full.
fn outside(at: vec3<u32>) -> bool {
    return at.z >= p.grid.z;
}
