//! A service: two threads share one model and answer requests, each a line of token numbers on
//! standard input. `cargo run --release -p fqrt --example serve -- model.fqbin`

use std::io::BufRead;
use std::sync::{Mutex, mpsc};

use fqrt::{Model, Options, Session, SessionOptions, TensorView, Trust};

fn answer(session: &mut Session, line: &str) -> Result<String, Box<dyn std::error::Error>> {
    let ids: Vec<i64> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let (mask, types, shape) = (vec![1i64; ids.len()], vec![0i64; ids.len()], [1, ids.len()]);
    let mut inputs = vec![("input_ids", TensorView::of(&shape, &ids))];
    inputs.push(("attention_mask", TensorView::of(&shape, &mask)));
    inputs.push(("token_type_ids", TensorView::of(&shape, &types)));
    let (name, tensor) = session.run(&inputs)?.into_vec().swap_remove(0);
    let numbers = tensor.numbers::<f32>().unwrap_or_default();
    Ok(format!("{name} {:?} {:?}", tensor.shape(), &numbers[..numbers.len().min(4)]))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: serve model.fqbin")?;
    let model = Model::load(path.as_ref(), &Options::new(Trust::Anyone))?;
    let (sender, receiver) = mpsc::channel::<String>();
    let receiver = &Mutex::new(receiver);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let mut session = Session::new(&model, SessionOptions::threads(1))?;
            let next = move || receiver.lock().ok()?.recv().ok();
            scope.spawn(move || {
                while let Some(line) = next() {
                    println!("{}", answer(&mut session, &line).unwrap_or_else(|e| e.to_string()));
                }
            });
        }
        let sender = sender;
        std::io::stdin().lock().lines().try_for_each(|line| Ok(sender.send(line?)?))
    })
}
