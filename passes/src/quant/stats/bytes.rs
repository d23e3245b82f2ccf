//! Statistics as bytes, for a file, and back. What is read is checked as far as data could have given
//! it: a reader may go on from it as from statistics of its own.

use super::{ChannelStats, PEAKS, Peak, Rare, SAMPLE_ROWS, hash};

/// Why bytes are no statistics.
pub type Fault = &'static str;

impl ChannelStats {
    /// Appends, little-endian: `channels, rows, runs, limit, kept, rare rows u64 · rare share f64 · min f32
    /// · absmax f32[channels] · halves f32[2][channels] · peaks f32[channels][min(rows, PEAKS)][2] · rare
    /// peaks f32[channels][min(rare rows, PEAKS)][2] · places u64[kept] · sample f32[kept][channels]`.
    pub fn write(&self, out: &mut Vec<u8>) {
        let kept = self.places.len();
        let channels = self.channels as u64;
        let Rare { share, rows: rare, peaks: rare_peaks } = &self.rare;
        let numbers = [channels, self.rows, self.runs as u64, self.limit, kept as u64, *rare];
        out.extend(numbers.iter().flat_map(|v| v.to_le_bytes()));
        out.extend(share.to_le_bytes());
        let peaks = self.peaks.iter().chain(rare_peaks).flatten();
        let peaks = peaks.flat_map(|p| [p.value, p.row_energy]);
        let halves = self.halves.iter().flatten();
        let maxima = [self.min].into_iter().chain(self.absmax.iter().chain(halves).copied());
        out.extend(maxima.chain(peaks).flat_map(f32::to_le_bytes));
        out.extend(self.places.iter().flat_map(|v| v.to_le_bytes()));
        out.extend(self.sample.iter().flat_map(|v| v.to_le_bytes()));
    }

    /// The statistics that [`write`](Self::write) gave these bytes. Allocates little more than they have.
    pub fn read(mut bytes: &[u8]) -> Result<ChannelStats, Fault> {
        let rest = &mut bytes;
        let channels = usize::try_from(number(rest)?).map_err(|_| TOO_SHORT)?;
        let rows = number(rest)?;
        let runs = usize::try_from(number(rest)?).map_err(|_| "there are too many runs")?;
        let (limit, kept, rare_rows) = (number(rest)?, number(rest)?, number(rest)?);
        let share = f64::from_bits(number(rest)?);
        if kept > SAMPLE_ROWS as u64 {
            return Err("the sample is too long");
        }
        let times = |n: usize| channels.checked_mul(n).ok_or(TOO_SHORT);
        let tops = |rows: u64| rows.min(PEAKS as u64) as usize;
        let kept = kept as usize;
        let min = floats(rest, 1)?[0];
        let absmax = floats(rest, channels)?;
        let halves = [floats(rest, channels)?, floats(rest, channels)?];
        let pairs = floats(rest, times(2 * tops(rows))?)?;
        let rare_pairs = floats(rest, times(2 * tops(rare_rows))?)?;
        let places = (0..kept).map(|_| number(rest)).collect::<Result<Vec<u64>, Fault>>()?;
        let sample = floats(rest, times(kept)?)?;
        if !rest.is_empty() {
            return Err("there are bytes left over");
        }
        let peak = |p: &[f32; 2]| Peak { value: p[0], row_energy: p[1] };
        let peaks = |pairs: &[f32], tops: usize| -> Vec<Vec<Peak>> {
            let pairs = pairs.as_chunks().0.chunks_exact(tops.max(1));
            pairs.map(|p| p.iter().map(peak).collect()).collect()
        };
        let rare_peaks = peaks(&rare_pairs, tops(rare_rows));
        let peaks = match tops(rows) {
            0 => vec![Vec::new(); channels],
            tops => peaks(&pairs, tops),
        };
        let stats = ChannelStats {
            channels,
            absmax,
            halves,
            runs,
            min,
            rows,
            peaks,
            sample,
            places,
            limit,
            rare: Rare { share, rows: rare_rows, peaks: rare_peaks },
        };
        stats.check_maxima()?;
        stats.check_sample()?;
        Ok(stats)
    }

    fn check_maxima(&self) -> Result<(), Fault> {
        let halves = self.halves[0].iter().zip(&self.halves[1]);
        let size = |v: f32| v.is_finite() && v >= 0.0;
        let fits = |(m, (a, b)): (&f32, (&f32, &f32))| size(*a) && size(*b) && a.max(*b) == *m;
        if !self.absmax.iter().zip(halves).all(fits) {
            return Err("a channel maximum is negative, not finite, or not that of the two halves");
        }
        let in_order = |peaks: &Vec<Peak>| {
            peaks.is_sorted_by(|a, b| a.value >= b.value)
                && peaks.iter().all(|p| size(p.value) && p.row_energy >= 0.0)
        };
        let first =
            |(peaks, max): (&Vec<Peak>, &f32)| peaks.first().is_none_or(|p| p.value == *max);
        let tops = self.peaks.iter().zip(&self.absmax).all(first);
        if !tops || !self.peaks.iter().chain(&self.rare.peaks).all(in_order) {
            return Err("the largest values of a channel are not in order");
        }
        if !(0.0..=1.0).contains(&self.rare.share) {
            return Err("a share of tokens is not between 0 and 1");
        }
        let largest = self.absmax.iter().copied().fold(0.0, f32::max);
        let possible = match self.rows > 0 && self.channels > 0 {
            true => self.min.abs() <= largest && self.runs > 0,
            false => self.min == f32::INFINITY && largest == 0.0,
        };
        if possible { Ok(()) } else { Err("the minimum does not fit the channel maxima") }
    }

    fn check_sample(&self) -> Result<(), Fault> {
        let halved = self.limit.checked_add(1).is_none_or(u64::is_power_of_two);
        let kept = |place: &u64| *place < self.rows && hash(*place) < self.limit;
        let in_order = self.places.is_sorted_by(|a, b| a < b);
        let any = !self.places.is_empty() || self.rows == 0 || self.channels == 0;
        if !halved || !in_order || !any || !self.places.iter().all(kept) {
            return Err("the sample is not of the rows that it should be of");
        }
        let inside = |(v, m): (&f32, &f32)| v.abs() <= *m && *v >= self.min;
        if !self.sample().all(|row| row.iter().zip(&self.absmax).all(inside)) {
            return Err("a sampled value is beyond its channel's maximum or below the minimum");
        }
        Ok(())
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
            for stats in [&mut whole, &mut halted] {
                stats.update(&row(i)).expect("finite");
                if i > 900 {
                    stats.update_rare(&row(i * 7), 0.125).expect("finite");
                }
            }
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
        (0..40).for_each(|i| stats.update_rare(&[1.0, i as f32], 0.5).expect("finite"));
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
        (0..40).for_each(|i| stats.update_rare(&[1.0, i as f32], 0.5).expect("finite"));
        let refused = |change: fn(&mut ChannelStats)| {
            let mut spoilt = stats.clone();
            change(&mut spoilt);
            assert!(ChannelStats::read(&bytes(&spoilt)).is_err(), "{spoilt:?}");
        };
        assert_eq!(ChannelStats::read(&bytes(&stats)).as_ref(), Ok(&stats));
        refused(|s| s.absmax[0] = f32::NAN);
        refused(|s| s.halves[0][0] = f32::INFINITY);
        refused(|s| (s.absmax[1], s.halves[0][1], s.halves[1][1]) = (1.0, 1.0, 1.0));
        refused(|s| s.halves[1][0] = 1e9);
        refused(|s| s.min = f32::NEG_INFINITY);
        refused(|s| s.min = f32::NAN);
        refused(|s| s.min = -1.0);
        refused(|s| s.peaks[0].reverse());
        refused(|s| s.peaks[0][0].value = 1e9);
        refused(|s| s.peaks[0][5].row_energy = f32::NAN);
        refused(|s| s.rare.peaks[1].reverse());
        refused(|s| s.rare.peaks[0][0].value = f32::INFINITY);
        refused(|s| s.rare.share = f64::NAN);
        refused(|s| s.rare.rows = 3);
        refused(|s| s.limit -= 1);
        refused(|s| s.limit = 0);
        refused(|s| s.places.swap(0, 1));
        refused(|s| s.places[3] = u64::MAX);
        refused(|s| s.rows = 100);
        refused(|s| s.rows = 0);
        refused(|s| s.runs = 0);
        refused(|s| s.sample[3] = f32::NAN);
        refused(|s| s.sample[3] = 3.0);
        refused(|s| s.channels = usize::MAX);
        refused(|s| s.channels = usize::MAX / 4);
    }
}
