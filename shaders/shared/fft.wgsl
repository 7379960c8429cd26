// Fourier transforms of 32x32 points by 32 invocations: each transforms a column, hands its results to the others, and
// transforms a row.
// Of two frequencies f and -f one counts as the first and has a spot of its own, 514 of 1,024 in all. The value at the
// other one is kept, conjugated, beside that at the first: for a single real tile both would be the same, for two tiles
// as real and imaginary part they are not.
// The including file defines `load(k)`, which gives point `k` of this invocation's column, and `store(k, value)`, which
// takes result `k` of its row.

const FREQUENCIES: u32 = 514u;

// Cosines and sines of the angles 2 pi k / 32.
const C1: f32 = 0.98078528;
const S1: f32 = 0.19509032;
const C2: f32 = 0.92387953;
const S2: f32 = 0.38268343;
const C3: f32 = 0.83146961;
const S3: f32 = 0.55557023;
const R: f32 = 0.70710678;

// Tk is exp(-2 pi i k / 32).
const T0: vec2<f32> = vec2(1.0, 0.0);
const T1: vec2<f32> = vec2(C1, -S1);
const T2: vec2<f32> = vec2(C2, -S2);
const T3: vec2<f32> = vec2(C3, -S3);
const T4: vec2<f32> = vec2(R, -R);
const T5: vec2<f32> = vec2(S3, -C3);
const T6: vec2<f32> = vec2(S2, -C2);
const T7: vec2<f32> = vec2(S1, -C1);
const T8: vec2<f32> = vec2(0.0, -1.0);
const T9: vec2<f32> = vec2(-S1, -C1);
const T10: vec2<f32> = vec2(-S2, -C2);
const T12: vec2<f32> = vec2(-R, -R);
const T14: vec2<f32> = vec2(-C2, -S2);
const T15: vec2<f32> = vec2(-C1, -S1);
const T18: vec2<f32> = vec2(-C2, S2);
const T21: vec2<f32> = vec2(-S3, C3);

// Whether kernels are transformed. They are real, so that lines from 17 on are conjugates of others, and at most 17
// pixels a side, so that points from 17 on are zero: neither is computed.
override KERNELS: bool = false;

// The 32 points that an invocation transforms in place. Afterwards result k lies in the variable of number k % 4 * 8 +
// k / 4.
//#for K in 0..32
var<private> v$K: vec2<f32>;
//#end

// The number of the invocation.
var<private> lane: u32;

var<workgroup> handed: array<vec2<f32>, 1024>;

fn times(a: vec2<f32>, b: vec2<f32>) -> vec2<f32> {
    return vec2(a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x);
}

struct Four {
    a: vec2<f32>,
    b: vec2<f32>,
    c: vec2<f32>,
    d: vec2<f32>,
}

fn fourier4(a: vec2<f32>, b: vec2<f32>, c: vec2<f32>, d: vec2<f32>) -> Four {
    let s = a + c;
    let t = b + d;
    let m = a - c;
    let n = vec2(b.y - d.y, d.x - b.x);
    return Four(s + t, m + n, s - t, m - n);
}

// The transform of 32 = 4 * 8 points in two steps (Cooley and Tukey 1965).
fn fourier() {
    // Eight transforms of 4 points that lie eight apart, each result times its twiddle factor.
//#for A,B,C,D,X,Y,Z in 0,8,16,24,T0,T0,T0 1,9,17,25,T1,T2,T3 2,10,18,26,T2,T4,T6 3,11,19,27,T3,T6,T9 4,12,20,28,T4,T8,T12 5,13,21,29,T5,T10,T15 6,14,22,30,T6,T12,T18 7,15,23,31,T7,T14,T21
    let f$A = fourier4(v$A, v$B, v$C, v$D);
    v$A = f$A.a;
    v$B = times(f$A.b, $X);
    v$C = times(f$A.c, $Y);
    v$D = times(f$A.d, $Z);
//#end
    // Four transforms of 8 neighbouring points.
//#for A,B,C,D,E,F,G,H in 0,1,2,3,4,5,6,7 8,9,10,11,12,13,14,15 16,17,18,19,20,21,22,23 24,25,26,27,28,29,30,31
    let e$A = fourier4(v$A, v$C, v$E, v$G);
    let o$A = fourier4(v$B, v$D, v$F, v$H);
    let p$A = R * vec2(o$A.b.x + o$A.b.y, o$A.b.y - o$A.b.x);
    let q$A = vec2(o$A.c.y, -o$A.c.x);
    let r$A = R * vec2(o$A.d.y - o$A.d.x, -o$A.d.x - o$A.d.y);
    v$A = e$A.a + o$A.a;
    v$B = e$A.b + p$A;
    v$C = e$A.c + q$A;
    v$D = e$A.d + r$A;
    v$E = e$A.a - o$A.a;
    v$F = e$A.b - p$A;
    v$G = e$A.c - q$A;
    v$H = e$A.d - r$A;
//#end
}

// Hands result `k` of this lane to lane `k`, whose point number `lane` it becomes. The exclusive or spreads
// neighbouring lanes over the banks of the memory.
fn give(k: u32, value: vec2<f32>) {
    if !KERNELS || k <= 16u {
        handed[k * 32u + (lane ^ k)] = value;
    }
}

fn taken(k: u32) -> vec2<f32> {
    if KERNELS && k > 16u {
        return vec2(0.0);
    }
    return handed[lane * 32u + (k ^ lane)];
}

fn load_all() {
//#for K in 0..32
    v$K = load($Ku);
//#end
}

fn store_all() {
//#for K,V in 0,0 1,8 2,16 3,24 4,1 5,9 6,17 7,25 8,2 9,10 10,18 11,26 12,3 13,11 14,19 15,27 16,4 17,12 18,20 19,28 20,5 21,13 22,21 23,29 24,6 25,14 26,22 27,30 28,7 29,15 30,23 31,31
    store($Ku, v$V);
//#end
}

fn hand_round() {
//#for K,V in 0,0 1,8 2,16 3,24 4,1 5,9 6,17 7,25 8,2 9,10 10,18 11,26 12,3 13,11 14,19 15,27 16,4 17,12 18,20 19,28 20,5 21,13 22,21 23,29 24,6 25,14 26,22 27,30 28,7 29,15 30,23 31,31
    give($Ku, v$V);
//#end
    workgroupBarrier();
//#for K in 0..32
    v$K = taken($Ku);
//#end
}

// The number of the pair that a frequency belongs to, and whether it is the second one of it.
struct Spot {
    index: u32,
    other: bool,
}

fn spot_of(ky: u32, kx: u32) -> Spot {
    // Lines 0 and 16 are their own negatives: they hold both frequencies of each of their pairs.
    let edge = ky % 16u == 0u;
    let other = select(ky > 16u, kx > 16u, edge);
    let line = select((min(ky, 32u - ky) - 1u) * 32u, 480u + ky / 16u * 17u, edge);
    return Spot(line + select(kx, (32u - kx) % 32u, other), other);
}
