//! The definition of perplexity: float SmolLM2 on *Persuasion* must have the figure that other tools
//! gave it (57.676 on 12 windows of 256 tokens), so that all our figures stand beside theirs.

use anyhow::{Result, ensure};
use fqc::evaluate::{self, Scores};
use fqc::pipeline;
use fqc::progress::Verbosity;
use fqc::text::{self, Text};
use fqc_tests::calibrated::{fetched, quietly, real_model};
use fqrt::{Model, SessionOptions};

#[test]
fn float_smollm2_has_the_perplexity_that_others_measured() -> Result<()> {
    let float = real_model("smollm2")?;
    let target = quietly(|cx| pipeline::float_target(&float, cx))?;
    drop(float);
    let model = Model::from_parts(target.program, &target.weights, &target.code, None)?;
    let tokenizer = fetched("models/smollm2/tokenizer.json")?;
    let novel = fetched("text/persuasion.txt")?;
    let scores = quietly(|_| {
        let tokenizer = text::load_tokenizer(&tokenizer)?;
        let windows = text::windows(&tokenizer, &novel, 256, 12, 0.1)?;
        let text = Text { windows, vocabulary: tokenizer.get_vocab_size(true) };
        evaluate::run(&model, None, &text, &SessionOptions::threads(2), Verbosity::Quiet)
    })?;
    let Scores::Language(scores) = scores else { anyhow::bail!("SmolLM2 has logits") };
    println!("perplexity {:.4} over {} tokens", scores.perplexity, scores.tokens);
    ensure!(scores.tokens == 12 * 255, "{scores:?}");
    ensure!((scores.perplexity - 57.676).abs() < 0.002, "{scores:?}");
    Ok(())
}
