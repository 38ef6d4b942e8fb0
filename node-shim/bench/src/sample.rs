//! One measurement, and what many of them say.

use std::fmt;

use crate::figure::{Figure, Statistic};

/// The monitor that all this is about.
pub(crate) const OURS: &str = "node-shim";

/// One measurement. As text it is a line: it crosses serial consoles.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sample {
    /// What was measured.
    pub(crate) figure: Figure,
    /// Of whom.
    pub(crate) monitor: String,
    /// In the figure's unit.
    pub(crate) value: f64,
}

const MARK: &str = "SAMPLE";

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{MARK}\t{}\t{}\t{}", self.figure.name(), self.monitor, self.value)
    }
}

impl Sample {
    /// The sample in a line, if it is one.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let (_, sample) = line.split_once(MARK)?;
        let words: Vec<&str> = sample.trim().split('\t').collect();
        let [figure, monitor, value] = words[..] else {
            return None;
        };
        let value: f64 = value.parse().ok()?;
        value.is_finite().then_some(Self {
            figure: Figure::named(figure)?,
            monitor: monitor.to_owned(),
            value,
        })
    }
}

/// The samples of one monitor, in order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Spread(Vec<f64>);

impl Spread {
    /// `None` without any.
    pub(crate) fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        (!values.is_empty()).then_some(Self(values))
    }

    /// How many.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// The least.
    pub(crate) fn min(&self) -> f64 {
        self.0[0]
    }

    /// The most.
    pub(crate) fn max(&self) -> f64 {
        self.0[self.count() - 1]
    }

    /// A statistic; by the nearest rank, and the median of an even number is the mean of the middle two.
    pub(crate) fn get(&self, statistic: Statistic) -> f64 {
        match statistic {
            Statistic::Median => f64::midpoint(self.0[(self.count() - 1) / 2], self.0[self.count() / 2]),
            Statistic::Percentile95 => self.0[(self.count() * 95).div_ceil(100) - 1],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_survives_being_written() {
        for figure in Figure::ALL {
            let sample = Sample {
                figure: *figure,
                monitor: "QEMU q35".to_owned(),
                value: 0.1 + 0.2,
            };
            assert_eq!(Sample::parse(&format!("[    1.5] {sample}\r")), Some(sample));
        }
    }

    #[test]
    fn what_is_no_sample_is_none() {
        for line in [
            "",
            "SAMPLE",
            "SAMPLE\tmemory\tx",
            "SAMPLE\tnothing\tx\t1",
            "SAMPLE\tmemory\tx\tNaN",
            "SAMPLE\tmemory\tx\tmany",
        ] {
            assert_eq!(Sample::parse(line), None, "{line}");
        }
    }

    #[test]
    fn statistics_are_by_rank() {
        let spread = |values: &[f64]| Spread::of(values.iter().copied()).unwrap();
        assert_eq!(Spread::of(std::iter::empty()), None);
        let numbers: Vec<f64> = (1..=40).rev().map(f64::from).collect();
        for (values, median, percentile95) in [
            (&numbers[..], 20.5, 38.0),
            (&[3.0, 1.0, 2.0], 2.0, 3.0),
            (&[7.0], 7.0, 7.0),
        ] {
            let spread = spread(values);
            assert_eq!(
                (spread.get(Statistic::Median), spread.get(Statistic::Percentile95)),
                (median, percentile95)
            );
        }
        assert_eq!((spread(&numbers).min(), spread(&numbers).max()), (1.0, 40.0));
    }
}
