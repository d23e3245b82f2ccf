//! Whether tiles that win alone win in their model: a tile's time beside what runs before and after it is not its
//! time alone. So the whole model runs with and without them, in turns, and they are taken only where it is
//! clearly faster. Where the driver puts the code makes a model up to 1 % faster or slower, with the same kernels;
//! each model is therefore loaded several times, to other places.

use crate::data::{model_inputs, views};
use crate::exit::Failure;
use crate::pipeline::Context;
use crate::shapes;
use crate::tiles::{Timed, Tried};
use crate::tuned::MeasuredWhole;
use fqbin::{Binding, Program, TargetImage};
use fqc_codegen::cuda::Layer;
use fqc_codegen::cuda::exchange::{self, Exchange, Instance};
use fqc_codegen::cuda::tuning::{BUCKETS, Tile};
use fqrt::{Gpu, Model, Session, SessionOptions};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A tile is tried in the model if alone it is so many times faster than the one there.
const HOPEFUL: f64 = 1.01;

/// A model is clearly faster if its time is less than this share of the other's, in the mean of the places, and is
/// smaller in all places but one.
const SHARE: f64 = 0.995;

/// Places that a model is loaded to: with the tiles of one group, and with all that win.
const PLACES: usize = 2;
const PLACES_OF_ALL: usize = 4;

/// Turns of a model at a place.
const ROUNDS: usize = 4;

/// Nanoseconds of replays before the timed ones, and of those of a turn.
const WARM_NS: u64 = 20_000_000;
const TURN_NS: u64 = 10_000_000;

/// Tokens of a row of a batch, the dearest first.
const TOKENS: [usize; 6] = [128, 64, 32, 16, 256, 512];

/// Tiles that win alone, of gemms that are alike but for their sizes, for a number of rows.
struct Group<'t> {
    /// Index of the number of rows.
    rows: usize,
    /// The steps of each gemm, its kernel there, and the one to try.
    gemms: Vec<Gemm<'t>>,
}

struct Gemm<'t> {
    /// Index of the layer.
    layer: usize,
    steps: Vec<usize>,
    tile: Tile,
    instance: &'t Instance,
}

/// What a model takes: by layer and number of rows.
pub type Taken = BTreeMap<(usize, usize), Tile>;

/// The tiles that the gemms of `image` take in place of those of the model of their time, and the whole times.
/// `tried` has each layer's results by number of rows, all the same numbers.
pub fn settle(
    gpu: &Gpu,
    image: &TargetImage,
    tried: &[(Layer, Vec<Tried>)],
    cx: &Context<'_>,
) -> Result<(Taken, Vec<MeasuredWhole>), Failure> {
    let numbers: Vec<usize> =
        tried.first().map_or(vec![], |(_, t)| t.iter().map(|t| t.rows).collect());
    let shapes: Vec<_> = numbers.iter().map(|&rows| shapes(&image.program, rows)).collect();
    let mut taken = Taken::new();
    let mut groups: Vec<Vec<Group<'_>>> = Vec::new();
    for (at, &rows) in numbers.iter().enumerate() {
        let mut alike: BTreeMap<String, Group<'_>> = BTreeMap::new();
        for (index, (layer, results)) in tried.iter().enumerate() {
            let result = &results[at];
            let Some((best, own)) = better(result) else { continue };
            let steps = exchange::steps(&image.program, rows, own);
            let Some(instance) = &best.instance else { continue };
            if shapes[at].is_none() || steps.is_empty() {
                continue;
            }
            let kind = format!("{} {} {}", kind(layer), result.model, best.tile);
            let group = alike.entry(kind).or_insert(Group { rows: at, gemms: Vec::new() });
            group.gemms.push(Gemm { layer: index, steps, tile: best.tile, instance });
        }
        groups.push(alike.into_values().collect());
    }
    let plain = load(gpu, image, PLACES_OF_ALL, &[])?;
    let race = |others: &[Arc<Model>], at: usize| match &shapes[at] {
        Some(shapes) => Times::of(&plain, others, shapes, cx).map(Some),
        None => Ok(None),
    };
    // One group of each number of rows at a time: they do not meet.
    let mut winners: Vec<&Group<'_>> = Vec::new();
    for turn in 0..groups.iter().map(Vec::len).max().unwrap_or(0) {
        let now: Vec<_> = groups.iter().filter_map(|groups| groups.get(turn)).collect();
        let others = load(gpu, &with(image, &now, &numbers), PLACES, &plain)?;
        for group in now {
            if race(&others, group.rows)?.is_some_and(|times| times.clearly_faster()) {
                winners.push(group);
            }
        }
    }
    let others = load(gpu, &with(image, &winners, &numbers), PLACES_OF_ALL, &plain)?;
    let mut whole = Vec::new();
    for (at, &rows) in numbers.iter().enumerate() {
        let Some(times) = race(&others, at)? else { continue };
        let own = winners.iter().filter(|group| group.rows == at).flat_map(|group| &group.gemms);
        let won: Vec<_> = own.map(|gemm| ((gemm.layer, rows), gemm.tile)).collect();
        let faster = times.clearly_faster() && !won.is_empty();
        whole.push(MeasuredWhole {
            rows,
            inputs: shapes[at].clone().unwrap_or_default(),
            model_us: times.own,
            us: times.other,
            taken: faster,
        });
        taken.extend(won.into_iter().filter(|_| faster));
    }
    Ok((taken, whole))
}

/// What is fastest alone, if it is faster than the tile of the model of its time, and that one's kernel.
fn better(tried: &Tried) -> Option<(&Timed, &Instance)> {
    let (best, own) = (tried.fastest()?, tried.of(tried.model)?);
    let hopeful = best.tile != tried.model && own.us / best.us >= HOPEFUL;
    hopeful.then_some((best, own.instance.as_ref()?))
}

/// What layers share that differ in sizes.
fn kind(layer: &Layer) -> String {
    let Layer { weights, epilogue, extras, output, .. } = layer;
    format!("{weights:?} {epilogue} {extras:?} {output:?} {}", layer.pair.is_some())
}

/// The kernels that a step gets, by number of rows.
type Others<'t> = Vec<(usize, &'t Instance)>;

/// The image with the tiles of groups.
fn with(image: &TargetImage, groups: &[&Group<'_>], numbers: &[usize]) -> TargetImage {
    let Some(mut exchange) = Exchange::new(image.clone()) else { return image.clone() };
    let mut others: BTreeMap<usize, Others<'_>> = BTreeMap::new();
    for group in groups {
        for gemm in &group.gemms {
            for &step in &gemm.steps {
                others.entry(step).or_default().push((numbers[group.rows], gemm.instance));
            }
        }
    }
    // Steps with one kernel that get the same keep one.
    let mut alike: Vec<(Others<'_>, Vec<usize>)> = Vec::new();
    for (step, others) in others {
        let kernel = |step: usize| image.program.steps[step].kernel;
        let is_like = |(own, steps): &&mut (Others<'_>, Vec<usize>)| {
            kernel(steps[0]) == kernel(step) && *own == others
        };
        match alike.iter_mut().find(is_like) {
            Some((_, steps)) => steps.push(step),
            None => alike.push((others, vec![step])),
        }
    }
    for (others, steps) in &alike {
        exchange.gemms(steps, others);
    }
    exchange.finish()
}

/// Shapes of the inputs, as `NAME=AxB`, with which most gemms have more than the next smaller of [`BUCKETS`] and up
/// to `rows` rows; of several, those with the most rows.
fn shapes(program: &Program, rows: usize) -> Option<Vec<String>> {
    let below = BUCKETS.into_iter().filter(|&bucket| bucket < rows).max().unwrap_or(0);
    let batch = program.batch.map_or(0, |batch| batch.index());
    let mut best: Option<(usize, usize, Vec<String>)> = None;
    let of_tokens = |tokens: usize| (rows / tokens, tokens);
    for (items, tokens) in TOKENS.map(of_tokens).into_iter().chain([(1, rows), (rows, 1)]) {
        let mut symbols = vec![tokens as i64; program.symbols.len()];
        if let Some(batch) = symbols.get_mut(batch) {
            *batch = items.max(1) as i64;
        }
        let mut values = Vec::new();
        if fqbin::eval_all(&program.exprs, &program.symbols, &symbols, &mut values).is_err() {
            continue;
        }
        let shape = |port: &fqbin::Port| -> Vec<usize> {
            port.shape.iter().map(|dim| usize::try_from(values[dim.index()]).unwrap_or(0)).collect()
        };
        let ports: Vec<Vec<usize>> = program.inputs.iter().map(shape).collect();
        let views: Vec<&[usize]> = ports.iter().map(Vec::as_slice).collect();
        if ports.iter().any(Vec::is_empty) || Binding::new(program, &views).is_err() {
            continue;
        }
        let gemms = (0..program.steps.len()).filter(|&step| exchange::in_tiles(program, step));
        let works: Vec<usize> = gemms
            .map(|step| usize::try_from(values[program.steps[step].work.index()]).unwrap_or(0))
            .filter(|work| (below + 1..=rows).contains(work))
            .collect();
        let most = works.iter().copied().max().unwrap_or(0);
        if works.is_empty()
            || best.as_ref().is_some_and(|(n, m, _)| (*n, *m) >= (works.len(), most))
        {
            continue;
        }
        let text = |(port, shape): (&fqbin::Port, &Vec<usize>)| {
            let sizes: Vec<String> = shape.iter().map(usize::to_string).collect();
            format!("{}={}", port.name, sizes.join("x"))
        };
        let texts = program.inputs.iter().zip(&ports).map(text).collect();
        best = Some((works.len(), most, texts));
    }
    best.map(|(_, _, shapes)| shapes)
}

/// A model at several places of memory, all with the weights of the first of the `plain` ones if there are any.
fn load(
    gpu: &Gpu,
    image: &TargetImage,
    places: usize,
    plain: &[Arc<Model>],
) -> Result<Vec<Arc<Model>>, Failure> {
    let mut models: Vec<Arc<Model>> = Vec::with_capacity(places);
    for _ in 0..places {
        let model = match plain.first().or(models.first()) {
            Some(first) => gpu.model_beside(image.clone(), first),
            None => gpu.model(image.clone()),
        };
        models.push(model?);
    }
    Ok(models)
}

/// Times of two models that took turns.
struct Times {
    /// Microseconds, medians of the turns and means of the places.
    own: f64,
    other: f64,
    /// The other's by the own, by place, ascending.
    shares: Vec<f64>,
}

impl Times {
    /// Those of models at as many places as both are at.
    fn of(
        own: &[Arc<Model>],
        other: &[Arc<Model>],
        shapes: &[String],
        cx: &Context<'_>,
    ) -> Result<Times, Failure> {
        let places = own.len().min(other.len()) as f64;
        let mut times = Times { own: 0.0, other: 0.0, shares: Vec::new() };
        for (own, other) in own.iter().zip(other) {
            let (own, other) = turns(own, other, shapes, cx)?;
            times.own += own / places;
            times.other += other / places;
            times.shares.push(other / own);
        }
        times.shares.sort_by(f64::total_cmp);
        Ok(times)
    }

    fn clearly_faster(&self) -> bool {
        let n = self.shares.len();
        let mean = self.shares.iter().sum::<f64>() / n as f64;
        n > 1 && mean < SHARE && self.shares[n - 2] < 1.0
    }
}

/// Microseconds of two models, medians of the turns that they take.
fn turns(
    own: &Arc<Model>,
    other: &Arc<Model>,
    shapes: &[String],
    cx: &Context<'_>,
) -> Result<(f64, f64), Failure> {
    let batch = shapes::inputs(shapes, &model_inputs(own))?;
    let mut sessions = Vec::new();
    for model in [own, other] {
        let cancel = Some(cx.interrupt.flag());
        let mut session = Session::new(model, SessionOptions { cancel, ..Default::default() })?;
        session.run(&views(&batch))?;
        let mut warm = 0;
        while warm < WARM_NS {
            warm += session.time_on_device(1)?.iter().sum::<u64>().max(1);
        }
        sessions.push(session);
    }
    let replay = sessions[0].time_on_device(1)?.iter().sum::<u64>().max(1);
    let replays = (TURN_NS / replay).clamp(3, 100) as usize;
    let mut times = [Vec::new(), Vec::new()];
    for round in 0..ROUNDS {
        // Forth and back.
        for index in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
            cx.interrupt.check()?;
            times[index].extend(sessions[index].time_on_device(replays)?);
        }
    }
    let [own, other] = times.map(|mut ns| {
        ns.sort_unstable();
        ns[ns.len() / 2] as f64 / 1e3
    });
    Ok((own, other))
}

#[cfg(test)]
mod tests {
    use super::*;
    use fqbin::{CodeImage, ExprId, Kernel, KernelId, Step};

    fn kernel(name: &str, rows: i64) -> Kernel {
        Kernel { name: name.to_owned(), attrs: vec![("max_rows".to_owned(), rows)] }
    }

    /// Steps that all have the first kernel.
    fn image(kernels: Vec<Kernel>, steps: usize) -> TargetImage {
        let none = ExprId(0);
        let step = |i: usize| Step {
            name: format!("step {i}"),
            family: "gemm".to_owned(),
            kernel: KernelId(0),
            args: Vec::new(),
            dims: Vec::new(),
            work: none,
            grain: none,
            scratch_bytes: none,
            ops: none,
            bytes: none,
        };
        let entries = (0..kernels.len() as u32).collect();
        let bytes = vec![0; kernels.len()];
        let code = vec![CodeImage { level: String::new(), entries, bytes }];
        let steps = (0..steps).map(step).collect();
        let program = Program { kernels, steps, ..Program::default() };
        TargetImage { program, code, ..TargetImage::default() }
    }

    fn instance(name: &str) -> Instance {
        Instance::of_trial(&image(vec![kernel(name, 64)], 0)).expect("a gemm")
    }

    #[test]
    fn steps_get_what_their_groups_have_for_each_number_of_rows() {
        let image = image(vec![kernel("own.0", i64::from(i32::MAX))], 3);
        let (few, many) = (instance("few.0"), instance("many.0"));
        let group = |rows, steps: &[usize], instance| {
            let tile = Tile { tokens: 16, split: 1 };
            Group { rows, gemms: vec![Gemm { layer: 0, steps: steps.to_vec(), tile, instance }] }
        };
        let groups = [group(0, &[0, 1], &few), group(1, &[1], &many)];
        let numbers = [BUCKETS[0], BUCKETS[2]];
        let out = with(&image, &groups.each_ref(), &numbers).program;
        assert_eq!(exchange::steps(&out, BUCKETS[0], &few), [0, 1]);
        assert_eq!(exchange::steps(&out, BUCKETS[1], &few), [0; 0]);
        assert_eq!(exchange::steps(&out, BUCKETS[2], &many), [1]);
        assert_eq!(out.steps[2].kernel, KernelId(0), "a step of no group keeps its own");
    }
}
