// Convolution by Fourier transforms, last stage: products sums[blocks][3 * 514][rows + 1][32] transformed back. The inverse
// transform is the forward one with real and imaginary parts exchanged.
// A workgroup computes two tiles of the result (see `fft_operand`), with bias, channel add, residual and activation, or two
// kernels of the gradient by the weight.
// Workgroups: x over pairs of tiles or of input channels, y over output channels.
//#use activation
//#use conv2d
//#use conv2d_epilogue
//#use fft

// Whether it is the gradient by the weight, and whether that is added to what is there.
override GRADIENT: bool = false;
override ADDED: bool = false;

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> sums: array<f32>;
@group(0) @binding(2) var<storage, read> bias: array<f32>;
@group(0) @binding(3) var<storage, read> channel_add: array<f32>;
@group(0) @binding(4) var<storage, read> residual: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> out: array<f32>;

// The first column of the products, the output channel, what is added to each tile's pixels.
var<private> column: u32;
var<private> oc: u32;
var<private> shifts: vec2<f32>;

// A complex product of its three real ones, real and imaginary part exchanged.
fn product(at: u32) -> vec2<f32> {
    let stride = (p.rows + 1u) * 32u;
    let sum = sums[at];
    return vec2(sum + sums[at + stride], sum - sums[at + 2u * stride]);
}

fn load(kx: u32) {
    let spot = place_of(lane, kx);
    let plane = (column / 32u * FREQUENCIES + spot.index) * 3u;
    let at = (plane * (p.rows + 1u) + oc) * 32u + column % 32u;
    let sign = select(1.0, -1.0, spot.other);
    if GRADIENT {
        // Both kernels are real: at the other frequency of a pair each has the conjugate value.
        let a = product(at);
        let b = product(at + 1u);
        v[kx] = vec2(sign * a.x + b.y, a.y - sign * b.x);
    } else {
        v[kx] = product(at + u32(spot.other)) * vec2(sign, 1.0);
    }
}

fn store_pixel(value: f32, tile: u32, y: u32) {
    let row = tile / p.row_quads;
    let line = row % p.image_rows * (33u - p.kernel_h) + y;
    let pixel = tile % p.row_quads * (33u - p.kernel_w) + lane;
    if tile < p.quads && line < p.out_h && pixel < p.out_w {
        let n = row / p.image_rows;
        let at = (oc * p.out_h + line) * p.out_w + pixel;
        out[p.out_offset + n * p.out_batch_stride + at] = finish(value, n, at);
    }
}

fn store_tap(value: f32, ic: u32, y: u32) {
    if ic < p.in_channels {
        let to = p.weight_offset + oc * p.weight_batch_stride + (ic * p.kernel_h + y) * p.kernel_w + lane;
        out[to] = value + select(0.0, out[to], ADDED);
    }
}

fn store(y: u32) {
    // Both transforms together multiply by 1,024; of a gradient, products at both frequencies of a pair were summed.
    let value = v[point(y)] / select(1024.0, 2048.0, GRADIENT);
    if GRADIENT && y < min(p.kernel_h, 17u) {
        store_tap(value.y, column, y);
        store_tap(value.x, column + 1u, y);
    } else if !GRADIENT && y < min(33u - p.kernel_h, 29u) {
        store_pixel(value.y + shifts.x, p.first_quad + column, y);
        store_pixel(value.x + shifts.y, p.first_quad + column + 1u, y);
    }
}

@compute @workgroup_size(32)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    lane = index;
    column = 2u * group.x;
    oc = group.y;
    load_all();
    fourier();
    hand_round();
    if lane >= select(33u - p.kernel_w, p.kernel_w, GRADIENT) {
        return;
    }
    fourier();
    if !GRADIENT {
        let tile = p.first_quad + column;
        let items = vec2(tile, min(tile + 1u, p.quads - 1u)) / (p.row_quads * p.image_rows);
        shifts = vec2(shift_of(items.x, oc), shift_of(items.y, oc));
    }
    store_all();
}
