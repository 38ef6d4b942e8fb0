//! How long a disk's thread looks for more requests before it sleeps. While it looks the driver need not kick, which is an exit of the guest,
//! and the thread need not be woken: for a guest with one request at a time that is most of what a request takes. It looks only where
//! that has paid: after a sleep that was shorter than a look, and never where the guest would wait for the same processor.

use std::time::Duration;

/// The longest look: what an exit and a wake-up take together, on a slow host.
const MAX: Duration = Duration::from_micros(50);
/// The shortest.
const MIN: Duration = Duration::from_micros(8);

/// See the [module](self).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Linger {
    now: Duration,
    max: Duration,
}

impl Linger {
    /// Where the thread has a processor that the guest does not wait for.
    pub(super) const fn new(spare_processor: bool) -> Self {
        Self {
            now: Duration::ZERO,
            max: if spare_processor { MAX } else { Duration::ZERO },
        }
    }

    /// How long to look.
    pub(super) fn duration(self) -> Duration {
        self.now
    }

    /// Nothing came while it looked, and a request woke it after a sleep of this length.
    pub(super) fn slept(&mut self, slept: Duration) {
        self.now = if slept > self.max {
            Duration::ZERO
        } else {
            (self.now * 2).max(MIN).min(self.max)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn us(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    #[test]
    fn it_looks_longer_where_that_pays_and_not_at_all_where_it_does_not() {
        for (spare_processor, sleeps, expected) in [
            (true, &[][..], us(0)),
            (true, &[us(40)], us(8)),
            (true, &[us(40), us(50), us(3)], us(32)),
            (true, &[us(40), us(40), us(40), us(40), us(40)], us(50)),
            (true, &[us(40), us(40), us(51)], us(0)),
            (true, &[us(1000), us(40)], us(8)),
            (false, &[us(1), us(0)], us(0)),
        ] {
            let mut linger = Linger::new(spare_processor);
            for slept in sleeps {
                linger.slept(*slept);
            }
            assert_eq!(linger.duration(), expected, "{spare_processor} {sleeps:?}");
        }
    }
}
