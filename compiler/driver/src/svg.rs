//! Small plots as inline SVG: axes with ticks, dots, lines and bars, each with a `<title>` that a
//! browser shows as a tooltip. Colours come from the page's style sheet, by class.

use std::fmt::Write;

/// One axis: what it shows and over which range.
#[derive(Clone, Debug)]
pub struct Axis {
    pub label: String,
    pub min: f64,
    pub max: f64,
    pub scale: Scale,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scale {
    Linear,
    Log,
}

impl Axis {
    /// An axis over the finite values, with some room; logarithmic ones leave out what is not positive.
    pub fn over(label: &str, scale: Scale, values: impl Iterator<Item = f64>) -> Axis {
        let shown = values.filter(|v| v.is_finite() && (scale == Scale::Linear || *v > 0.0));
        let (min, max) =
            shown.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
        let (min, max) = match scale {
            _ if min > max => (1.0, 10.0),
            Scale::Log => (min / 1.3, max * 1.3),
            Scale::Linear if min == max => (min - 1.0, max + 1.0),
            Scale::Linear => (min - 0.05 * (max - min), max + 0.05 * (max - min)),
        };
        Axis { label: label.to_owned(), min, max, scale }
    }

    /// The same from zero on.
    pub fn from_zero(mut self) -> Axis {
        self.min = 0.0;
        self
    }

    /// Place in the range, from 0 to 1; what lies outside is put at the edge.
    fn place(&self, value: f64) -> f64 {
        let (v, min, max) = match self.scale {
            Scale::Linear => (value, self.min, self.max),
            Scale::Log => (value.max(f64::MIN_POSITIVE).ln(), self.min.ln(), self.max.ln()),
        };
        let place = (v - min) / (max - min);
        if place.is_nan() { 0.0 } else { place.clamp(0.0, 1.0) }
    }

    /// The distance of two ticks of a linear axis: 1, 2 or 5 times a power of ten.
    fn step(&self) -> f64 {
        let rough = (self.max - self.min) / 5.0;
        let power = 10f64.powf(rough.log10().floor());
        let steps = [1.0, 2.0, 5.0, 10.0];
        steps.iter().map(|s| s * power).find(|s| *s >= rough).unwrap_or(rough)
    }

    fn number(&self, tick: f64) -> String {
        number(tick, if self.scale == Scale::Linear { self.step() } else { tick })
    }

    fn ticks(&self) -> Vec<f64> {
        match self.scale {
            Scale::Linear => {
                let step = self.step();
                let first = (self.min / step).ceil() as i64;
                (0..12)
                    .map(|i| (first + i) as f64 * step)
                    .take_while(|t| *t <= self.max * (1.0 + 1e-12))
                    .collect()
            }
            Scale::Log => {
                let (low, high) = (self.min.log10().floor() as i32, self.max.log10().ceil() as i32);
                let every = ((high - low) / 6).max(1);
                let within: &[f64] = if high - low <= 2 { &[1.0, 2.0, 5.0] } else { &[1.0] };
                (low..=high)
                    .filter(|p| p.rem_euclid(every) == 0)
                    .flat_map(|p| within.iter().map(move |m| m * 10f64.powi(p)))
                    .filter(|t| (self.min..=self.max).contains(t))
                    .collect()
            }
        }
    }
}

/// A plot that is being drawn.
pub struct Plot {
    x: Axis,
    y: Axis,
    width: f64,
    height: f64,
    body: String,
}

const LEFT: f64 = 58.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 8.0;
const BOTTOM: f64 = 42.0;

impl Plot {
    /// A plot of so many units, with grid, ticks and the names of the axes.
    pub fn new(x: Axis, y: Axis, width: f64, height: f64) -> Plot {
        let mut plot = Plot { x, y, width, height, body: String::new() };
        for tick in plot.y.ticks() {
            let at = plot.down(tick);
            let (right, text) = (width - RIGHT, plot.y.number(tick));
            plot.put(&format!(
                "<line class='grid' x1='{LEFT}' x2='{right}' y1='{at:.1}' y2='{at:.1}'/>\
                 <text class='tick' x='{:.1}' y='{:.1}' text-anchor='end'>{text}</text>",
                LEFT - 6.0,
                at + 3.5
            ));
        }
        for tick in plot.x.ticks() {
            let (at, low, text) = (plot.across(tick), height - BOTTOM, plot.x.number(tick));
            plot.put(&format!(
                "<line class='axis' x1='{at:.1}' x2='{at:.1}' y1='{low}' y2='{:.1}'/>\
                 <text class='tick' x='{at:.1}' y='{:.1}' text-anchor='middle'>{text}</text>",
                low + 4.0,
                low + 16.0
            ));
        }
        let (low, right, middle) = (height - BOTTOM, width - RIGHT, 0.5 * (TOP + height - BOTTOM));
        let (x_label, y_label) = (escape(&plot.x.label), escape(&plot.y.label));
        plot.put(&format!(
            "<line class='axis' x1='{LEFT}' x2='{right}' y1='{low}' y2='{low}'/>\
             <text class='name' x='{:.1}' y='{:.1}' text-anchor='middle'>{x_label}</text>\
             <text class='name' text-anchor='middle' \
             transform='translate(13 {middle:.1}) rotate(-90)'>{y_label}</text>",
            0.5 * (LEFT + right),
            height - 8.0,
        ));
        plot
    }

    fn put(&mut self, element: &str) {
        self.body.push_str(element);
        self.body.push('\n');
    }

    fn across(&self, x: f64) -> f64 {
        LEFT + self.x.place(x) * (self.width - LEFT - RIGHT)
    }

    fn down(&self, y: f64) -> f64 {
        self.height - BOTTOM - self.y.place(y) * (self.height - TOP - BOTTOM)
    }

    /// A dot with a tooltip.
    pub fn dot(&mut self, (x, y): (f64, f64), radius: f64, class: &str, title: &str) {
        let (x, y, title) = (self.across(x), self.down(y), escape(title));
        self.put(&format!(
            "<circle class='{class}' cx='{x:.1}' cy='{y:.1}' r='{radius}'><title>{title}</title></circle>"
        ));
    }

    /// A line through points, with a tooltip.
    pub fn line(&mut self, points: &[(f64, f64)], class: &str, title: &str) {
        let mut places = String::new();
        for &(x, y) in points {
            // Writing to a string cannot fail.
            let _ = write!(places, "{:.1},{:.1} ", self.across(x), self.down(y));
        }
        let (places, title) = (places.trim_end(), escape(title));
        self.put(&format!(
            "<polyline class='line {class}' points='{places}'><title>{title}</title></polyline>"
        ));
    }

    /// A bar from the bottom, `width` wide on the x axis, with a tooltip.
    pub fn bar(&mut self, (x, y): (f64, f64), width: f64, class: &str, title: &str) {
        let (left, right) = (self.across(x - 0.5 * width), self.across(x + 0.5 * width));
        let (top, title) = (self.down(y), escape(title));
        let (wide, high) = ((right - left).max(0.5), self.height - BOTTOM - top);
        self.put(&format!(
            "<rect class='{class}' x='{left:.1}' y='{top:.1}' width='{wide:.1}' height='{high:.1}'>\
             <title>{title}</title></rect>"
        ));
    }

    /// The `<svg>` element; `name` is what a screen reader says.
    pub fn finish(self, name: &str) -> String {
        let (name, width, height) = (escape(name), self.width, self.height);
        format!(
            "<svg viewBox='0 0 {width} {height}' role='img' aria-label='{name}'>\n{}</svg>",
            self.body
        )
    }
}

/// A tick's number, told apart from its neighbours at a distance of `step`: plain where that is short,
/// else with a power of ten.
fn number(v: f64, step: f64) -> String {
    if v == 0.0 {
        return "0".to_owned();
    }
    let trimmed = |text: String| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    };
    if (0.001..100_000.0).contains(&v.abs()) {
        let digits = (-step.abs().log10().floor()).clamp(0.0, 5.0) as usize;
        return trimmed(format!("{v:.digits$}"));
    }
    let power = v.abs().log10().floor() as i32;
    let factor = trimmed(format!("{:.1}", v / 10f64.powi(power)));
    let factor = if factor == "1" { String::new() } else { format!("{factor}·") };
    format!("{factor}10<tspan class='power' dy='-4'>{power}</tspan>")
}

/// Text as it may stand in HTML and in attributes.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('\'', "&#39;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        let axis = Axis::over("x", Scale::Linear, [57.6, 75.3].into_iter());
        assert_eq!(axis.ticks(), [60.0, 65.0, 70.0, 75.0]);
        let axis = Axis::over("x", Scale::Log, [2e-6, 0.5].into_iter());
        assert_eq!(axis.ticks().len(), 5, "{:?}", axis.ticks());
        let axis = Axis::over("x", Scale::Log, [3.0, 30.0].into_iter());
        assert_eq!(axis.ticks(), [5.0, 10.0, 20.0]);
        for values in [vec![], vec![0.0], vec![f64::NAN], vec![5.0, 5.0], vec![1e-30, 1e30]] {
            for scale in [Scale::Linear, Scale::Log] {
                let axis = Axis::over("x", scale, values.iter().copied());
                assert!(axis.ticks().len() <= 13 && axis.min < axis.max, "{values:?} {axis:?}");
                assert!((0.0..=1.0).contains(&axis.place(f64::NAN)));
            }
        }
    }

    #[test]
    fn numbers_are_short() {
        for (v, step, text) in [
            (0.0, 1.0, "0"),
            (0.05, 0.05, "0.05"),
            (1000.0, 500.0, "1000"),
            (524.5, 0.5, "524.5"),
            (-2.0, 1.0, "-2"),
            (57.676, 0.002, "57.676"),
        ] {
            assert_eq!(number(v, step), text);
        }
        assert!(number(1e-6, 1e-6).starts_with("10<tspan"));
        assert!(number(1.5e-4, 5e-5).starts_with("1.5·10<tspan"));
        assert_eq!(escape("<a href='x'>&\""), "&lt;a href=&#39;x&#39;&gt;&amp;&quot;");
    }
}
