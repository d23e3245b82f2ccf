//! Statistics as bytes, for a file, and back. What is read is checked as far as data could have given
//! it: a reader may go on from it as from statistics of its own.

use super::{ChannelStats, SAMPLE_ROWS};

/// Why bytes are no statistics.
pub type Fault = &'static str;

impl ChannelStats {
    /// Appends `channels, rows, stride, kept u64 · min f32 · absmax f32[channels] · sample
    /// f32[kept][channels]`, little-endian.
    pub fn write(&self, out: &mut Vec<u8>) {
        let numbers = [self.channels as u64, self.rows, self.stride, self.sample().count() as u64];
        out.extend(numbers.iter().flat_map(|v| v.to_le_bytes()));
        let floats = [self.min];
        let floats = floats.iter().chain(&self.absmax).chain(&self.sample);
        out.extend(floats.flat_map(|v| v.to_le_bytes()));
    }

    /// The statistics that [`write`](Self::write) gave these bytes. Allocates no more than they have.
    pub fn read(mut bytes: &[u8]) -> Result<ChannelStats, Fault> {
        let rest = &mut bytes;
        let channels = usize::try_from(number(rest)?).map_err(|_| TOO_SHORT)?;
        let (rows, stride, kept) = (number(rest)?, number(rest)?, number(rest)?);
        if kept > SAMPLE_ROWS as u64 {
            return Err("the sample is too long");
        }
        let min = floats(rest, 1)?[0];
        let absmax = floats(rest, channels)?;
        let sample = floats(rest, channels.checked_mul(kept as usize).ok_or(TOO_SHORT)?)?;
        if !rest.is_empty() {
            return Err("there are bytes left over");
        }
        if !stride.is_power_of_two() || (channels > 0 && kept != rows.div_ceil(stride)) {
            return Err("the sample has another number of rows than its stride says");
        }
        let stats = ChannelStats { channels, absmax, min, rows, sample, stride };
        stats.check_values().map(|()| stats)
    }

    fn check_values(&self) -> Result<(), Fault> {
        if !self.absmax.iter().all(|m| m.is_finite() && *m >= 0.0) {
            return Err("a channel maximum is negative or not finite");
        }
        let inside = |(v, m): (&f32, &f32)| v.abs() <= *m && *v >= self.min;
        if !self.sample().all(|row| row.iter().zip(&self.absmax).all(inside)) {
            return Err("a sampled value is beyond its channel's maximum or below the minimum");
        }
        let largest = self.absmax.iter().copied().fold(0.0, f32::max);
        let possible = if self.rows == 0 || self.channels == 0 {
            self.min == f32::INFINITY && largest == 0.0
        } else {
            self.min.abs() <= largest
        };
        if possible { Ok(()) } else { Err("the minimum does not fit the channel maxima") }
    }
}

const TOO_SHORT: Fault = "there are bytes missing";

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Result<&'a [u8], Fault> {
    let (taken, left) = rest.split_at_checked(count).ok_or(TOO_SHORT)?;
    *rest = left;
    Ok(taken)
}

fn number(rest: &mut &[u8]) -> Result<u64, Fault> {
    let bytes = take(rest, 8)?;
    Ok(bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
}

fn floats(rest: &mut &[u8], count: usize) -> Result<Vec<f32>, Fault> {
    let bytes = take(rest, count.checked_mul(4).ok_or(TOO_SHORT)?)?;
    Ok(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(stats: &ChannelStats) -> Vec<u8> {
        let mut out = Vec::new();
        stats.write(&mut out);
        out
    }

    #[test]
    fn statistics_that_were_read_go_on_as_the_whole() {
        let row = |i: u64| [(i % 91) as f32 - 40.0, i as f32 * 0.5, -1.0];
        let mut whole = ChannelStats::new(3);
        let mut halted = ChannelStats::new(3);
        for i in 0..1000 {
            whole.update(&row(i)).expect("finite");
            halted.update(&row(i)).expect("finite");
            if i % 37 == 0 {
                halted = ChannelStats::read(&bytes(&halted)).expect("its own bytes");
            }
        }
        assert_eq!(whole, halted);
        for new in [ChannelStats::new(0), ChannelStats::new(4)] {
            assert_eq!(ChannelStats::read(&bytes(&new)), Ok(new));
        }
    }

    #[test]
    fn every_truncation_is_noticed() {
        let mut stats = ChannelStats::new(2);
        (0..300).for_each(|i| stats.update(&[i as f32, -2.0]).expect("finite"));
        let whole = bytes(&stats);
        for length in 0..whole.len() {
            assert!(ChannelStats::read(&whole[..length]).is_err(), "{length}");
        }
        assert!(ChannelStats::read(&[&whole[..], &[0]].concat()).is_err());
    }

    #[test]
    fn impossible_statistics_are_refused() {
        let mut stats = ChannelStats::new(2);
        (0..300).for_each(|i| stats.update(&[i as f32, -2.0]).expect("finite"));
        let refused = |change: fn(&mut ChannelStats)| {
            let mut spoilt = stats.clone();
            change(&mut spoilt);
            assert!(ChannelStats::read(&bytes(&spoilt)).is_err(), "{spoilt:?}");
        };
        assert_eq!(ChannelStats::read(&bytes(&stats)).as_ref(), Ok(&stats));
        refused(|s| s.absmax[0] = f32::NAN);
        refused(|s| s.absmax[0] = f32::INFINITY);
        refused(|s| s.absmax[1] = -2.0);
        refused(|s| s.absmax[1] = 1.0);
        refused(|s| s.min = f32::NEG_INFINITY);
        refused(|s| s.min = f32::NAN);
        refused(|s| s.min = -1.0);
        refused(|s| s.stride = 3);
        refused(|s| s.stride = 0);
        refused(|s| s.stride = 1);
        refused(|s| s.rows = u64::MAX);
        refused(|s| s.rows = 0);
        refused(|s| s.sample[3] = f32::NAN);
        refused(|s| s.sample[3] = 3.0);
        refused(|s| s.channels = usize::MAX);
        refused(|s| s.channels = usize::MAX / 4);
    }
}
