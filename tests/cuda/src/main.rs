//! Checks and benchmarks the CUDA kernels on a machine with a GPU.

mod attention;
mod bench;
mod check;
mod device;
mod gemm;
mod gemm_sm80;
mod instances;
mod norm;
mod product;
mod random;
mod summary;
mod timing;
mod vendor;

use anyhow::{Context as _, Result, bail};
use device::Device;
use fqc_codegen::cuda::{Arch, Cache, Nvrtc};
use gemm::Shape;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use summary::Summary;

const USAGE: &str = "\
usage: fqc-cuda-bench COMMAND [OPTION VALUE]...

  compile   compile every instance into the cache; needs no GPU
  check     compare every instance with the definition
  bench     time them beside cublasLt
  all       check, then bench

  --out FILE            write what was measured as JSON lines
  --m M,M...            token counts to time
  --layers FIRST..END   layers to time, of six
  --shapes N            check the first N shapes only
  --only TEXT,TEXT...   instances whose names contain the texts
  --part NAME           gemm, norm or attention alone

Kernels are cached in $FQC_CACHE/cubins (.cache by default). NVRTC is found in $FQC_NVRTC, in
/usr/local/cuda/lib64 or where `cargo xtask fetch nvrtc` puts it; cublasLt by the loader.";

/// (K, N) of transformer layers.
const LAYERS: [(usize, usize); 6] =
    [(4096, 4096), (4096, 12288), (4096, 16384), (16384, 4096), (9216, 36864), (8192, 28672)];

struct Options {
    out: Option<String>,
    tokens: Vec<usize>,
    layers: Range<usize>,
    only: String,
    part: String,
    shapes: usize,
}

impl Options {
    fn wants(&self, part: &str) -> bool {
        self.part.is_empty() || self.part == part
    }
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next().context(USAGE)?;
    let mut options = Options {
        out: None,
        tokens: vec![16, 256, 512, 1024, 2048, 8192],
        layers: 0..LAYERS.len(),
        only: String::new(),
        part: String::new(),
        shapes: usize::MAX,
    };
    while let Some(name) = arguments.next() {
        let value = arguments.next().context(USAGE)?;
        match name.as_str() {
            "--out" => options.out = Some(value),
            "--m" => {
                options.tokens = value.split(',').map(str::parse).collect::<Result<_, _>>()?;
            }
            "--layers" => {
                let (first, end) = value.split_once("..").context(USAGE)?;
                options.layers = first.parse()?..end.parse::<usize>()?.min(LAYERS.len());
            }
            "--shapes" => options.shapes = value.parse()?,
            "--only" => options.only = value,
            "--part" => options.part = value,
            _ => bail!("{USAGE}"),
        }
    }
    match command.as_str() {
        "compile" => compile(&options),
        "check" => check(&options),
        "bench" => bench(&options),
        "all" => {
            check(&options)?;
            bench(&options)
        }
        _ => bail!("{USAGE}"),
    }
}

/// Fills the cache, on all cores.
fn compile(options: &Options) -> Result<()> {
    let folder = std::env::var("FQC_CACHE").unwrap_or_else(|_| ".cache".into());
    let cache = Cache::new(format!("{folder}/cubins"), Nvrtc::load()?);
    let mut all = Vec::new();
    if options.wants("gemm") {
        all.extend(instances::all().into_iter().map(|p| (p.to_string(), p.source())));
    }
    if options.wants("attention") {
        all.extend(attention::all());
    }
    all.retain(|(name, _)| timing::wanted(name, &options.only));
    let sources: BTreeMap<String, String> = all.into_iter().collect();
    let (sources, next) = (Vec::from_iter(sources), AtomicUsize::new(0));
    let work = || -> Result<()> {
        while let Some((name, source)) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
            cache.get(name, source, Arch::Sm90a)?;
        }
        Ok(())
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("a worker that ends"))
    })?;
    println!("{} instances compiled", sources.len());
    Ok(())
}

fn check(options: &Options) -> Result<()> {
    compile(options)?;
    let device = Device::open()?;
    if options.wants("norm") {
        norm::check(&device, &options.only)?;
    }
    if options.wants("attention") {
        attention::check(&device, &options.only)?;
    }
    if options.wants("gemm") {
        let mut products = instances::checked();
        products.retain(|product| timing::wanted(&product.to_string(), &options.only));
        check::check(&device, &products, options.shapes)?;
    }
    Ok(())
}

fn bench(options: &Options) -> Result<()> {
    compile(options)?;
    let device = Device::open()?;
    let bench = bench::Bench::new(&device)?;
    let mut out = options.out.as_ref().map(std::fs::File::create).transpose()?;
    let mut write = |value: &Value| -> Result<()> {
        out.as_mut().map_or(Ok(()), |out| Ok(writeln!(out, "{value}")?))
    };
    let bandwidth = (bench.copy_bandwidth()? / 1e9).round();
    write(&json!({
        "device": device.context.name()?,
        "multiprocessors": device.processors,
        "copy_gb_s": bandwidth,
    }))?;
    println!("{}, copies {bandwidth} GB/s", device.context.name()?);
    if options.wants("norm") {
        norm::bench(&device, bandwidth * 1e9, &options.only)?.iter().try_for_each(&mut write)?;
    }
    if options.wants("attention") {
        attention::bench(&device, &options.only)?.iter().try_for_each(&mut write)?;
    }
    let mut summary = Summary::default();
    let tokens = if options.wants("gemm") { &options.tokens[..] } else { &[] };
    for &m in tokens {
        for &(k, n) in &LAYERS[options.layers.clone()] {
            let mut contenders = instances::timed(m);
            contenders.retain(|config| timing::wanted(&config.to_string(), &options.only));
            let mut records = bench.shape(Shape { m, n, k }, &contenders)?;
            records.iter().try_for_each(&mut write)?;
            summary.add(m, &records);
            records.sort_by(|a, b| a["us"].as_f64().partial_cmp(&b["us"].as_f64()).expect("times"));
            println!("\nM {m} K {k} N {n}");
            for record in records.iter().filter(|record| record["best"] == true) {
                let number = |name: &str| record[name].as_f64().unwrap_or(f64::NAN);
                let name = record["name"].as_str().unwrap_or_default();
                println!("{:9.2} us {:6.0} TOPS  {name}", number("us"), number("tops"));
            }
        }
    }
    summary.print(&mut write)
}
