//! How many extra channels each group gets: one price for all, so that the last one anywhere takes
//! about as much off the summed loss.

use super::choose::{Point, Settings};

/// A group's frontier.
#[derive(Clone, Debug)]
pub struct Curve {
    pub points: Vec<Point>,
    pub channels: usize,
    /// What a unit of the group's error costs the model.
    pub weight: f64,
}

impl Curve {
    /// Extra channels of a point as a share.
    fn share(&self, point: &Point) -> f64 {
        point.extra as f64 / self.channels.max(1) as f64
    }

    /// The point that is cheapest where a share of extra channels has a price.
    pub fn at(&self, price: f64) -> Option<&Point> {
        let cost = |p: &Point| self.weight * p.error + price * self.share(p);
        self.points.iter().min_by(|a, b| cost(a).total_cmp(&cost(b)))
    }
}

/// The lowest price that keeps to the budget and at which more channels bring the wanted gain.
pub fn price(curves: &[Curve], settings: &Settings) -> f64 {
    let groups = curves.len().max(1) as f64;
    let fits = |price: f64| {
        let chosen = || curves.iter().filter_map(|c| c.at(price).map(|p| (c, p)));
        let loss: f64 = chosen().map(|(c, p)| c.weight * (p.error - p.weight_error)).sum();
        let extra: f64 = chosen().map(|(c, p)| c.share(p)).sum();
        extra <= f64::from(settings.max_extra) * groups && price * groups >= settings.gain * loss
    };
    // Powers of two that no measure exceeds: errors are relative to outputs.
    let (mut low, mut high) = (-80.0f64, 80.0f64);
    for _ in 0..48 {
        let middle = 0.5 * (low + high);
        if fits(middle.exp2()) { high = middle } else { low = middle }
    }
    high.exp2()
}
