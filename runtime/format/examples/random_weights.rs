//! Clears a file's large weights, so that it compresses to what its code takes, and puts random codes in
//! their place elsewhere: for timing large layers on a machine far away. Everything else stays; the results are
//! not signed.
//!
//!     random_weights clear MODEL.fqbin OUT.fqbin
//!     random_weights fill OUT.fqbin RANDOM.fqbin

use fqbin::{CodeImage, Elem, File, Image, Place, TargetImage};

/// Weights of fewer bytes stay as they are.
const LARGE: u64 = 1 << 16;

/// Bytes after which random ones repeat: a prime.
const PERIOD: usize = 1_048_573;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [command, from, to] = &arguments[..] else {
        return Err("usage: random_weights clear|fill MODEL.fqbin OUT.fqbin".into());
    };
    let (whole, halves) = match command.as_str() {
        "clear" => (vec![0], vec![0]),
        "fill" => patterns(),
        _ => return Err(format!("no command `{command}`").into()),
    };
    let bytes = std::fs::read(from)?;
    let file = File::open(&bytes)?;
    let mut targets = Vec::new();
    for target in &file.layout().targets {
        let mut weights = file.weights(target)?.to_vec();
        for buffer in &target.program.buffers {
            let pattern = match buffer.elem {
                Elem::I8 => &whole,
                Elem::I4 => &halves,
                _ => continue,
            };
            if let Place::Weight { offset, len } = buffer.place
                && len >= LARGE
            {
                let bytes = &mut weights[offset as usize..(offset + len) as usize];
                bytes.iter_mut().zip(pattern.iter().cycle()).for_each(|(to, &from)| *to = from);
            }
        }
        let code = file.code(target)?.into_iter();
        let code =
            code.map(|c| CodeImage { bytes: c.bytes.to_vec(), level: c.level, entries: c.entries });
        targets.push(TargetImage {
            target: target.name.clone(),
            program: target.program.clone(),
            weights: weights.into(),
            code: code.collect(),
        });
    }
    let manifest = file.manifest()?.to_vec();
    let image = Image { producer: "random weights".into(), manifest, targets };
    fqbin::write_file(to.as_ref(), &image, None)?;
    Ok(())
}

/// Codes of eight bits, about normal with a deviation of 37, and of four with one of 2.8.
fn patterns() -> (Vec<u8>, Vec<u8>) {
    let mut state = 88_172_645_463_325_252u64;
    let mut next = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below) as i32
    };
    let mut sum = |below: u64, mean: i32| ((0..4).map(|_| next(below)).sum::<i32>() - mean) as u8;
    let whole = (0..PERIOD).map(|_| sum(64, 126)).collect();
    let halves = (0..PERIOD).map(|_| sum(5, 8) & 15 | sum(5, 8) << 4).collect();
    (whole, halves)
}
