// The gradient of a convolution with respect to its weight by Fourier transforms, last stage: transforms products back.
// A workgroup computes two kernels. Workgroups: x over pairs of input channels, y over output channels.
//#use place
//#use fft_sums

// Whether the result is added to what is there.
override ADDED: bool = false;

struct Params {
    grid: vec3<u32>,
    out_offset: u32,
    out_batch_stride: u32,
    in_channels: u32,
    kernel_h: u32,
    kernel_w: u32,
    // Output channels, in blocks of 32; the layout has one row more, so that what is written together does not fall
    // into the same cache sets.
    rows: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> sums: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

// The first of the two input channels, and the output channel.
var<private> column: u32;
var<private> oc: u32;

fn load(kx: u32) -> vec2<f32> {
    let spot = spot_of(lane, kx);
    let at = product_at(spot, column, oc);
    let sign = select(1.0, -1.0, spot.other);
    // Both kernels are real, so each has the conjugate value at the other frequency of a pair.
    let a = complex_product(at);
    let b = complex_product(at + 1u);
    return vec2(sign * a.x + b.y, a.y - sign * b.x);
}

fn store_tap(value: f32, ic: u32, y: u32) {
    if ic < p.in_channels {
        let to = p.out_offset + oc * p.out_batch_stride + (ic * p.kernel_h + y) * p.kernel_w + lane;
        out[to] = value + select(0.0, out[to], ADDED);
    }
}

fn store(y: u32, z: vec2<f32>) {
    if y < min(p.kernel_h, 17u) {
        // The transform and its inverse together multiply by 1,024; the products at both frequencies of a pair were
        // added up, which doubles them.
        store_tap(z.y / 2048.0, column, y);
        store_tap(z.x / 2048.0, column + 1u, y);
    }
}

@compute @workgroup_size(32)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) launched: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let group = place(id, launched);
    if outside(group) {
        return;
    }
    lane = index;
    column = 2u * group.x;
    oc = group.y;
    load_all();
    fourier();
    hand_round();
    if lane >= p.kernel_w {
        return;
    }
    fourier();
    store_all();
}
