//! An analysis as one self-contained page: no scripts, nothing fetched, light and dark.

use crate::analyze::{Analysis, Curve, GroupAnalysis, short, short_loss};
use crate::evaluate::Scores;
use crate::svg::{Axis, Plot, Scale, escape};
use fqc_passes::quant::widths::Widths;

const STYLE: &str = include_str!("page.css");

/// Points of a profile of channel maxima.
const POINTS: usize = 48;

/// The page.
pub fn page(a: &Analysis) -> String {
    let title = escape(&format!("{} under quantisation", a.model));
    let mut by_layer: Vec<&GroupAnalysis> = a.groups.iter().collect();
    by_layer.sort_by_key(|g| g.layer);
    let curve = a.curve.as_ref().map(curve).unwrap_or_default();
    let sections = [head(a), curve, losses(&by_layer), extras(&by_layer), table(&a.groups)];
    format!(
        "<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n\
         <meta name='viewport' content='width=device-width, initial-scale=1'>\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{}\n{}\n</main>\n\
         </body>\n</html>\n",
        sections.join("\n"),
        profiles(&a.groups)
    )
}

fn head(a: &Analysis) -> String {
    let mean = |values: &mut dyn Iterator<Item = f64>| {
        let values: Vec<f64> = values.collect();
        values.iter().sum::<f64>() / values.len().max(1) as f64
    };
    let extra = mean(&mut a.groups.iter().map(|g| 100.0 * share(g)));
    let largest = a.groups.first().map_or(0.0, |g| g.loss);
    let fall = a.groups.iter().map(|g| f64::from(g.maxima.before.max / g.maxima.flattened.max));
    let fall = fall.filter(|v| v.is_finite()).fold(0.0, f64::max);
    let data: Vec<String> = a.calibration.files.iter().map(|f| escape(&f.name)).collect();
    let data = if data.is_empty() { "made-up tokens".to_owned() } else { data.join(", ") };
    let windows = a.calibration.windows.as_ref();
    let windows =
        windows.map_or(String::new(), |w| format!(", {} windows of {} tokens", w.count, w.tokens));
    let method = format!("{:?}", a.settings.method).to_lowercase();
    let tile = |value: String, name: &str| {
        format!("<div class='tile'><b>{value}</b><span>{name}</span></div>")
    };
    format!(
        "<header><h1>{}</h1>\n<p class='sub'>{method}, {} unless a group says otherwise; calibrated \
         on {data}{windows}; {}</p></header>\n<div class='tiles'>{}{}{}{}</div>",
        escape(&a.model),
        a.settings.scheme.widths(),
        a.producer,
        tile(a.groups.len().to_string(), "groups of layers that share an input"),
        tile(format!("{extra:.1} %"), "extra channels in the mean"),
        tile(short_loss(largest), "largest loss of a group"),
        tile(format!("{fall:.0}×"), "largest fall of a maximum, float to digit"),
    )
}

/// A colour for each pair of widths, the same everywhere.
fn class(widths: &str) -> &'static str {
    match widths {
        w if w == Widths::W8A8.to_string() => "s0",
        w if w == Widths::W4A8.to_string() => "s1",
        _ => "s2",
    }
}

fn legend(entries: &[(&str, &str)]) -> String {
    let one = |(class, name): &(&str, &str)| {
        format!("<span><i class='key {class}'></i>{}</span>", escape(name))
    };
    format!("<p class='legend'>{}</p>", entries.iter().map(one).collect::<String>())
}

fn losses(groups: &[&GroupAnalysis]) -> String {
    let compared: Vec<&str> =
        groups.first().map_or(Vec::new(), |g| g.at.iter().map(|a| a.widths.as_str()).collect());
    let all = groups.iter().flat_map(|g| g.at.iter().map(|a| a.loss));
    let mut plot =
        Plot::new(layer_axis(groups), Axis::over("loss", Scale::Log, all), 1000.0, 320.0);
    for g in groups {
        for a in &g.at {
            let title = format!(
                "{}\n{}: loss {:.2e}, of the input alone {:.2e}, {} extra channels",
                g.label, a.widths, a.loss, a.activation_loss, a.extra
            );
            plot.dot((g.layer as f64, a.loss), 3.5, class(&a.widths), &title);
        }
    }
    let entries: Vec<(&str, &str)> = compared.iter().map(|w| (class(w), *w)).collect();
    format!(
        "<section><h2>Loss by layer</h2>\n<p>The squared error of a group's outputs over their \
         square, in the mean over sampled rows, if only this group is rounded; weights to nearest. \
         wXaY: weights of X bits, activations of Y.</p>\n{}{}</section>",
        legend(&entries),
        plot.finish("loss of each group at each width")
    )
}

fn extras(groups: &[&GroupAnalysis]) -> String {
    let all = groups.iter().map(|g| 100.0 * share(g));
    let y = Axis::over("extra channels, %", Scale::Linear, all.chain([1.0])).from_zero();
    let mut plot = Plot::new(layer_axis(groups), y, 1000.0, 220.0);
    for g in groups {
        let title = format!("{}\n{} of {} channels extra", g.label, g.extra, g.channels);
        plot.bar((g.layer as f64, 100.0 * share(g)), 0.7, class(&g.widths), &title);
    }
    let mut used: Vec<&str> = groups.iter().map(|g| g.widths.as_str()).collect();
    used.sort_unstable();
    used.dedup();
    let entries: Vec<(&str, &str)> = used.iter().map(|w| (class(w), *w)).collect();
    format!(
        "<section><h2>Extra channels by layer</h2>\n<p>What flattening adds to the width of a \
         group's input, as chosen.</p>\n{}{}</section>",
        legend(&entries),
        plot.finish("extra channels of each group")
    )
}

fn layer_axis(groups: &[&GroupAnalysis]) -> Axis {
    let last = groups.iter().map(|g| g.layer).max().unwrap_or(0) as f64;
    let label = "group, in the order of the model".to_owned();
    Axis { label, min: -0.7, max: last + 0.7, scale: Scale::Linear }
}

fn share(g: &GroupAnalysis) -> f64 {
    g.extra as f64 / g.channels.max(1) as f64
}

fn curve(curve: &Curve) -> String {
    let mut names: Vec<(String, Vec<f64>, Option<f64>)> = Vec::new();
    for outcome in &curve.points {
        let mut put = |name: String, value: f64, float: Option<f64>| match names
            .iter_mut()
            .find(|n| n.0 == name)
        {
            Some(found) => found.1.push(value),
            None => names.push((name, vec![value], float)),
        };
        match &outcome.scores {
            Scores::Language(s) => {
                let against = s.against.as_ref();
                put("perplexity".to_owned(), s.perplexity, against.map(|a| a.perplexity));
                put("KL, nats".to_owned(), against.map_or(f64::NAN, |a| a.kl), None);
            }
            Scores::Encoder(outputs) => {
                outputs.iter().for_each(|c| put(format!("least cosine, {}", c.output), c.min, None))
            }
        }
    }
    let shares: Vec<f64> = curve.points.iter().map(|o| 100.0 * o.int4_share).collect();
    let low = curve.low.widths();
    let plots = names.iter().map(|(name, values, float)| {
        let x = Axis {
            label: format!("linear-layer work in {low}, %"),
            min: -2.0,
            max: 102.0,
            scale: Scale::Linear,
        };
        let y = Axis::over(name, Scale::Linear, values.iter().copied().chain(*float));
        let mut plot = Plot::new(x, y, 480.0, 300.0);
        if let Some(float) = float {
            plot.line(
                &[(0.0, *float), (100.0, *float)],
                "plain dashed",
                &format!("float: {float:.3}"),
            );
        }
        let points: Vec<(f64, f64)> = shares.iter().copied().zip(values.iter().copied()).collect();
        plot.line(&points, "s0", name);
        for (&(x, y), outcome) in points.iter().zip(&curve.points) {
            let extra = 100.0 * outcome.extra_channels;
            let title = format!("{x:.1} % in {low}\n{name} {y:.5}\n{extra:.1} % extra channels");
            plot.dot((x, y), 4.0, "s0", &title);
        }
        format!("<figure>{}</figure>", plot.finish(name))
    });
    format!(
        "<section><h2>What more INT4 costs</h2>\n<p>Measured on {}. Groups that lose least for their \
         work go first; the rest is {}.{}</p>\n<div class='pair'>{}</div></section>",
        escape(&curve.text),
        Widths::W8A8,
        if names.iter().any(|n| n.2.is_some()) { " Dashed: float." } else { "" },
        plots.collect::<String>()
    )
}

fn table(groups: &[GroupAnalysis]) -> String {
    let compared = groups.first().map_or(&[][..], |g| &g.at);
    let heads: String = compared.iter().map(|a| format!("<th>loss {}</th>", a.widths)).collect();
    let row = |(rank, g): (usize, &GroupAnalysis)| {
        let losses: String =
            g.at.iter().map(|a| format!("<td>{}</td>", short_loss(a.loss))).collect();
        let m = &g.maxima;
        format!(
            "<tr><td>{}</td><th scope='row'>{}</th><td>{}</td><td>{:.1} %</td><td>{}</td><td>{}</td>\
             <td>{}</td><td>{:.1} %</td><td>{}</td>{losses}</tr>\n",
            rank + 1,
            escape(&g.label),
            g.widths,
            100.0 * g.work,
            short(m.before.max),
            short(m.smoothed.max),
            short(m.flattened.max),
            100.0 * share(g),
            short_loss(g.loss),
        )
    };
    format!(
        "<section><h2>Groups by loss</h2>\n<div class='scroll'><table>\n<thead><tr><th>rank</th>\
         <th>layers</th><th>bits</th><th>work</th><th>max, float</th><th>smoothed</th>\
         <th>digit</th><th>extra</th><th>loss</th>{heads}</tr></thead>\n<tbody>\n{}</tbody>\
         </table></div></section>",
        groups.iter().enumerate().map(row).collect::<String>()
    )
}

fn profiles(groups: &[GroupAnalysis]) -> String {
    let names = [("plain", "float"), ("s0", "smoothed"), ("s1", "flattened")];
    let all = || groups.iter().flat_map(|g| g.profiles.iter().flatten()).map(|v| f64::from(*v));
    let top = all().fold(0.0, f64::max);
    let y = Axis::over("largest value", Scale::Log, all().filter(|v| *v > top * 1e-6));
    let widest = groups.iter().map(|g| g.profiles[2].len()).max().unwrap_or(1) as f64;
    let x = Axis { label: "channel, by rank".into(), min: 1.0, max: widest, scale: Scale::Log };
    let figure = |g: &GroupAnalysis| {
        let mut plot = Plot::new(x.clone(), y.clone(), 330.0, 210.0);
        for ((class, name), profile) in names.iter().zip(&g.profiles) {
            let title = format!("{name}: {}", short(profile.first().copied().unwrap_or(0.0)));
            plot.line(&thinned(profile), class, &title);
        }
        for (rank, c) in g.largest.iter().enumerate() {
            let digits = if c.digits == 1 { "digit" } else { "digits" };
            let (before, smoothed) = (short(c.before), short(c.smoothed));
            let title = format!(
                "channel {}: {before} in float, {smoothed} smoothed, {} {digits}",
                c.channel, c.digits
            );
            plot.dot(((rank + 1) as f64, f64::from(c.smoothed)), 3.0, "s0", &title);
        }
        let label = escape(&g.label);
        format!(
            "<figure><figcaption>{label} <small>{}, +{:.1} %</small></figcaption>{}</figure>\n",
            g.widths,
            100.0 * share(g),
            plot.finish(&format!("channel maxima of {}", g.label))
        )
    };
    format!(
        "<section><h2>Channel maxima</h2>\n<p>The largest value that calibration saw of each channel, \
         sorted, in float, after smoothing, and of every digit after flattening; groups with the \
         largest loss first. Dots are single channels.</p>\n{}<div class='grid'>\n{}</div></section>",
        legend(&names),
        groups.iter().map(figure).collect::<String>()
    )
}

/// Rank and value at ranks that are evenly spread on a logarithmic axis.
fn thinned(descending: &[f32]) -> Vec<(f64, f64)> {
    let count = descending.len();
    let mut ranks: Vec<usize> = (0..POINTS)
        .map(|i| (count as f64).powf(i as f64 / (POINTS - 1) as f64).round() as usize)
        .collect();
    ranks.dedup();
    let value =
        |rank: usize| Some((rank as f64, f64::from(*descending.get(rank.checked_sub(1)?)?)));
    ranks.into_iter().filter_map(value).collect()
}
