//! The standard's test cases on the CPU backend: every case that passes on the interpreter gives the
//! wanted outputs at each level of this machine too; a refusal would come with a sentence.

use anyhow::{Context, Result, ensure};
use fqc_codegen::cpu::generate;
use fqc_tests::nodes::{Case, NoCase, cases, list};
use fqc_tests::runtime::{self, Runtime};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// The smallest share that must not be refused.
const SHARE_THAT_COMPILES: f64 = 1.0;

enum Outcome {
    Pass,
    Refused(String),
    Wrong(String),
}

fn run(folder: &Path) -> Result<Outcome> {
    let case = match Case::load(folder) {
        Ok(case) => case,
        Err(NoCase::Refused(error)) => return Ok(Outcome::Wrong(error.to_string())),
        Err(NoCase::Broken(error)) => return Err(error),
    };
    let levels = runtime::levels()?;
    let plan = match runtime::lower(&runtime::fused(&case.graph)?) {
        Ok(plan) => plan,
        Err(error) => return Ok(Outcome::Refused(error.to_string())),
    };
    let target = match generate(&plan, &levels) {
        Ok(target) => target,
        Err(error) => return Ok(Outcome::Refused(error.to_string())),
    };
    for mut cpu in runtime::sessions(&target, &levels)? {
        let outputs = cpu.run(&case.inputs)?;
        case.check(&outputs).with_context(|| cpu.name().to_owned())?;
    }
    Ok(Outcome::Pass)
}

#[test]
fn node_cases_give_the_wanted_outputs_on_the_cpu() -> Result<()> {
    let root = cases();
    ensure!(
        root.exists(),
        "no cases in `{}`; run `cargo xtask fetch onnx-node-tests`",
        root.display()
    );
    let (mut passed, mut wrong) = (0, Vec::new());
    let mut refused = BTreeMap::<String, usize>::new();
    let names = list("passing.txt")?;
    for name in &names {
        let outcome = catch_unwind(AssertUnwindSafe(|| run(&root.join(name))));
        match outcome.unwrap_or_else(|_| Ok(Outcome::Wrong("panics".to_owned()))) {
            Ok(Outcome::Pass) => passed += 1,
            Ok(Outcome::Refused(why)) => {
                println!("{name}: {why}");
                *refused.entry(why).or_insert(0) += 1;
            }
            Ok(Outcome::Wrong(why)) => wrong.push(format!("{name}: {why}")),
            Err(error) => wrong.push(format!("{name}: {error:#}")),
        }
    }
    println!("onnx node cases on the CPU: {passed} of {} pass", names.len());
    ensure!(wrong.is_empty(), "{} cases:\n{}", wrong.len(), wrong.join("\n"));
    let share = passed as f64 / names.len() as f64;
    ensure!(share >= SHARE_THAT_COMPILES, "only {passed} of {} cases pass", names.len());
    Ok(())
}
