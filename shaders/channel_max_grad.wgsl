// The gradient of the maximum over channels with respect to x: the first channel that holds a pixel's maximum gets dy,
// the others zero. x and out are [n][channels][plane]; y, the maxima, and dy are [n][plane].
// An invocation takes one pixel of one item, in all channels. Workgroups: x over 64 pixels, y over the batch.
//#use place

struct Params {
    grid: vec3<u32>,
    x_offset: u32,
    x_batch_stride: u32,
    y_offset: u32,
    y_batch_stride: u32,
    dy_offset: u32,
    dy_batch_stride: u32,
    out_offset: u32,
    out_batch_stride: u32,
    channels: u32,
    plane: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> y: array<f32>;
@group(0) @binding(3) var<storage, read> dy: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) launched: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = place(id, launched);
    let pixel = at.x * 64u + lane;
    if outside(at) || pixel >= p.plane {
        return;
    }
    let source = p.x_offset + at.y * p.x_batch_stride + pixel;
    let to = p.out_offset + at.y * p.out_batch_stride + pixel;
    let top = y[p.y_offset + at.y * p.y_batch_stride + pixel];
    // The pixel's gradient; zero once the first channel that holds the maximum has taken it.
    var grad = dy[p.dy_offset + at.y * p.dy_batch_stride + pixel];
    for (var c = 0u; c < p.channels; c++) {
        let holds = x[source + c * p.plane] == top;
        out[to + c * p.plane] = select(0.0, grad, holds);
        grad = select(grad, 0.0, holds);
    }
}
