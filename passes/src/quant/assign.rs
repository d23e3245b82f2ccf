//! Which groups take four bits: by a share of the work, by a bound on the loss of each, or by a bound on
//! the loss of all.

/// One group's part in the decision.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Candidate {
    /// Multiplications for each token.
    pub work: f64,
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

/// Whether each group takes four bits. The cheapest work comes first: least loss for each
/// multiplication; among equals the earlier group.
pub fn assign(groups: &[Candidate], aim: Aim) -> Vec<bool> {
    let drop = |g: &Candidate| (g.loss4 - g.loss8).max(0.0);
    let mut order: Vec<usize> = (0..groups.len()).collect();
    let price = |i: usize| drop(&groups[i]) / groups[i].work.max(f64::MIN_POSITIVE);
    order.sort_by(|&a, &b| price(a).total_cmp(&price(b)).then(a.cmp(&b)));
    let all: f64 = groups.iter().map(|g| g.work).sum();
    let mut four = vec![false; groups.len()];
    let (mut work, mut lost) = (0.0, 0.0);
    for i in order {
        let group = &groups[i];
        four[i] = match aim {
            Aim::Share(share) => work < share * all,
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
        let group = |work, loss4| Candidate { work, loss8: 0.0, loss4 };
        let groups = [group(1.0, 3.0), group(2.0, 1.0), group(1.0, 1.0), group(0.0, 0.0)];
        assert_eq!(assign(&groups, Aim::Share(0.5)), [false, true, false, true]);
        assert_eq!(assign(&groups, Aim::Share(0.51)), [false, true, true, true]);
        assert_eq!(assign(&groups, Aim::Share(1.0)), [true; 4]);
        assert_eq!(assign(&groups, Aim::Each(1.0)), [false, true, true, true]);
        assert_eq!(assign(&groups, Aim::Total(2.5)), [false, true, true, true]);
        assert_eq!(assign(&groups, Aim::Total(1.5)), [false, true, false, true]);
    }
}
