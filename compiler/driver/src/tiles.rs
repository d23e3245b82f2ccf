//! Times the tiles that a gemm could take, on a GPU: as the kernel that a model gets, launched as a model launches
//! it, in a graph behind a step that writes its operand, over as many weights as the model's gemms have together (or
//! what any L2 holds), so that they come from where the model's come from.

use crate::data::views;
use crate::exit::Failure;
use crate::pipeline::Context;
use crate::target;
use fqbin::{Elem, Expr, ExprId, Program};
use fqc_codegen::cuda::exchange::Instance;
use fqc_codegen::cuda::trial::{self, Trial};
use fqc_codegen::cuda::tuning::Tile;
use fqc_codegen::cuda::{Compiler, Error, Layer};
use fqrt::{Gpu, Session, SessionOptions, Tensor};
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Nanoseconds of a replay, about, and of those before the timed ones.
const REPLAY_NS: f64 = 2e6;
const WARM_NS: u64 = 6_000_000;

/// Timed replays, in each of the rounds.
const TIMED: usize = 5;
const ROUNDS: usize = 2;

/// Tiles that the model of their time finds so many times slower than its best are not tried.
const HOPELESS: f64 = 1.5;

/// A tile that was timed.
#[derive(Clone)]
pub struct Timed {
    pub tile: Tile,
    /// Microseconds of a launch and of the step before it.
    pub us: f64,
    pub instance: Option<Instance>,
}

/// What was found of a gemm for a number of rows.
#[derive(Clone)]
pub struct Tried {
    pub rows: usize,
    /// The tile that the model of their time takes.
    pub model: Tile,
    pub timed: Vec<Timed>,
}

impl Tried {
    /// What was found of a tile.
    pub fn of(&self, tile: Tile) -> Option<&Timed> {
        self.timed.iter().find(|timed| timed.tile == tile)
    }

    /// The same of another gemm that takes as long.
    #[must_use]
    pub fn of_layer(&self, layer: &Layer) -> Tried {
        let mut other = self.clone();
        for instance in other.timed.iter_mut().filter_map(|timed| timed.instance.as_mut()) {
            *instance = instance.of_layer(layer);
        }
        other
    }

    /// The fastest.
    pub fn fastest(&self) -> Option<&Timed> {
        self.timed.iter().min_by(|a, b| a.us.total_cmp(&b.us))
    }
}

/// What tiles are timed with.
pub struct Tuner<'a> {
    pub gpu: &'a Gpu,
    pub compiler: &'a Compiler,
    /// Bytes of weights that a replay goes through at least.
    pub reach: usize,
    pub cx: &'a Context<'a>,
}

/// A tile while it is timed.
struct Contender {
    tile: Tile,
    instance: Option<Instance>,
    session: Session,
    launches: usize,
    ns: Vec<u64>,
}

impl Contender {
    /// Microseconds of a launch and of the step before it.
    fn us(&mut self) -> f64 {
        self.ns.sort_unstable();
        self.ns[self.ns.len() / 2] as f64 / self.launches as f64 / 1e3
    }
}

impl Tuner<'_> {
    /// Times the tiles of a gemm for so many rows.
    pub fn measure(&self, layer: &Layer, rows: usize) -> Result<Tried, Failure> {
        let ranked = layer.ranked(rows);
        let (model, best) = ranked[0];
        let hopeful = ranked.iter().filter(|(_, us)| *us <= HOPELESS * best).map(|(t, _)| *t);
        let weights = (self.reach / trial::weight_bytes(layer)).max(1);
        let launches = weights.max((REPLAY_NS / 1e3 / best).clamp(4.0, 200.0) as usize);
        let trial = Trial { rows, weights, launches };
        let mut contenders = self.contenders(layer, &hopeful.collect::<Vec<_>>(), trial)?;
        for _ in 0..ROUNDS {
            // Forth and back, so that nobody always follows the same neighbour.
            contenders.reverse();
            for contender in &mut contenders {
                self.cx.interrupt.check()?;
                let mut warm = 0;
                while warm < WARM_NS {
                    warm += contender.session.time_on_device(1)?.iter().sum::<u64>().max(1);
                }
                contender.ns.extend(contender.session.time_on_device(TIMED)?);
            }
        }
        let timed = |mut contender: Contender| Timed {
            tile: contender.tile,
            us: contender.us(),
            instance: contender.instance,
        };
        Ok(Tried { rows, model, timed: contenders.into_iter().map(timed).collect() })
    }

    /// Compiles the tiles, on all processors, and loads them. Those that no kernel can have are left out.
    fn contenders(
        &self,
        layer: &Layer,
        tiles: &[Tile],
        trial: Trial,
    ) -> Result<Vec<Contender>, Failure> {
        let next = AtomicUsize::new(0);
        let work = || {
            let mut made = Vec::new();
            while let Some(&tile) = tiles.get(next.fetch_add(1, Ordering::Relaxed)) {
                made.push((tile, trial::program(layer, tile, trial, self.compiler)));
            }
            made
        };
        let mut made: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.cx.threads.max(1)).map(|_| scope.spawn(work)).collect();
            threads
                .into_iter()
                .flat_map(|t| t.join().unwrap_or_else(|panic| resume_unwind(panic)))
                .collect()
        });
        made.sort_by_key(|(tile, _)| (tile.tokens, tile.split));
        let mut contenders = Vec::new();
        let (mut refused, mut given) = (None, Vec::new());
        for (tile, image) in made {
            let image = match image {
                Ok(image) => image,
                Err(e @ (Error::Unsupported(_) | Error::Slow { .. })) => {
                    refused = Some(e);
                    continue;
                }
                Err(e) => return Err(target::failure(&e)),
            };
            let instance = Instance::of_trial(&image);
            let model = self.gpu.model(image)?;
            let cancel = Some(self.cx.interrupt.flag());
            let mut session =
                Session::new(&model, SessionOptions { cancel, ..Default::default() })?;
            if given.is_empty() {
                given = inputs(model.program())?;
            }
            session.run(&views(&given))?;
            let (launches, ns) = (trial.launches, Vec::new());
            contenders.push(Contender { tile, instance, session, launches, ns });
        }
        match refused {
            Some(e) if contenders.is_empty() => Err(target::failure(&e)),
            _ => Ok(contenders),
        }
    }
}

/// Values for a trial's inputs: any weights do, and floats from 0.5 up to 2 of either sign.
fn inputs(program: &Program) -> Result<Vec<(String, Tensor)>, Failure> {
    let mut state = 1u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let size = |&dim: &ExprId| match program.exprs.get(dim.index()) {
        Some(&Expr::Const(size)) => usize::try_from(size).map_err(Failure::internal),
        _ => Err(Failure::internal("a trial of open sizes")),
    };
    let mut inputs = Vec::new();
    for port in &program.inputs {
        let shape = port.shape.iter().map(size).collect::<Result<Vec<_>, _>>()?;
        let mut tensor = Tensor::zeros(port.elem, &shape)?;
        for word in tensor.bytes_mut().chunks_mut(8) {
            word.copy_from_slice(&next().to_le_bytes()[..word.len()]);
        }
        if port.elem != Elem::U8 {
            let highest = tensor.bytes_mut().chunks_exact_mut(port.elem.bytes());
            highest.filter_map(|float| float.last_mut()).for_each(|b| *b = *b & 0x80 | 0x3f);
        }
        inputs.push((port.name.clone(), tensor));
    }
    Ok(inputs)
}
