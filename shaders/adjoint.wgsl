// Adjoints (transposes) of linear maps that copy pixels to other places of a plane: strides, padding, nearest
// upsampling. x has the shape of the map's result, out that of its input: x and out are [n][channels][height][width].
// A pixel of out is the sum of the pixels of x that the map copied it to, at most three rows by three columns.
// An invocation computes one pixel. Workgroups: x over 64 pixels of a plane, y over channels, z over the batch.
//#use place

struct Params {
    grid: vec3<u32>,
    x_offset: u32,
    x_batch_stride: u32,
    out_offset: u32,
    out_batch_stride: u32,
    x_height: i32,
    x_width: i32,
    out_height: i32,
    out_width: i32,
    // Down and to the right: the stride of KIND 0, the pixels of padding on each side of KINDs 1 and 2; KIND 3 has 2.
    step_down: i32,
    step_right: i32,
}

// The map. 0: taking every step-th pixel, 1: zero padding, 2: reflecting padding, 3: nearest upsampling by two.
override KIND: u32 = 0u;

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

// The positions, of `given` on an axis of x, that the map copied position `i` of `size` on that axis of out to; -1
// where there are fewer than three.
fn places(i: i32, size: i32, given: i32, step: i32) -> vec3<i32> {
    if KIND == 0u {
        let there = i % step == 0 && i / step < given;
        return vec3(select(-1, i / step, there), -1, -1);
    }
    if KIND == 3u {
        return vec3(2 * i, 2 * i + 1, -1);
    }
    let last = size - 1;
    let before = KIND == 2u && i >= 1 && i <= step;
    let after = KIND == 2u && i < last && i >= last - step;
    return vec3(i + step, select(-1, step - i, before), select(-1, step + 2 * last - i, after));
}

// The pixel of a row whose first element is `row`; 0 where there is no such column.
fn pixel(row: u32, column: i32) -> f32 {
    if column < 0 {
        return 0.0;
    }
    return x[row + u32(column)];
}

// The sum over the columns of a row of the plane that begins at `plane`; 0 where there is no such row.
fn row_sum(plane: u32, row: i32, columns: vec3<i32>) -> f32 {
    if row < 0 {
        return 0.0;
    }
    let first = plane + u32(row * p.x_width);
    return pixel(first, columns.x) + pixel(first, columns.y) + pixel(first, columns.z);
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) launched: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = place(id, launched);
    let i = i32(at.x * 64u + lane);
    if outside(at) || i >= p.out_height * p.out_width {
        return;
    }
    let rows = places(i / p.out_width, p.out_height, p.x_height, p.step_down);
    let columns = places(i % p.out_width, p.out_width, p.x_width, p.step_right);
    let plane = p.x_offset + at.z * p.x_batch_stride + at.y * u32(p.x_height * p.x_width);
    let sum = row_sum(plane, rows.x, columns) + row_sum(plane, rows.y, columns) + row_sum(plane, rows.z, columns);
    out[p.out_offset + at.z * p.out_batch_stride + at.y * u32(p.out_height * p.out_width) + u32(i)] = sum;
}
