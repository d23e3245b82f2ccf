//! Runs a compiled text model at every code level that this machine and the file have, on the same
//! made-up tokens, and prints the time of a run and how far the outputs are from the first level's.
//!
//! `cargo run --release -p fqrt --example levels -- model.fqbin 8 128 2` (rows, tokens, threads)

use fqrt::{
    Level, Model, Options, Session, SessionOptions, TensorView, TensorViewMut, Trust,
    level_available,
};
use std::path::Path;
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, path, rows, tokens, threads] = &args[..] else {
        return Err("usage: levels MODEL.fqbin ROWS TOKENS THREADS".into());
    };
    let shape = [rows.parse::<usize>()?, tokens.parse()?];
    let count = shape[0] * shape[1];
    let ids: Vec<i64> = (0..count as i64).map(|i| 5 + i * 7919 % 997).collect();
    let (ones, zeros) = (vec![1i64; count], vec![0i64; count]);
    let mut first: Option<Vec<f32>> = None;
    for level in Level::ALL.into_iter().filter(|&level| level_available(level)) {
        // The file is the caller's own; whoever measures a stranger's should not run it at all.
        let options = Options::new(Trust::Anyone).level(Some(level));
        let model = match Model::load(Path::new(path), &options) {
            Ok(model) => model,
            Err(error) => {
                println!("{:12} {error}", level.name());
                continue;
            }
        };
        let names: Vec<String> =
            model.program().inputs.iter().map(|input| input.name.clone()).collect();
        let inputs: Vec<(&str, TensorView<'_>)> = names
            .iter()
            .map(|name| {
                let values = match name.as_str() {
                    n if n.contains("mask") => &ones,
                    n if n.contains("type") => &zeros,
                    _ => &ids,
                };
                (name.as_str(), TensorView::of(&shape, values))
            })
            .collect();
        let mut session = Session::new(&model, SessionOptions::threads(threads.parse()?))?;
        let mut times: Vec<f64> = Vec::new();
        let mut outputs = session.run(&inputs)?.into_vec();
        for _ in 0..20 {
            let mut views: Vec<(&str, TensorViewMut<'_>)> =
                outputs.iter_mut().map(|(name, t)| (name.as_str(), t.view_mut())).collect();
            let start = Instant::now();
            session.run_into(&inputs, &mut views)?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        let tensors = outputs.iter().filter_map(|(_, t)| t.numbers::<f32>());
        let last: Vec<f32> = tensors.flatten().copied().collect();
        times.sort_by(f64::total_cmp);
        let reference = first.get_or_insert_with(|| last.clone());
        let off = last.iter().zip(reference.iter()).map(|(a, b)| (a - b).abs());
        let worst = off.fold(0.0f32, f32::max);
        println!("{:12} {:8.2} ms, largest difference {worst:.2e}", level.name(), times[10]);
    }
    Ok(())
}
