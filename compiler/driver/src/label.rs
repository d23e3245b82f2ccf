//! Short names of groups for people: `layers.3.mlp gate_proj, up_proj`.

use fqc_ir::Graph;
use fqc_passes::quant::groups::{Group, linear};

/// A label for each group, from the names of its weights where they are paths, else of its linears.
pub fn labels(graph: &Graph, groups: &[Group]) -> Vec<String> {
    let paths: Vec<Vec<Vec<String>>> = groups
        .iter()
        .map(|group| group.linears.iter().map(|&id| path(graph, id)).collect())
        .collect();
    let all: Vec<&[String]> = paths.iter().flatten().map(Vec::as_slice).collect();
    // Of `layers.3.mlp` not only the number stays.
    let number = |at: usize| all[0].get(at).is_some_and(|p| p.parse::<u32>().is_ok());
    let shared = common(&all);
    let shared = if shared > 0 && number(shared) { shared - 1 } else { shared };
    let label = |(group, paths): (&Group, &Vec<Vec<String>>)| {
        let own: Vec<&[String]> = paths.iter().map(|p| &p[shared.min(p.len())..]).collect();
        let prefix = common(&own);
        let start = own.first().map_or(String::new(), |p| p[..prefix].join("."));
        let mut ends: Vec<String> = own.iter().map(|p| p[prefix..].join(".")).collect();
        ends.retain(|e| !e.is_empty());
        ends.dedup();
        let label = [start, ends.join(", ")].join(" ");
        match label.trim() {
            "" => graph.node(group.input).name.clone(),
            label => label.to_owned(),
        }
    };
    let labels: Vec<String> = groups.iter().zip(&paths).map(label).collect();
    let alone = |(group, label): (&Group, &String)| match labels
        .iter()
        .filter(|other| *other == label)
        .count()
    {
        1 => label.clone(),
        _ => format!("{label} ({})", graph.node(group.input).name),
    };
    groups.iter().zip(&labels).map(alone).collect()
}

/// The parts of a linear's name that say where it is in the model.
fn path(graph: &Graph, id: fqc_ir::NodeId) -> Vec<String> {
    let split = |name: &str| -> Vec<String> {
        let mut parts: Vec<String> = name
            .split(['.', '/', ':'])
            .filter(|part| !part.is_empty())
            .map(str::to_owned)
            .collect();
        let tells_nothing = |part: &str| {
            ["weight", "kernel", "MatMul", "Gemm"].iter().any(|word| part.starts_with(word))
        };
        if parts.len() > 1 && parts.last().is_some_and(|p| tells_nothing(p)) {
            parts.pop();
        }
        parts
    };
    let own = split(&graph.node(id).name);
    let weight = linear(graph, id).map(|(_, w)| split(&graph.node(w).name)).unwrap_or_default();
    if weight.len() > own.len() { weight } else { own }
}

/// Length of the longest start that all lists share; the last part of a lone list is not shared.
fn common(lists: &[&[String]]) -> usize {
    let Some(first) = lists.first() else { return 0 };
    let shared = |i: usize| lists.iter().all(|l| l.get(i) == first.get(i));
    let longest = (0..first.len()).take_while(|&i| shared(i)).count();
    if lists.len() == 1 { first.len() } else { longest }
}
