// Fourier transforms of 32x32 points by 32 invocations: each transforms a column, hands it round, and transforms a row.
// Of each pair of frequencies f and -f one, the first, has a place: 514 of 1,024. The value at the other one, conjugated,
// stands beside that of the first: for real tiles it would be the same.
// What is done 32 times is called 32 times, with constants: drivers take half a minute to unroll such loops.
// Needs the functions `load`, which gives point `k` its value, and `store`, which takes result `k`.

const FREQUENCIES: u32 = 514u;

// Of the angles 2 pi k / 32.
const C1: f32 = 0.98078528;
const S1: f32 = 0.19509032;
const C2: f32 = 0.92387953;
const S2: f32 = 0.38268343;
const C3: f32 = 0.83146961;
const S3: f32 = 0.55557023;
const R: f32 = 0.70710678;

// Whether it is kernels that are transformed: real, so that lines from 17 on say nothing new, and zero from point 17 on.
override KERNELS: bool = false;

// What an invocation transforms, in place; `point` finds the results.
var<private> v: array<vec2<f32>, 32>;

// The number of the invocation.
var<private> lane: u32;

var<workgroup> grid: array<vec2<f32>, 1024>;

fn times(a: vec2<f32>, b: vec2<f32>) -> vec2<f32> {
    return vec2(a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x);
}

fn fourier4(a: vec2<f32>, b: vec2<f32>, c: vec2<f32>, d: vec2<f32>) -> array<vec2<f32>, 4> {
    let s = a + c;
    let t = b + d;
    let m = a - c;
    let n = vec2(b.y - d.y, d.x - b.x);
    return array(s + t, m + n, s - t, m - n);
}

// The transform of every eighth point from `j` on, turned by `j` steps.
fn eighths(j: u32, w1: vec2<f32>, w2: vec2<f32>, w3: vec2<f32>) {
    let f = fourier4(v[j], v[j + 8u], v[j + 16u], v[j + 24u]);
    v[j] = f[0];
    v[j + 8u] = times(f[1], w1);
    v[j + 16u] = times(f[2], w2);
    v[j + 24u] = times(f[3], w3);
}

// The transform of the 8 points from `j` on.
fn eight(j: u32) {
    let e = fourier4(v[j], v[j + 2u], v[j + 4u], v[j + 6u]);
    let o = fourier4(v[j + 1u], v[j + 3u], v[j + 5u], v[j + 7u]);
    let o1 = R * vec2(o[1].x + o[1].y, o[1].y - o[1].x);
    let o2 = vec2(o[2].y, -o[2].x);
    let o3 = R * vec2(o[3].y - o[3].x, -o[3].x - o[3].y);
    v[j] = e[0] + o[0];
    v[j + 1u] = e[1] + o1;
    v[j + 2u] = e[2] + o2;
    v[j + 3u] = e[3] + o3;
    v[j + 4u] = e[0] - o[0];
    v[j + 5u] = e[1] - o1;
    v[j + 6u] = e[2] - o2;
    v[j + 7u] = e[3] - o3;
}

// Four steps of 8 points: 32 = 4 * 8 (Cooley and Tukey, 1965).
fn fourier() {
    eighths(0u, vec2(1.0, 0.0), vec2(1.0, 0.0), vec2(1.0, 0.0));
    eighths(1u, vec2(C1, -S1), vec2(C2, -S2), vec2(C3, -S3));
    eighths(2u, vec2(C2, -S2), vec2(R, -R), vec2(S2, -C2));
    eighths(3u, vec2(C3, -S3), vec2(S2, -C2), vec2(-S1, -C1));
    eighths(4u, vec2(R, -R), vec2(0.0, -1.0), vec2(-R, -R));
    eighths(5u, vec2(S3, -C3), vec2(-S2, -C2), vec2(-C1, -S1));
    eighths(6u, vec2(S2, -C2), vec2(-R, -R), vec2(-C2, S2));
    eighths(7u, vec2(S1, -C1), vec2(-C2, -S2), vec2(-S3, C3));
    eight(0u);
    eight(8u);
    eight(16u);
    eight(24u);
}

// Where `fourier` leaves result `k`.
fn point(k: u32) -> u32 {
    return k % 4u * 8u + k / 4u;
}

// Gives result `k` of this lane to lane `k`, as its point `lane`. Where they lie is spread over the memory's banks.
fn give(k: u32) {
    if !KERNELS || k <= 16u {
        grid[k * 32u + (lane ^ k)] = v[point(k)];
    }
}

fn take(k: u32) {
    if KERNELS && k > 16u {
        v[k] = vec2(0.0);
    } else {
        v[k] = grid[lane * 32u + (k ^ lane)];
    }
}

fn load_all() {
    load(0u); load(1u); load(2u); load(3u); load(4u); load(5u); load(6u); load(7u);
    load(8u); load(9u); load(10u); load(11u); load(12u); load(13u); load(14u); load(15u);
    load(16u); load(17u); load(18u); load(19u); load(20u); load(21u); load(22u); load(23u);
    load(24u); load(25u); load(26u); load(27u); load(28u); load(29u); load(30u); load(31u);
}

fn store_all() {
    store(0u); store(1u); store(2u); store(3u); store(4u); store(5u); store(6u); store(7u);
    store(8u); store(9u); store(10u); store(11u); store(12u); store(13u); store(14u); store(15u);
    store(16u); store(17u); store(18u); store(19u); store(20u); store(21u); store(22u); store(23u);
    store(24u); store(25u); store(26u); store(27u); store(28u); store(29u); store(30u); store(31u);
}

fn hand_round() {
    give(0u); give(1u); give(2u); give(3u); give(4u); give(5u); give(6u); give(7u);
    give(8u); give(9u); give(10u); give(11u); give(12u); give(13u); give(14u); give(15u);
    give(16u); give(17u); give(18u); give(19u); give(20u); give(21u); give(22u); give(23u);
    give(24u); give(25u); give(26u); give(27u); give(28u); give(29u); give(30u); give(31u);
    workgroupBarrier();
    take(0u); take(1u); take(2u); take(3u); take(4u); take(5u); take(6u); take(7u);
    take(8u); take(9u); take(10u); take(11u); take(12u); take(13u); take(14u); take(15u);
    take(16u); take(17u); take(18u); take(19u); take(20u); take(21u); take(22u); take(23u);
    take(24u); take(25u); take(26u); take(27u); take(28u); take(29u); take(30u); take(31u);
}

// The place of a frequency, and whether it is the other one of a pair.
struct Place {
    index: u32,
    other: bool,
}

fn place_of(ky: u32, kx: u32) -> Place {
    // These lines hold both frequencies of their pairs.
    let edge = ky % 16u == 0u;
    let other = select(ky > 16u, kx > 16u, edge);
    let line = select((min(ky, 32u - ky) - 1u) * 32u, 480u + ky / 16u * 17u, edge);
    return Place(line + select(kx, (32u - kx) % 32u, other), other);
}
