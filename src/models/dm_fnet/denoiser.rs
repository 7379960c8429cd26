//! The diffusion UNet as a model of its own: it predicts x_0 of noisy images and draws images from noise.

use super::unet::{UnetConfig, unet};
use crate::device::{Device, Executable, ParamSource};
use crate::diffusion::{NoiseSchedule, NoiseSource};
use crate::graph::Graph;
use crate::models::checkpoint::ModelError;
use crate::tensor::Shape;

/// A UNet on a device, for images of one size.
#[derive(Debug)]
pub struct Denoiser {
    executable: Executable,
    shape: Shape,
}

impl Denoiser {
    /// The UNet for batches of `shape`, `[n, in_channel, h, w]`.
    ///
    /// # Errors
    /// [`ModelError`] if it does not take the size or does not fit the device.
    pub fn new(
        config: &UnetConfig,
        weights: &dyn ParamSource,
        device: &Device,
        shape: Shape,
    ) -> Result<Self, ModelError> {
        let mut graph = Graph::new();
        let x_t = graph.input("x_t", shape);
        let level = graph.input("level", Shape::new(shape.n(), 1, 1, 1));
        let x_0 = unet(&mut graph, config, x_t, level)?.x_final;
        Ok(Self { executable: device.compile(&graph, &[x_0], weights)?, shape })
    }

    /// The prediction of x_0 from x_t, whose noise level (the square root of alpha_bar) is `level`.
    ///
    /// # Errors
    /// [`ModelError`] if the device fails or the prediction is not finite.
    pub fn predict(&self, x_t: &[f32], level: f32) -> Result<Vec<f32>, ModelError> {
        let levels = vec![level; self.shape.n()];
        Ok(self.executable.run(&[("x_t", x_t), ("level", &levels)])?.swap_remove(0))
    }

    /// Draws images from noise and gives the batch after each step, the last one finished.
    ///
    /// With as many `steps` as the schedule this is the ancestral sampling of the reference (`p_sample`): predictions are
    /// cut off at [-1, 1]. With fewer it is DDIM without noise (Song et al. 2021, eq. 12, eta 0) over evenly spaced
    /// steps. `observe` gets the steps done and the images, and may end the sampling by returning `false`.
    ///
    /// # Errors
    /// [`ModelError`] if the device fails or a prediction is not finite.
    pub fn sample(
        &self,
        schedule: &NoiseSchedule,
        steps: usize,
        noise: &mut NoiseSource,
        mut observe: impl FnMut(usize, &[f32]) -> bool,
    ) -> Result<Vec<f32>, ModelError> {
        let n = schedule.len();
        let mut x = noise.normal(self.shape.numel());
        for done in 0..steps {
            let t = n - 1 - done * n / steps;
            let before = (done + 1 < steps).then(|| n - 1 - (done + 1) * n / steps);
            let mut x_0 = self.predict(&x, schedule.sqrt_alphas_cumprod_prev[t + 1] as f32)?;
            x_0.iter_mut().for_each(|v| *v = v.clamp(-1.0, 1.0));
            x = if steps == n { posterior(schedule, t, &x_0, &x, noise) } else { ddim(schedule, t, before, &x_0, &x) };
            if !observe(done + 1, &x) {
                break;
            }
        }
        Ok(x)
    }
}

/// A draw of x_{t-1} given x_t and x_0, `t` counting from 0 (`q_posterior` and `p_sample` of the reference).
fn posterior(schedule: &NoiseSchedule, t: usize, x_0: &[f32], x_t: &[f32], noise: &mut NoiseSource) -> Vec<f32> {
    let bars = &schedule.alphas_cumprod;
    let before = if t == 0 { 1.0 } else { bars[t - 1] };
    let beta = schedule.betas[t];
    let of_x_0 = (beta * before.sqrt() / (1.0 - bars[t])) as f32;
    let of_x_t = ((1.0 - before) * (1.0 - beta).sqrt() / (1.0 - bars[t])) as f32;
    let sigma = if t == 0 { 0.0 } else { (beta * (1.0 - before) / (1.0 - bars[t])).max(1e-20).sqrt() as f32 };
    let z = noise.normal(x_t.len());
    x_0.iter().zip(x_t).zip(z).map(|((x_0, x_t), z)| of_x_0 * x_0 + of_x_t * x_t + sigma * z).collect()
}

/// x at step `before` (`None`: without noise) in the direction that x_t and x_0 give.
fn ddim(schedule: &NoiseSchedule, t: usize, before: Option<usize>, x_0: &[f32], x_t: &[f32]) -> Vec<f32> {
    let bar = schedule.alphas_cumprod[t];
    let next = before.map_or(1.0, |t| schedule.alphas_cumprod[t]);
    let (signal, sigma) = (bar.sqrt() as f32, (1.0 - bar).sqrt() as f32);
    let (next_signal, next_sigma) = (next.sqrt() as f32, (1.0 - next).sqrt() as f32);
    let step = |(x_0, x_t): (&f32, &f32)| next_signal * x_0 + next_sigma * ((x_t - signal * x_0) / sigma);
    x_0.iter().zip(x_t).map(step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::{ScheduleConfig, ScheduleKind};

    fn schedule() -> NoiseSchedule {
        let config = ScheduleConfig { kind: ScheduleKind::Linear, n_timestep: 50, linear_start: 1e-3, linear_end: 0.1 };
        NoiseSchedule::new(&config)
    }

    #[test]
    fn ddim_with_the_true_image_follows_the_forward_process() {
        let schedule = schedule();
        let (x_0, z) = (0.3f32, -1.2f32);
        let at = |t: usize| {
            let bar = schedule.alphas_cumprod[t];
            bar.sqrt() as f32 * x_0 + (1.0 - bar).sqrt() as f32 * z
        };
        let moved = ddim(&schedule, 40, Some(15), &[x_0], &[at(40)]);
        assert!((moved[0] - at(15)).abs() < 1e-5);
        assert!((ddim(&schedule, 15, None, &[x_0], &[at(15)])[0] - x_0).abs() < 1e-6);
    }

    #[test]
    fn the_posterior_has_the_forward_processs_marginals() {
        let schedule = schedule();
        let (t, x_0, count) = (30, 0.5f32, 40_000);
        let mut noise = NoiseSource::new(1);
        let bar = schedule.alphas_cumprod[t];
        let x_t: Vec<f32> =
            noise.normal(count).iter().map(|z| bar.sqrt() as f32 * x_0 + (1.0 - bar).sqrt() as f32 * z).collect();
        let before = posterior(&schedule, t, &vec![x_0; count], &x_t, &mut noise);
        let bar = schedule.alphas_cumprod[t - 1];
        let mean = before.iter().map(|v| f64::from(*v)).sum::<f64>() / count as f64;
        let variance = before.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / count as f64;
        assert!((mean - bar.sqrt() * 0.5).abs() < 0.02, "{mean}");
        assert!((variance - (1.0 - bar)).abs() < 0.02, "{variance}");
        assert_eq!(posterior(&schedule, 0, &[0.25], &[0.3], &mut noise), [0.25]);
    }
}
