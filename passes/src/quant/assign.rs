//! Which groups take four bits: by a share of the work, by a bound on the loss of each, or by a bound on
//! the loss of all.

/// One group's part in the decision.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Candidate {
    /// Multiplications for each token that count.
    pub work: f64,
    /// Whether it takes four bits, if that is settled.
    pub settled: Option<bool>,
    /// Loss of the model with this group in eight bits, and in four.
    pub loss8: f64,
    pub loss4: f64,
}

/// What the assignment keeps to.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Aim {
    /// At least this share of the work in four bits.
    Share(f64),
    /// Four bits where the group's loss is at most this.
    Each(f64),
    /// As much work in four bits as the summed loss over that of eight bits allows.
    Total(f64),
}

/// Whether each group takes four bits. Of those that are not settled the cheapest work comes first:
/// least loss for each multiplication; among equals the earlier group.
pub fn assign(groups: &[Candidate], aim: Aim) -> Vec<bool> {
    let drop = |g: &Candidate| (g.loss4 - g.loss8).max(0.0);
    let mut order: Vec<usize> = (0..groups.len()).collect();
    let price = |i: usize| drop(&groups[i]) / groups[i].work.max(f64::MIN_POSITIVE);
    order.sort_by(|&a, &b| price(a).total_cmp(&price(b)).then(a.cmp(&b)));
    let all: f64 = groups.iter().map(|g| g.work).sum();
    let mut four: Vec<bool> = groups.iter().map(|g| g.settled == Some(true)).collect();
    let settled = groups.iter().filter(|g| g.settled == Some(true));
    let (mut work, mut lost) = (settled.map(|g| g.work).sum::<f64>(), 0.0);
    for i in order.into_iter().filter(|&i| groups[i].settled.is_none()) {
        let group = &groups[i];
        four[i] = match aim {
            // A rounding error must not add a group.
            Aim::Share(share) => work + 1e-9 * all < share * all,
            Aim::Each(bound) => group.loss4 <= bound,
            Aim::Total(bound) => lost + drop(group) <= bound,
        };
        if four[i] {
            work += group.work;
            lost += drop(group);
        }
    }
    four
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cheapest_work_comes_first() {
        let group = |work, loss4| Candidate { work, settled: None, loss8: 0.0, loss4 };
        let groups = [group(1.0, 3.0), group(2.0, 1.0), group(1.0, 1.0), group(0.0, 0.0)];
        assert_eq!(assign(&groups, Aim::Share(0.5)), [false, true, false, true]);
        assert_eq!(assign(&groups, Aim::Share(0.51)), [false, true, true, true]);
        assert_eq!(assign(&groups, Aim::Share(1.0)), [true; 4]);
        assert_eq!(assign(&groups, Aim::Each(1.0)), [false, true, true, true]);
        assert_eq!(assign(&groups, Aim::Total(2.5)), [false, true, true, true]);
        assert_eq!(assign(&groups, Aim::Total(1.5)), [false, true, false, true]);
    }

    #[test]
    fn what_is_settled_counts_as_it_is() {
        let group = |loss4, settled| Candidate { work: 1.0, settled, loss8: 0.0, loss4 };
        let groups = [group(9.0, Some(true)), group(0.0, Some(false)), group(2.0, None)];
        assert_eq!(assign(&groups, Aim::Share(0.33)), [true, false, false]);
        assert_eq!(assign(&groups, Aim::Share(0.5)), [true, false, true]);
        assert_eq!(assign(&groups, Aim::Total(2.0)), [true, false, true]);
        assert_eq!(assign(&groups, Aim::Each(1.0)), [true, false, false]);
    }
}
