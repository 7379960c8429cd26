//! Noise schedules and the forward process of the diffusion model.
//!
//! Tables are float64 and cast once, as the reference does it (`models/sr3_modules/diffusion.py`).

use std::f64::consts::FRAC_PI_2;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal, Uniform};
use serde::{Deserialize, Serialize};

/// How the variance of the noise grows over the steps.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    /// Evenly from start to end.
    Linear,
    /// The squares of evenly spaced roots.
    Quad,
    /// The end value throughout.
    Const,
    /// `1/n, 1/(n-1), ..., 1`.
    Jsd,
    /// Linear over the first tenth, then constant.
    Warmup10,
    /// Linear over the first half, then constant.
    Warmup50,
    /// From a squared cosine of alpha_bar (Nichol and Dhariwal 2021, eq. 17), offset 0.008.
    Cosine,
}

/// The configuration of a schedule; the default is the one DM-FNet fuses with.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct ScheduleConfig {
    /// Its kind.
    #[serde(alias = "schedule")]
    pub kind: ScheduleKind,
    /// Number of steps.
    pub n_timestep: usize,
    /// First beta, where the kind uses it.
    pub linear_start: f64,
    /// Last beta, where the kind uses it.
    pub linear_end: f64,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self { kind: ScheduleKind::Linear, n_timestep: 2000, linear_start: 1e-6, linear_end: 1e-2 }
    }
}

/// The tables of a noise schedule of `n` steps.
#[derive(Clone, Debug)]
pub struct NoiseSchedule {
    /// Variance added at each step, `n` values.
    pub betas: Vec<f64>,
    /// Running product of `1 - beta`, `n` values: alpha_bar.
    pub alphas_cumprod: Vec<f64>,
    /// Square roots of alpha_bar before each step and after the last: `n + 1` values from 1 on.
    pub sqrt_alphas_cumprod_prev: Vec<f64>,
}

/// `n` values evenly from `start` to `end`, the last exactly `end`.
fn linspace(start: f64, end: f64, n: usize) -> Vec<f64> {
    let step = (end - start) / n.saturating_sub(1).max(1) as f64;
    let mut values: Vec<f64> = (0..n).map(|i| start + step * i as f64).collect();
    if let (true, Some(last)) = (n > 1, values.last_mut()) {
        *last = end;
    }
    values
}

fn warmup(config: &ScheduleConfig, fraction: f64) -> Vec<f64> {
    let ramp = (config.n_timestep as f64 * fraction) as usize;
    let mut betas = linspace(config.linear_start, config.linear_end, ramp);
    betas.resize(config.n_timestep, config.linear_end);
    betas
}

fn cosine(n: usize) -> Vec<f64> {
    const OFFSET: f64 = 8e-3;
    let alpha_bar = |i: usize| {
        let t = i as f64 / n as f64 + OFFSET;
        (t / (1.0 + OFFSET) * FRAC_PI_2).cos().powi(2)
    };
    let first = alpha_bar(0);
    let alphas: Vec<f64> = (0..=n).map(|i| alpha_bar(i) / first).collect();
    alphas.windows(2).map(|a| (1.0 - a[1] / a[0]).min(0.999)).collect()
}

impl NoiseSchedule {
    /// The tables of a configuration.
    pub(crate) fn new(config: &ScheduleConfig) -> Self {
        let n = config.n_timestep;
        let betas = match config.kind {
            ScheduleKind::Linear => linspace(config.linear_start, config.linear_end, n),
            ScheduleKind::Quad => {
                let roots = linspace(config.linear_start.sqrt(), config.linear_end.sqrt(), n);
                roots.iter().map(|r| r * r).collect()
            }
            ScheduleKind::Const => vec![config.linear_end; n],
            ScheduleKind::Jsd => linspace(n as f64, 1.0, n).iter().map(|v| 1.0 / v).collect(),
            ScheduleKind::Warmup10 => warmup(config, 0.1),
            ScheduleKind::Warmup50 => warmup(config, 0.5),
            ScheduleKind::Cosine => cosine(n),
        };
        Self::from_betas(betas)
    }

    /// The tables of given variances, such as a checkpoint's.
    pub(crate) fn from_betas(betas: Vec<f64>) -> Self {
        let mut product = 1.0;
        let alphas_cumprod: Vec<f64> = betas
            .iter()
            .map(|beta| {
                product *= 1.0 - beta;
                product
            })
            .collect();
        let all = std::iter::once(&1.0).chain(&alphas_cumprod);
        Self { sqrt_alphas_cumprod_prev: all.map(|a: &f64| a.sqrt()).collect(), betas, alphas_cumprod }
    }

    /// Number of steps.
    pub(crate) fn len(&self) -> usize {
        self.betas.len()
    }

    /// The twelve float32 buffers that the reference registers, by name.
    pub(crate) fn buffers(&self) -> Vec<(&'static str, Vec<f32>)> {
        let bars = &self.alphas_cumprod;
        let prev: Vec<f64> = std::iter::once(1.0).chain(bars.iter().copied()).take(self.len()).collect();
        let posterior: Vec<f64> = (0..self.len()).map(|i| self.betas[i] * (1.0 - prev[i]) / (1.0 - bars[i])).collect();
        let of = |f: &dyn Fn(usize) -> f64| (0..self.len()).map(|i| f(i) as f32).collect::<Vec<f32>>();
        vec![
            ("betas", of(&|i| self.betas[i])),
            ("alphas_cumprod", of(&|i| bars[i])),
            ("alphas_cumprod_prev", of(&|i| prev[i])),
            ("sqrt_alphas_cumprod", of(&|i| bars[i].sqrt())),
            ("sqrt_one_minus_alphas_cumprod", of(&|i| (1.0 - bars[i]).sqrt())),
            ("log_one_minus_alphas_cumprod", of(&|i| (1.0 - bars[i]).ln())),
            ("sqrt_recip_alphas_cumprod", of(&|i| (1.0 / bars[i]).sqrt())),
            ("sqrt_recipm1_alphas_cumprod", of(&|i| (1.0 / bars[i] - 1.0).sqrt())),
            ("posterior_variance", of(&|i| posterior[i])),
            ("posterior_log_variance_clipped", of(&|i| posterior[i].max(1e-20).ln())),
            ("posterior_mean_coef1", of(&|i| self.betas[i] * prev[i].sqrt() / (1.0 - bars[i]))),
            ("posterior_mean_coef2", of(&|i| (1.0 - prev[i]) * (1.0 - self.betas[i]).sqrt() / (1.0 - bars[i]))),
        ]
    }
}

/// The forward process `level * x_0 + sqrt(1 - level^2) * noise`, where `level` is the square root of alpha_bar
/// (`q_sample` of the reference).
///
/// # Panics
/// If the slices differ in length.
pub(crate) fn q_sample(x_0: &[f32], level: f32, noise: &[f32]) -> Vec<f32> {
    assert_eq!(x_0.len(), noise.len());
    let sigma = (1.0 - level * level).sqrt();
    x_0.iter().zip(noise).map(|(x, z)| level * x + sigma * z).collect()
}

/// [`q_sample`] of each item of a batch, which has as many items as there are levels.
///
/// # Panics
/// If `x_0` and `noise` differ in length.
pub(crate) fn q_sample_batch(x_0: &[f32], levels: &[f32], noise: &[f32]) -> Vec<f32> {
    assert_eq!(x_0.len(), noise.len());
    let item = (x_0.len() / levels.len().max(1)).max(1);
    let items = x_0.chunks(item).zip(noise.chunks(item)).zip(levels);
    items.flat_map(|((x, z), level)| q_sample(x, *level, z)).collect()
}

/// The source of noise: the same seed gives the same draws on every machine.
#[derive(Clone, Debug)]
pub struct NoiseSource(ChaCha8Rng);

impl NoiseSource {
    /// A source from a seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// The source of draw `number` of a seed, which does not depend on the draws before it.
    pub fn numbered(seed: u64, number: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(number);
        Self(rng)
    }

    /// A step of the schedule, all alike: 1 to its length.
    ///
    /// # Panics
    /// If the schedule is empty.
    pub(crate) fn step(&mut self, schedule: &NoiseSchedule) -> usize {
        Uniform::new_inclusive(1, schedule.len()).expect("a schedule has steps").sample(&mut self.0)
    }

    /// A level uniform between those before and after step `t` (1 to the schedule's length), as the reference draws it.
    ///
    /// # Panics
    /// If `t` is not a step of the schedule.
    pub(crate) fn level(&mut self, schedule: &NoiseSchedule, t: usize) -> f32 {
        let (before, after) = (schedule.sqrt_alphas_cumprod_prev[t - 1], schedule.sqrt_alphas_cumprod_prev[t]);
        let unit = Uniform::new(0.0f64, 1.0).expect("0 is less than 1").sample(&mut self.0);
        (before + (after - before) * unit) as f32
    }

    /// Independent standard normal values.
    pub(crate) fn normal(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| StandardNormal.sample(&mut self.0)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(kind: ScheduleKind, n: usize) -> NoiseSchedule {
        NoiseSchedule::new(&ScheduleConfig { kind, n_timestep: n, linear_start: 1e-4, linear_end: 2e-2 })
    }

    #[test]
    fn betas_are_the_definitions() {
        assert_eq!(of(ScheduleKind::Linear, 3).betas, [1e-4, 1.005e-2, 2e-2]);
        assert_eq!(of(ScheduleKind::Const, 2).betas, [2e-2, 2e-2]);
        assert_eq!(of(ScheduleKind::Jsd, 4).betas, [1.0 / 4.0, 1.0 / 3.0, 1.0 / 2.0, 1.0]);
        let quad = of(ScheduleKind::Quad, 3).betas;
        let middle = (0.01f64 + 0.02f64.sqrt()) / 2.0;
        approx::assert_relative_eq!(quad[1], middle * middle, max_relative = 1e-14);
        let warm = of(ScheduleKind::Warmup50, 4).betas;
        assert_eq!(warm, [1e-4, 2e-2, 2e-2, 2e-2]);
        assert_eq!(of(ScheduleKind::Warmup10, 20).betas[1..3], [2e-2, 2e-2]);
    }

    #[test]
    fn cosine_follows_its_alpha_bar() {
        let schedule = of(ScheduleKind::Cosine, 1000);
        let bar = |t: f64| ((t + 0.008) / 1.008 * FRAC_PI_2).cos().powi(2);
        approx::assert_relative_eq!(schedule.alphas_cumprod[499], bar(0.5) / bar(0.0), max_relative = 1e-10);
        assert_eq!(schedule.betas[999], 0.999);
    }

    #[test]
    fn posterior_coefficients_keep_a_clean_image() {
        // With x_t = sqrt(alpha_bar_t) x_0 the posterior mean is sqrt(alpha_bar_{t-1}) x_0.
        let schedule = of(ScheduleKind::Linear, 100);
        let buffers = schedule.buffers();
        let get = |name: &str| buffers.iter().find(|(n, _)| *n == name).map(|(_, v)| v.clone()).unwrap_or_default();
        let (c1, c2, bars) = (get("posterior_mean_coef1"), get("posterior_mean_coef2"), get("alphas_cumprod"));
        for i in 1..100 {
            let mean = c1[i] + c2[i] * bars[i].sqrt();
            approx::assert_relative_eq!(mean, bars[i - 1].sqrt(), max_relative = 1e-5);
        }
    }

    #[test]
    fn the_source_is_seeded_and_normal() {
        let draw = |seed| NoiseSource::new(seed).normal(20_000);
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        let z = draw(3);
        let mean = z.iter().sum::<f32>() / 20_000.0;
        let variance = z.iter().map(|v| v * v).sum::<f32>() / 20_000.0;
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.05, "{mean} {variance}");
        let schedule = NoiseSchedule::new(&ScheduleConfig::default());
        let level = NoiseSource::new(5).level(&schedule, 20);
        assert!((0.999_51..0.999_56).contains(&level), "{level}");
    }

    #[test]
    fn the_forward_process_keeps_variance() {
        assert_eq!(q_sample(&[1.0, -1.0], 0.6, &[1.0, 0.0]), [0.6 + (1.0f32 - 0.36).sqrt(), -0.6]);
    }
}
