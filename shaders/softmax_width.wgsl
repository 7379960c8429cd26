// Softmax along rows, relative to the row's maximum so that nothing overflows. x and out are [n][rows][width].
// A workgroup computes one row. Workgroups: x over the rows of an item, y over the batch.
//#use place

struct Params {
    grid: vec3<u32>,
    x_offset: u32,
    x_batch_stride: u32,
    out_offset: u32,
    out_batch_stride: u32,
    width: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

// For each lane's part of the row: its largest element, and the sum of exponentials relative to that.
var<workgroup> parts: array<vec2<f32>, 64>;

fn join(a: vec2<f32>, b: vec2<f32>) -> vec2<f32> {
    let top = max(a.x, b.x);
    return vec2(top, a.y * exp(a.x - top) + b.y * exp(b.x - top));
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) launched: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = place(id, launched);
    if outside(at) {
        return;
    }
    let source = p.x_offset + at.y * p.x_batch_stride + at.x * p.width;
    // A lane without elements, in a short row, holds the row's first as its largest and a sum of 0.
    var own = vec2(x[source], 0.0);
    for (var i = lane; i < p.width; i += 64u) {
        own.x = max(own.x, x[source + i]);
    }
    for (var i = lane; i < p.width; i += 64u) {
        own.y += exp(x[source + i] - own.x);
    }
    parts[lane] = own;
    for (var half = 32u; half > 0u; half >>= 1u) {
        workgroupBarrier();
        if lane < half {
            parts[lane] = join(parts[lane], parts[lane + half]);
        }
    }
    workgroupBarrier();
    let all = parts[0];
    let to = p.out_offset + at.y * p.out_batch_stride + at.x * p.width;
    for (var i = lane; i < p.width; i += 64u) {
        out[to + i] = exp(x[source + i] - all.x) / all.y;
    }
}
