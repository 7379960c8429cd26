//! What losses are made of, written as nodes of the graph that is trained.

use std::collections::BTreeMap;

use crate::graph::{Graph, GraphError, NodeId};
use crate::ops::conv2d::{Conv2d, ConvSpec};
use crate::ops::pointwise::{Expr, Pointwise};
use crate::ops::reduce_sum::ReduceSum;
use crate::tensor::{Shape, Tensor};

/// Side of SSIM's Gaussian window.
const WINDOW: usize = 11;
/// Standard deviation of the window in pixels.
const SIGMA: f64 = 1.5;
/// SSIM's constants for images of range 1, which the reference also takes for its range of 2.
const C1: f32 = 1e-4;
const C2: f32 = 9e-4;

/// Names of the weights that the losses read and that are never trained.
const SOBEL: &str = "loss.sobel";
const GAUSSIAN: &str = "loss.gaussian";

/// The weights that the losses read: Sobel's kernels and SSIM's window (`create_window` of the reference).
pub(crate) fn constants() -> BTreeMap<String, Tensor> {
    let sobel = [-1., 0., 1., -2., 0., 2., -1., 0., 1., 1., 2., 1., 0., 0., 0., -1., -2., -1.];
    let centre = (WINDOW / 2) as f64;
    let bell: Vec<f64> = (0..WINDOW).map(|i| (-(i as f64 - centre).powi(2) / (2.0 * SIGMA * SIGMA)).exp()).collect();
    // Normalised in one dimension and rounded before the product, as the reference does it.
    let total: f64 = bell.iter().map(|v| f64::from(*v as f32)).sum();
    let bell: Vec<f32> = bell.iter().map(|v| (f64::from(*v as f32) / total) as f32).collect();
    let window = bell.iter().flat_map(|a| bell.iter().map(move |b| a * b)).collect();
    BTreeMap::from([
        (SOBEL.to_owned(), Tensor::new([2, 1, 3, 3], sobel.to_vec())),
        (GAUSSIAN.to_owned(), Tensor::new([1, 1, WINDOW, WINDOW], window)),
    ])
}

/// The mean of all elements, `[1, 1, 1, 1]`.
///
/// # Errors
/// [`GraphError`] if `x` is empty.
pub(crate) fn mean(g: &mut Graph, name: &str, x: NodeId) -> Result<NodeId, GraphError> {
    let scale = 1.0 / g.shape(x).numel() as f32;
    let sum = g.apply(name, ReduceSum::ALL, &[x])?;
    g.apply(name, Pointwise::build(|[x]| x.affine(scale, 0.0)), &[sum])
}

/// The mean squared difference: stage I's loss (`p_losses` of the reference, its sum over the number of elements).
///
/// # Errors
/// [`GraphError`] if the shapes differ.
pub(crate) fn mse(g: &mut Graph, prediction: NodeId, target: NodeId) -> Result<NodeId, GraphError> {
    let square = Pointwise::build(|[a, b]| {
        let d = a - b;
        d.clone() * d
    });
    let squares = g.apply("mse", square, &[prediction, target])?;
    mean(g, "mse", squares)
}

/// The mean absolute difference.
///
/// # Errors
/// [`GraphError`] if the shapes differ.
pub(crate) fn l1(g: &mut Graph, name: &str, a: NodeId, b: NodeId) -> Result<NodeId, GraphError> {
    let distance = g.apply(name, Pointwise::build(|[a, b]| (a - b).abs()), &[a, b])?;
    mean(g, name, distance)
}

/// `|sobel_x| + |sobel_y|` of a one-channel image, zeros beyond its border (`Sobelxy` of the reference).
///
/// # Errors
/// [`GraphError`] if `x` has more than one channel.
pub(crate) fn sobel_abs(g: &mut Graph, x: NodeId) -> Result<NodeId, GraphError> {
    let kernels = g.param(SOBEL, Shape::new(2, 1, 3, 3))?;
    let both = g.apply("sobel", Conv2d::new(ConvSpec::same(3)), &[x, kernels])?;
    let across = g.slice("sobel_x", both, 0, 1)?;
    let down = g.slice("sobel_y", both, 1, 1)?;
    g.apply("sobel_abs", Pointwise::build(|[x, y]| x.abs() + y.abs()), &[across, down])
}

/// The Gaussian mean around each pixel, zeros beyond the border.
fn blur(g: &mut Graph, x: NodeId) -> Result<NodeId, GraphError> {
    let window = g.param(GAUSSIAN, Shape::new(1, 1, WINDOW, WINDOW))?;
    g.apply("ssim.blur", Conv2d::new(ConvSpec::same(WINDOW)), &[x, window])
}

/// The Gaussian mean of `a * b` less the product of their means.
fn covariance(g: &mut Graph, [a, mean_a]: [NodeId; 2], [b, mean_b]: [NodeId; 2]) -> Result<NodeId, GraphError> {
    let product = g.apply("ssim.product", Pointwise::mul(), &[a, b])?;
    let product = blur(g, product)?;
    g.apply("ssim.covariance", Pointwise::build(|[ab, a, b]| ab - a * b), &[product, mean_a, mean_b])
}

/// The variance around each pixel under the Gaussian window, which rounding can make negative where an image is flat.
///
/// # Errors
/// [`GraphError`] if `x` has more than one channel.
pub(crate) fn local_variance(g: &mut Graph, x: NodeId) -> Result<NodeId, GraphError> {
    let x = [x, blur(g, x)?];
    covariance(g, x, x)
}

/// The mean structural similarity of two one-channel images (Wang et al. 2004), window 11, sigma 1.5, zeros beyond the
/// border (`ssim_swinfusion` of the reference).
///
/// # Errors
/// [`GraphError`] if the shapes differ.
pub(crate) fn ssim(g: &mut Graph, a: NodeId, b: NodeId) -> Result<NodeId, GraphError> {
    let a = [a, blur(g, a)?];
    let b = [b, blur(g, b)?];
    let (var_a, var_b, cov) = (covariance(g, a, a)?, covariance(g, b, b)?, covariance(g, a, b)?);
    let map = Pointwise::build(|[mean_a, mean_b, var_a, var_b, cov]| {
        let luminance = (mean_a.clone() * mean_b.clone()).affine(2.0, C1);
        let energy = (mean_a.clone() * mean_a + mean_b.clone() * mean_b).affine(1.0, C1);
        luminance * cov.affine(2.0, C2) / (energy * (var_a + var_b).affine(1.0, C2))
    });
    let map = g.apply("ssim", map, &[a[1], b[1], var_a, var_b, cov])?;
    mean(g, "ssim", map)
}

/// The similarity in contrast and structure of a fused image to whichever source varies more around each pixel
/// (`_ssim` of the reference).
///
/// With `nan_switch` a pixel where rounding makes the MRI's or the other's variance negative goes to the other image,
/// as the reference's NaN makes it; else variances are cut off at zero.
///
/// # Errors
/// [`GraphError`] if the shapes differ.
pub(crate) fn structure_ssim(
    g: &mut Graph,
    fused: NodeId,
    mri: NodeId,
    other: NodeId,
    nan_switch: bool,
) -> Result<NodeId, GraphError> {
    let with_mean = |g: &mut Graph, x: NodeId| Ok([x, blur(g, x)?]);
    let (f, m, o) = (with_mean(g, fused)?, with_mean(g, mri)?, with_mean(g, other)?);
    let (var_f, var_m, var_o) = (covariance(g, f, f)?, covariance(g, m, m)?, covariance(g, o, o)?);
    let (cov_m, cov_o) = (covariance(g, f, m)?, covariance(g, f, o)?);
    let pick = Pointwise::build(|[m, o]| {
        let zero = m.clone().affine(0.0, 0.0);
        let deviation = |v: &Expr| v.clone().max(zero.clone()).sqrt();
        let more = (deviation(&m) - deviation(&o)).step(1.0);
        if nan_switch { more * m.step(1.0) * o.step(1.0) } else { more }
    });
    let pick = g.apply("ssim.pick", pick, &[var_m, var_o])?;
    let map = Pointwise::build(|[pick, var_f, var_m, var_o, cov_m, cov_o]| {
        let like = |cov: Expr, var| cov.affine(2.0, C2) / (var_f.clone() + var).affine(1.0, C2);
        pick.select(like(cov_m, var_m), like(cov_o, var_o))
    });
    let map = g.apply("ssim", map, &[pick, var_f, var_m, var_o, cov_m, cov_o])?;
    mean(g, "ssim", map)
}

/// What a fused image is held to; the default is the references', the brighter source and the stronger edges.
///
/// Both references' own images are brighter and sharper than that. [`FusionTarget::overlap`] adds what both sources show,
/// which is where contrast and what is common to both come from; [`FusionTarget::gradient_gain`] sharpens.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct FusionTarget {
    /// Share of the darker source, above black, that is added to the brighter, up to white.
    pub overlap: f32,
    /// What the stronger edges are multiplied by.
    pub gradient_gain: f32,
    /// Black and white.
    pub range: [f32; 2],
}

impl Default for FusionTarget {
    fn default() -> Self {
        Self { overlap: 0.0, gradient_gain: 1.0, range: [-1.0, 1.0] }
    }
}

impl FusionTarget {
    /// The mean distance of a fused image to the brighter of its sources, pixel by pixel.
    ///
    /// # Errors
    /// [`GraphError`] if the shapes differ.
    pub(crate) fn intensity_distance(
        &self,
        g: &mut Graph,
        [fused, mri, other]: [NodeId; 3],
    ) -> Result<NodeId, GraphError> {
        let Self { overlap, range: [black, white], .. } = *self;
        let target = Pointwise::build(|[a, b]| {
            let brighter = a.clone().max(b.clone());
            if overlap == 0.0 {
                return brighter;
            }
            let ceiling = a.clone().affine(0.0, white);
            (brighter + a.min(b).affine(overlap, -overlap * black)).min(ceiling)
        });
        let target = g.apply("brighter", target, &[other, mri])?;
        l1(g, "intensity", fused, target)
    }

    /// The mean distance of a fused image's edges to the stronger of its sources', pixel by pixel.
    ///
    /// # Errors
    /// [`GraphError`] if the shapes differ.
    pub(crate) fn edge_distance(&self, g: &mut Graph, [fused, mri, other]: [NodeId; 3]) -> Result<NodeId, GraphError> {
        let (edges_m, edges_o, edges_f) = (sobel_abs(g, mri)?, sobel_abs(g, other)?, sobel_abs(g, fused)?);
        let gain = self.gradient_gain;
        let target = Pointwise::build(|[a, b]| if gain == 1.0 { a.max(b) } else { a.max(b).affine(gain, 0.0) });
        let target = g.apply("stronger", target, &[edges_o, edges_m])?;
        l1(g, "edges", edges_f, target)
    }
}

/// What the parts of a fusion loss weigh and are held to; the default is stage II's of the reference (`Fusionloss`).
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct FusionLossConfig {
    /// Of the distance to the brighter source, pixel by pixel.
    pub intensity: f32,
    /// Of the distance of the edges to the stronger source's.
    pub gradient: f32,
    /// Of what the structural similarity lacks to 1.
    pub ssim: f32,
    /// Whether flat pixels, where rounding makes a variance negative, take the other image's structure; stage II only.
    pub nan_switch: bool,
    /// What the fused image is held to.
    pub target: FusionTarget,
}

impl Default for FusionLossConfig {
    fn default() -> Self {
        Self { intensity: 1.5, gradient: 1.0, ssim: 0.5, nan_switch: true, target: FusionTarget::default() }
    }
}
