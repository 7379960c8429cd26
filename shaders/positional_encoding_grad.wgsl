// The gradient of a positional encoding by the level: frequency * (cosine * the sine's gradient - sine * the cosine's),
// summed over the frequencies. A workgroup computes one item.
//#use lanes

struct Params {
    y_offset: u32,
    y_batch_stride: u32,
    dy_offset: u32,
    dy_batch_stride: u32,
    out_offset: u32,
    out_batch_stride: u32,
    batch: u32,
    count: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> y: array<f32>;
@group(0) @binding(2) var<storage, read> dy: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

fn frequency(i: u32) -> f32 {
//@body
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let item = group.y * groups.x + group.x;
    if item >= p.batch {
        return;
    }
    let source = p.y_offset + item * p.y_batch_stride;
    let grads = p.dy_offset + item * p.dy_batch_stride;
    var sum = 0.0;
    for (var i = lane; i < p.count; i += 64u) {
        let turned = y[source + p.count + i] * dy[grads + i] - y[source + i] * dy[grads + p.count + i];
        sum = fma(frequency(i), turned, sum);
    }
    let all = total(lane, vec2(sum, 0.0)).x;
    if lane == 0u {
        out[p.out_offset + item * p.out_batch_stride] = all;
    }
}
