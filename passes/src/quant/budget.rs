//! How many extra channels each group gets: one price for all, so that the last one anywhere takes
//! about as much off the summed error.

use super::choose::{Point, Settings};

/// A group's frontier and its number of channels.
pub struct Curve {
    pub points: Vec<Point>,
    pub channels: usize,
}

impl Curve {
    /// Extra channels of a point as a share.
    fn share(&self, point: &Point) -> f64 {
        point.extra as f64 / self.channels.max(1) as f64
    }

    /// The point that is cheapest where a share of extra channels has a price.
    fn at(&self, price: f64) -> Option<&Point> {
        let cost = |p: &Point| p.error + price * self.share(p);
        self.points.iter().min_by(|a, b| cost(a).total_cmp(&cost(b)))
    }
}

/// A point of each curve: the least summed error within the budget, as long as more channels bring the
/// wanted gain. `None` for a curve without points.
pub fn spend(curves: &[Curve], settings: &Settings) -> Vec<Option<Point>> {
    let groups = curves.len().max(1) as f64;
    let fits = |price: f64| {
        let chosen = || curves.iter().filter_map(|c| c.at(price).map(|p| (c, p)));
        let error: f64 = chosen().map(|(_, p)| p.error).sum();
        let extra: f64 = chosen().map(|(c, p)| c.share(p)).sum();
        extra <= f64::from(settings.max_extra) * groups && price * groups >= settings.gain * error
    };
    // Powers of two that no measure exceeds: errors are relative to outputs.
    let (mut low, mut high) = (-60.0f64, 60.0f64);
    for _ in 0..40 {
        let middle = 0.5 * (low + high);
        if fits(middle.exp2()) { high = middle } else { low = middle }
    }
    curves.iter().map(|c| c.at(high.exp2()).copied()).collect()
}
