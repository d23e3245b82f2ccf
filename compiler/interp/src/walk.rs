//! Row-major walks over strided views: the one way in which the interpreter visits elements out of
//! order.

/// Offsets of the elements of a strided view, in row-major order of its shape.
pub(crate) struct Walk {
    shape: Vec<usize>,
    strides: Vec<isize>,
    index: Vec<usize>,
    offset: isize,
    left: usize,
}

impl Walk {
    pub fn new(shape: &[usize], strides: &[isize], start: isize) -> Self {
        Walk {
            shape: shape.to_vec(),
            strides: strides.to_vec(),
            index: vec![0; shape.len()],
            offset: start,
            left: shape.iter().product(),
        }
    }

    /// Positions in a tensor of shape `from` when it is read as the broadcast `to`.
    pub fn broadcast(from: &[usize], to: &[usize]) -> Self {
        Walk::new(to, &broadcast_strides(from, to), 0)
    }
}

impl Iterator for Walk {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        self.left = self.left.checked_sub(1)?;
        let here = self.offset as usize;
        for axis in (0..self.shape.len()).rev() {
            self.index[axis] += 1;
            self.offset += self.strides[axis];
            if self.index[axis] < self.shape[axis] {
                break;
            }
            self.offset -= self.strides[axis] * self.shape[axis] as isize;
            self.index[axis] = 0;
        }
        Some(here)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

/// Strides of a contiguous tensor.
pub(crate) fn strides(shape: &[usize]) -> Vec<isize> {
    let mut out = vec![1isize; shape.len()];
    for axis in (0..shape.len().saturating_sub(1)).rev() {
        out[axis] = out[axis + 1] * shape[axis + 1].max(1) as isize;
    }
    out
}

/// Strides with which a tensor of shape `from` is read as the broadcast `to`: 0 where repeated.
pub(crate) fn broadcast_strides(from: &[usize], to: &[usize]) -> Vec<isize> {
    let own = strides(from);
    let lead = to.len() - from.len();
    let of = |axis: usize| if from[axis - lead] == 1 { 0 } else { own[axis - lead] };
    (0..to.len()).map(|axis| if axis < lead { 0 } else { of(axis) }).collect()
}

/// Sizes before, at and after an axis.
pub(crate) fn around(shape: &[usize], axis: usize) -> (usize, usize, usize) {
    (shape[..axis].iter().product(), shape[axis], shape[axis + 1..].iter().product())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_visits_in_row_major_order() {
        let transposed: Vec<usize> = Walk::new(&[3, 2], &[1, 3], 0).collect();
        assert_eq!(transposed, [0, 3, 1, 4, 2, 5]);
        let backwards: Vec<usize> = Walk::new(&[3], &[-1], 2).collect();
        assert_eq!(backwards, [2, 1, 0]);
        assert_eq!(Walk::new(&[], &[], 0).collect::<Vec<_>>(), [0]);
        assert_eq!(Walk::new(&[2, 0], &[1, 1], 0).count(), 0);
        let repeated: Vec<usize> = Walk::broadcast(&[2, 1], &[2, 2, 3]).collect();
        assert_eq!(repeated, [0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1]);
    }
}
