//! First values of weights.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal, Uniform};

use crate::hash::fnv1a;
use crate::tensor::{Shape, Tensor};

/// First values by the reference's rule (`weights_init_orthogonal`): orthogonal matrices for convolutions and linear
/// layers (dimensions of at least two), zero for biases, one for the scales of norms, which are the only vectors called
/// `weight`. Each weight has its own generator, so that none depends on the others.
pub(crate) fn orthogonal(name: &str, dims: &[usize], seed: u64) -> Tensor {
    let len: usize = dims.iter().product();
    if dims.len() < 2 {
        let value = if name.ends_with("weight") { 1.0 } else { 0.0 };
        return Tensor::new(dims, vec![value; len]);
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ fnv1a(name.as_bytes()));
    let (rows, columns) = (dims[0], len / dims[0]);
    // The longer side holds vectors of that length; as many as the shorter side are made orthonormal.
    let (count, length) = (rows.min(columns), rows.max(columns));
    let mut vectors: Vec<Vec<f64>> = Vec::with_capacity(count);
    while vectors.len() < count {
        let mut v: Vec<f64> = (0..length).map(|_| StandardNormal.sample(&mut rng)).collect();
        // Twice is enough for orthogonality to rounding (Kahan's rule).
        for _ in 0..2 {
            for known in &vectors {
                let along: f64 = v.iter().zip(known).map(|(a, b)| a * b).sum();
                v.iter_mut().zip(known).for_each(|(a, b)| *a -= along * b);
            }
        }
        let norm = v.iter().map(|a| a * a).sum::<f64>().sqrt();
        // A vector within the span of the others is drawn again.
        if norm > 1e-6 {
            v.iter_mut().for_each(|a| *a /= norm);
            vectors.push(v);
        }
    }
    let at = |row: usize, column: usize| if rows <= columns { vectors[row][column] } else { vectors[column][row] };
    let values = (0..len).map(|i| at(i / columns, i % columns) as f32).collect();
    Tensor::new(dims, values)
}

/// First values by PyTorch's own rule, of weights whose names and dimensions are given, one after the other: weights of
/// convolutions and their biases are uniform in plus and minus one over the root of the number of inputs; norms begin
/// as the identity. Each weight has its own generator.
pub(crate) fn pytorch_default(weights: &[(String, Vec<usize>)], seed: u64) -> Vec<f32> {
    let inputs = |name: &str| {
        let entry = weights.iter().find(|(n, dims)| n == name && dims.len() > 1);
        entry.map(|(_, dims)| dims[1..].iter().product::<usize>())
    };
    let mut values = Vec::new();
    for (name, dims) in weights {
        let weight = name.strip_suffix("bias").map_or_else(|| name.clone(), |module| format!("{module}weight"));
        let count = dims.iter().product();
        let Some(inputs) = inputs(&weight) else {
            values.extend(orthogonal(name, dims, seed).into_data());
            continue;
        };
        let bound = 1.0 / (inputs as f64).sqrt();
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ fnv1a(name.as_bytes()));
        let uniform = Uniform::new(-bound, bound).expect("the bound is positive");
        values.extend((0..count).map(|_| uniform.sample(&mut rng) as f32));
    }
    values
}

/// The first value of a running statistic: means of zero, variances of one.
pub(crate) fn statistic(name: &str, shape: Shape) -> Tensor {
    let value = if name.ends_with(".running_var") { 1.0 } else { 0.0 };
    Tensor::new([shape.numel()], vec![value; shape.numel()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_are_orthogonal_and_vectors_plain() {
        for dims in [[6, 2, 3, 3], [40, 3, 3, 1]] {
            let w = orthogonal("w.weight", &dims, 5);
            let columns = w.data().len() / dims[0];
            let row = |i: usize| &w.data()[i * columns..][..columns];
            let column = |i: usize| w.data()[i..].iter().step_by(columns).copied().collect::<Vec<f32>>();
            let vectors: Vec<Vec<f32>> = if dims[0] <= columns {
                (0..dims[0]).map(|i| row(i).to_vec()).collect()
            } else {
                (0..columns).map(column).collect()
            };
            for (i, a) in vectors.iter().enumerate() {
                for (j, b) in vectors.iter().enumerate() {
                    let dot: f32 = a.iter().zip(b).map(|(a, b)| a * b).sum();
                    assert!((dot - if i == j { 1.0 } else { 0.0 }).abs() < 1e-5, "{i} {j} {dot}");
                }
            }
        }
        assert_eq!(orthogonal("norm.weight", &[3], 1).data(), [1.0; 3]);
        assert_eq!(orthogonal("norm.bias", &[3], 1).data(), [0.0; 3]);
        assert_ne!(orthogonal("a.weight", &[2, 2], 1), orthogonal("b.weight", &[2, 2], 1));
    }
}
