//! Times a batch of a text model in one piece and in slices, in turns, so that a machine that slows
//! down slows all of them. Prints for each the fastest run and the median, in milliseconds by the
//! clock and of a processor's time for each thread, and the median of the ratios to one piece.
//!
//! `cargo run --release -p fqrt --example slices -- model.fqbin 2 20 8x128 32x128` (threads, rounds)

use std::sync::Arc;
use std::time::Instant;

use fqrt::{Model, Options, Session, SessionOptions, Slices, TensorView, TensorViewMut, Trust};

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Fallible<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [file, threads, rounds, shapes @ ..] = arguments.as_slice() else {
        return Err("usage: slices MODEL.fqbin THREADS ROUNDS BATCHxTOKENS…".into());
    };
    // The file is the caller's own; whoever measures a stranger's should not run it at all.
    let model = Model::load(file.as_ref(), &Options::new(Trust::Anyone))?;
    let (threads, rounds) = (threads.parse()?, rounds.parse::<usize>()?.max(1));
    for shape in shapes {
        let (batch, tokens) = shape.split_once('x').ok_or("a shape is BATCHxTOKENS")?;
        compare(&model, threads, rounds, [batch.parse()?, tokens.parse()?])?;
    }
    Ok(())
}

/// Milliseconds by the clock, and of the processors for each thread.
type Times = [f64; 2];

fn compare(model: &Arc<Model>, threads: usize, rounds: usize, shape: [usize; 2]) -> Fallible<()> {
    let mut ways = vec![Slices::Whole, Slices::Fit];
    ways.extend((0..10).map(|i| 1 << i).take_while(|&n| n < shape[0]).map(Slices::Of));
    let mut sessions = Vec::new();
    for &slices in &ways {
        let options = SessionOptions { slices, ..SessionOptions::threads(threads) };
        sessions.push((Session::new(model, options)?, Vec::new()));
    }
    let count = shape[0] * shape[1];
    let ids: Vec<i64> = (0..count as i64).map(|i| 5 + i * 7919 % 997).collect();
    let (ones, zeros) = (vec![1i64; count], vec![0i64; count]);
    let inputs: Vec<(&str, TensorView<'_>)> = model
        .program()
        .inputs
        .iter()
        .map(|input| {
            let values = match input.name.as_str() {
                name if name.contains("mask") => &ones,
                name if name.contains("type") => &zeros,
                _ => &ids,
            };
            (input.name.as_str(), TensorView::of(&shape, values))
        })
        .collect();
    let mut outputs = sessions[0].0.run(&inputs)?.into_vec();
    let first: Vec<Vec<u8>> = outputs.iter().map(|(_, t)| t.bytes().to_vec()).collect();
    for round in 0..=rounds {
        for (session, times) in &mut sessions {
            let mut views: Vec<(&str, TensorViewMut<'_>)> =
                outputs.iter_mut().map(|(name, t)| (name.as_str(), t.view_mut())).collect();
            let (start, used) = (Instant::now(), processor_time());
            session.run_into(&inputs, &mut views)?;
            let used = (processor_time() - used) / threads as f64;
            let time: Times = [start.elapsed().as_secs_f64() * 1e3, used * 1e3];
            if round > 0 {
                times.push(time);
            } else if outputs.iter().zip(&first).any(|((_, now), then)| now.bytes() != then) {
                return Err("a cut batch gave other bytes".into());
            }
        }
    }
    println!(
        "{}x{} tokens, {threads} threads:  clock min/median  processors min/median  ratios",
        shape[0], shape[1]
    );
    let whole = sessions[0].1.clone();
    for (way, (_, times)) in ways.iter().zip(&sessions) {
        let [clock, processors] = [0, 1].map(|i| sorted(times.iter().map(|t| t[i])));
        let ratio =
            |i: usize| sorted(times.iter().zip(&whole).map(|(own, whole)| whole[i] / own[i]));
        println!(
            "  {:8} {:8.2} {:8.2}  {:8.2} {:8.2}  {:6.3} {:6.3}",
            format!("{way:?}"),
            clock[0],
            clock[clock.len() / 2],
            processors[0],
            processors[processors.len() / 2],
            ratio(0)[times.len() / 2],
            ratio(1)[times.len() / 2],
        );
    }
    Ok(())
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// Seconds that the processors have spent on this process.
fn processor_time() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one `timespec`, which `time` is.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}
