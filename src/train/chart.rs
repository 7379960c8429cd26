//! The curve of the losses over the steps, as a picture.

use crate::imaging::canvas::{ADVANCE, Canvas, LETTER};
use crate::imaging::{Image, ImagingError};

const WIDTH: usize = 960;
const HEIGHT: usize = 540;
/// Columns and rows of the plot inside the picture.
const LEFT: usize = 90;
const RIGHT: usize = WIDTH - 30;
const TOP: usize = 40;
const BOTTOM: usize = HEIGHT - 50;
/// Pixels a font pixel.
const SCALE: usize = 2;
/// Share of the points that the smoothed line's exponential mean looks back on.
const MEMORY: f64 = 0.05;

const PAPER: [u8; 3] = [255; 3];
const INK: [u8; 3] = [40; 3];
const GRID: [u8; 3] = [225; 3];
const RAW: [u8; 3] = [190, 210, 240];
const SMOOTH: [u8; 3] = [25, 80, 180];
const VALIDATION: [u8; 3] = [210, 90, 20];

/// The two axes: steps evenly, losses by their logarithm.
struct Axes {
    steps: f64,
    low: f64,
    high: f64,
}

impl Axes {
    /// Axes that show all of `points`, with at least a fifth of a decade.
    fn around(points: &[(f64, f64)]) -> Self {
        let steps = points.iter().map(|p| p.0).fold(1.0, f64::max);
        let low = points.iter().map(|p| p.1.log10()).fold(f64::INFINITY, f64::min);
        let high = points.iter().map(|p| p.1.log10()).fold(f64::NEG_INFINITY, f64::max);
        if low > high {
            return Self { steps, low: -1.0, high: 0.0 };
        }
        let margin = ((high - low) * 0.05).max(0.1);
        Self { steps, low: low - margin, high: high + margin }
    }

    fn column(&self, step: f64) -> usize {
        LEFT + (step / self.steps * (RIGHT - LEFT) as f64).round() as usize
    }

    fn row(&self, loss: f64) -> usize {
        let share = (self.high - loss.log10()) / (self.high - self.low);
        TOP + (share.clamp(0.0, 1.0) * (BOTTOM - TOP) as f64).round() as usize
    }
}

/// The losses of `train` (faint, with a smoothed line over them) and of `validation`, points of step and loss, under a
/// title; losses by their logarithm. What is not positive and finite is left out.
///
/// # Errors
/// None that is not a bug: the picture's size is fixed.
pub(crate) fn loss_chart(title: &str, train: &[(f64, f64)], validation: &[(f64, f64)]) -> Result<Image, ImagingError> {
    let usable = |points: &[(f64, f64)]| -> Vec<(f64, f64)> {
        let mut points = points.to_vec();
        points.retain(|(step, loss)| *step >= 0.0 && *loss > 0.0 && step.is_finite() && loss.is_finite());
        points
    };
    let (train, validation) = (usable(train), usable(validation));
    let axes = Axes::around(&[&train[..], &validation].concat());
    let mut canvas = Canvas::new(WIDTH, HEIGHT, PAPER);
    grid(&mut canvas, &axes);
    canvas.write(title, LEFT..WIDTH, (TOP - LETTER * SCALE) / 2, SCALE, INK);
    if !validation.is_empty() {
        let text = "validation";
        let width = text.len() * ADVANCE * SCALE;
        canvas.write(text, RIGHT - width..WIDTH, (TOP - LETTER * SCALE) / 2, SCALE, VALIDATION);
    }
    line(&mut canvas, &axes, &train, 1, RAW);
    line(&mut canvas, &axes, &smoothed(&train), 2, SMOOTH);
    line(&mut canvas, &axes, &validation, 2, VALIDATION);
    canvas.image()
}

/// The exponential mean of the losses' logarithms, without the bias of its start.
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let keep = 1.0 - 1.0 / (points.len() as f64 * MEMORY).max(1.0);
    let (mut mean, mut weight) = (0.0, 0.0);
    let smooth = |&(step, loss): &(f64, f64)| {
        mean = keep * mean + (1.0 - keep) * loss.log10();
        weight = keep * weight + (1.0 - keep);
        (step, 10f64.powf(mean / weight))
    };
    points.iter().map(smooth).collect()
}

/// A line through the points, column by column.
fn line(canvas: &mut Canvas, axes: &Axes, points: &[(f64, f64)], thick: usize, ink: [u8; 3]) {
    let at = |p: &(f64, f64)| (axes.column(p.0), axes.row(p.1));
    if let [only] = points {
        let (x, y) = at(only);
        canvas.fill(x - 2..x + 3, y - 2..y + 3, ink);
    }
    for pair in points.windows(2) {
        let ((x0, y0), (x1, y1)) = (at(&pair[0]), at(&pair[1]));
        let y_at = |x: usize| y0 as f64 + (y1 as f64 - y0 as f64) * (x - x0) as f64 / (x1 - x0).max(1) as f64;
        for x in x0..=x1.max(x0) {
            // From half a column before to half a column after, so that steep lines have no gaps.
            let (a, b) = if x1 > x0 { (y_at(x), y_at((x + 1).min(x1))) } else { (y0 as f64, y1 as f64) };
            let (top, bottom) = (a.min(b).round() as usize, a.max(b).round() as usize);
            canvas.fill(x..x + thick, top..bottom + thick, ink);
        }
    }
}

/// Frame, grid lines and their labels.
fn grid(canvas: &mut Canvas, axes: &Axes) {
    let half = LETTER * SCALE / 2;
    let width = |text: &str| text.len() * ADVANCE * SCALE;
    for loss in loss_ticks(axes) {
        let (y, text) = (axes.row(loss), number(loss));
        canvas.fill(LEFT..RIGHT, y..y + 1, GRID);
        canvas.write(&text, (LEFT - 8).saturating_sub(width(&text))..LEFT, y - half, SCALE, INK);
    }
    for i in 0.. {
        let step = round_step(axes.steps) * f64::from(i);
        if step > axes.steps {
            break;
        }
        let (x, text) = (axes.column(step), number(step));
        canvas.fill(x..x + 1, TOP..BOTTOM, GRID);
        canvas.write(&text, x.saturating_sub(width(&text) / 2)..WIDTH, BOTTOM + half, SCALE, INK);
    }
    canvas.fill(LEFT..LEFT + 2, TOP..BOTTOM, INK);
    canvas.fill(LEFT..RIGHT, BOTTOM..BOTTOM + 2, INK);
    canvas.write("step", RIGHT - width("step")..WIDTH, BOTTOM + 4 * half, SCALE, INK);
}

/// Losses with a grid line: powers of ten, with their 2 and 5 or every unit between if there are few.
fn loss_ticks(axes: &Axes) -> Vec<f64> {
    let decades = axes.low.floor() as i32..=axes.high.ceil() as i32;
    let within = |digits: &[f64]| -> Vec<f64> {
        let all = decades.clone().flat_map(|d| digits.iter().map(move |digit| digit * 10f64.powi(d)));
        all.filter(|loss| (axes.low..=axes.high).contains(&loss.log10())).collect()
    };
    let choices = [&[1.0][..], &[1.0, 2.0, 5.0], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]].map(within);
    let enough = choices.iter().find(|ticks| ticks.len() >= 3);
    enough.unwrap_or(&choices[2]).clone()
}

/// 1, 2 or 5 times a power of ten, so that at most eight of them are in `steps`.
fn round_step(steps: f64) -> f64 {
    let power = 10f64.powf((steps / 8.0).log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|f| f * power * 8.0 >= steps);
    power * factor.unwrap_or(10.0)
}

/// The number in few letters: 250, 20k, 1.5M, 0.02, 3e-5.
fn number(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{}M", v / 1e6),
        v if v >= 1e4 => format!("{}k", v / 1e3),
        v if v == 0.0 || v >= 0.999e-3 => format!("{}", (v * 1e6).round() / 1e6),
        v => format!("{v:.0e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imaging::Samples;

    /// Columns and rows of the pixels of one colour.
    fn pixels(image: &Image, ink: [u8; 3]) -> Vec<(usize, usize)> {
        let Samples::U8(v) = image.samples() else { panic!("not 8 bit") };
        let all = v.as_chunks::<3>().0.iter().enumerate();
        all.filter(|(_, p)| **p == ink).map(|(i, _)| (i % WIDTH, i / WIDTH)).collect()
    }

    #[test]
    fn the_line_falls_from_left_to_right_through_every_column() {
        let train: Vec<(f64, f64)> = (1..=500).map(|i| (f64::from(i) * 20.0, 3.0 / f64::from(i))).collect();
        let chart = loss_chart("loss", &train, &[(5000.0, 0.01), (10_000.0, 0.02)]).unwrap();
        let line = pixels(&chart, SMOOTH);
        let top = |x: usize| line.iter().filter(|p| p.0 == x).map(|p| p.1).min();
        assert!((LEFT + 5..(LEFT + RIGHT) / 2).all(|x| top(x).is_some()));
        assert!(top(LEFT + 10) < top(LEFT + 100) && top(LEFT + 100) < top(RIGHT - 10));
        let right = pixels(&chart, VALIDATION);
        let end = right.iter().filter(|p| p.0 == RIGHT && p.1 > TOP).map(|p| p.1).min();
        let middle = right.iter().filter(|p| p.0 == (LEFT + RIGHT) / 2 && p.1 > TOP).map(|p| p.1).max();
        assert!(end.is_some() && end < middle, "{end:?} {middle:?}");
    }

    #[test]
    fn smoothing_keeps_a_constant_and_calms_noise() {
        let constant: Vec<(f64, f64)> = (0..100).map(|i| (f64::from(i), 0.3)).collect();
        assert!(smoothed(&constant).iter().all(|p| (p.1 - 0.3).abs() < 1e-12));
        let noisy: Vec<(f64, f64)> = (0..1000).map(|i| (f64::from(i), if i % 2 == 0 { 0.1 } else { 10.0 })).collect();
        assert!(smoothed(&noisy)[500..].iter().all(|p| (0.8..1.25).contains(&p.1)));
    }

    #[test]
    fn ticks_are_round_and_few() {
        let axes = |low: f64, high: f64| Axes { steps: 1.0, low: low.log10(), high: high.log10() };
        let ticks = |low, high| loss_ticks(&axes(low, high)).into_iter().map(number).collect::<Vec<_>>();
        assert_eq!(ticks(0.00008, 0.3), ["1e-4", "0.001", "0.01", "0.1"]);
        assert_eq!(ticks(0.015, 0.3), ["0.02", "0.05", "0.1", "0.2"]);
        assert_eq!(ticks(0.35, 0.75), ["0.4", "0.5", "0.6", "0.7"]);
        for (steps, round) in [(30.0, 5.0), (1_000_000.0, 200_000.0), (8.0, 1.0), (1.0, 0.2), (214_500.0, 50_000.0)] {
            assert!((round_step(steps) / round - 1.0).abs() < 1e-9, "{steps}: {}", round_step(steps));
        }
        assert_eq!([0.0, 250.0, 20_000.0, 1_500_000.0].map(number), ["0", "250", "20k", "1.5M"]);
    }

    #[test]
    fn nothing_and_what_is_not_finite_is_drawn_without_a_line() {
        let empty = loss_chart("none", &[], &[]).unwrap();
        assert!(pixels(&empty, SMOOTH).is_empty());
        let odd = [(0.0, f64::NAN), (1.0, 0.0), (2.0, f64::INFINITY), (3.0, -1.0)];
        assert!(pixels(&loss_chart("odd", &odd, &[]).unwrap(), SMOOTH).is_empty());
        let one = loss_chart("one", &[(7.0, 0.5)], &[]).unwrap();
        assert_eq!(pixels(&one, SMOOTH).len(), 25);
    }
}
