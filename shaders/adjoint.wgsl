// Adjoints of what moves pixels within a plane: each pixel of the result sums the pixels that it went to.
// An invocation computes one pixel.

struct Params {
    x_offset: u32,
    x_batch_stride: u32,
    out_offset: u32,
    out_batch_stride: u32,
    batch: u32,
    channels: u32,
    in_h: i32,
    in_w: i32,
    out_h: i32,
    out_w: i32,
    // Strides, or pixels of padding.
    step_h: i32,
    step_w: i32,
}

// 0: stride, 1: zero padding, 2: reflecting padding, 3: nearest upsampling.
override KIND: u32 = 0u;

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

// Where position `i` of an axis of `size` went, on one of `given`; -1 where there is no such place.
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

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (group.y * groups.x + group.x) * 64u + lane;
    let plane = u32(p.out_h * p.out_w);
    let item = p.channels * plane;
    let n = i / item;
    if n >= p.batch {
        return;
    }
    let pixel = i32(i % plane);
    let lines = places(pixel / p.out_w, p.out_h, p.in_h, p.step_h);
    let columns = places(pixel % p.out_w, p.out_w, p.in_w, p.step_w);
    let base = p.x_offset + n * p.x_batch_stride + i % item / plane * u32(p.in_h * p.in_w);
    var sum = 0.0;
    for (var a = 0; a < 3; a++) {
        for (var b = 0; b < 3; b++) {
            if lines[a] >= 0 && columns[b] >= 0 {
                sum += x[base + u32(lines[a] * p.in_w + columns[b])];
            }
        }
    }
    out[p.out_offset + n * p.out_batch_stride + i % item] = sum;
}
