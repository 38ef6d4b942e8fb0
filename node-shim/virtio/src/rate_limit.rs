//! Token buckets: how much a device may move. Pure: whoever asks says what time it is.
//!
//! A bucket holds up to its burst and fills at its rate. As long as there is anything in it, a request of any size may go: what it takes too
//! much is owed, and the next one waits until the debt is paid. So a request larger than the burst is not stuck, and the rate holds
//! over time.

use std::time::{Duration, Instant};

/// Nanoseconds of a second.
const NANOS: u128 = 1_000_000_000;
/// Largest rate and burst: small enough that no calculation here overflows, and more than any device moves.
pub const MAX_TOKENS: u64 = 1 << 48;

/// A rate and what may be saved up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Tokens for a second, 1 to [`MAX_TOKENS`].
    pub per_second: u64,
    /// Most tokens that can be saved, 1 to [`MAX_TOKENS`].
    pub burst: u64,
}

/// What one device may move, in bytes and in operations; `None` is without limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes.
    pub bytes: Option<Rate>,
    /// Requests or packets.
    pub operations: Option<Rate>,
}

/// One bucket.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    rate: Rate,
    /// Token-nanoseconds: a token is [`NANOS`] of them, so that nothing is lost by rounding. Negative: owed.
    level: i128,
    /// When the level was right.
    at: Instant,
}

impl Bucket {
    fn new(rate: Rate, now: Instant) -> Self {
        let rate = Rate {
            per_second: rate.per_second.clamp(1, MAX_TOKENS),
            burst: rate.burst.clamp(1, MAX_TOKENS),
        };
        Self {
            rate,
            level: Self::scaled(rate.burst),
            at: now,
        }
    }

    fn scaled(tokens: u64) -> i128 {
        i128::from(tokens) * NANOS.cast_signed()
    }

    fn fill(&mut self, now: Instant) {
        let nanos = now.saturating_duration_since(self.at).as_nanos();
        // A century is enough to fill any bucket, and keeps the product small.
        let nanos = nanos.min(u128::from(u64::MAX / 4)).cast_signed();
        let gained = nanos.saturating_mul(i128::from(self.rate.per_second));
        self.level = self.level.saturating_add(gained).min(Self::scaled(self.rate.burst));
        self.at = self.at.max(now);
    }

    /// When something may go: now, or then.
    fn ready(&self, now: Instant) -> Result<(), Instant> {
        if self.level > 0 {
            return Ok(());
        }
        // The first nanosecond at which the level is above 0.
        let wait = self.level.unsigned_abs() / u128::from(self.rate.per_second) + 1;
        Err(now + Duration::from_nanos(u64::try_from(wait).unwrap_or(u64::MAX / 4)))
    }
}

/// The buckets of one device.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limiter {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
}

impl Limiter {
    /// Full buckets.
    pub fn new(limits: Limits, now: Instant) -> Self {
        Self {
            bytes: limits.bytes.map(|rate| Bucket::new(rate, now)),
            operations: limits.operations.map(|rate| Bucket::new(rate, now)),
        }
    }

    /// Whether there is no limit at all.
    pub fn is_unlimited(&self) -> bool {
        self.bytes.is_none() && self.operations.is_none()
    }

    /// Lets one operation of so many bytes go, or says when to ask again. Then nothing was taken.
    ///
    /// # Errors
    /// The time from which on it may go.
    pub fn take(&mut self, now: Instant, bytes: u64) -> Result<(), Instant> {
        self.ready(now)?;
        self.charge(bytes);
        Ok(())
    }

    /// Whether an operation may go, for one whose size is known only when it is done: [`Self::charge`] then takes it.
    ///
    /// # Errors
    /// The time from which on it may go.
    pub fn ready(&mut self, now: Instant) -> Result<(), Instant> {
        let mut until = None;
        for bucket in self.bytes.iter_mut().chain(&mut self.operations) {
            bucket.fill(now);
            until = until.max(bucket.ready(now).err());
        }
        until.map_or(Ok(()), Err)
    }

    /// Takes what one operation moved.
    pub fn charge(&mut self, bytes: u64) {
        if let Some(bucket) = &mut self.bytes {
            bucket.level = bucket.level.saturating_sub(Bucket::scaled(bytes.min(MAX_TOKENS)));
        }
        if let Some(bucket) = &mut self.operations {
            bucket.level = bucket.level.saturating_sub(Bucket::scaled(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: u64 = 1_000_000;

    const fn rate(per_second: u64, burst: u64) -> Rate {
        Rate { per_second, burst }
    }

    #[test]
    fn what_goes_when() {
        let start = Instant::now();
        let limits = Limits {
            bytes: Some(rate(1000, 500)),
            operations: Some(rate(10, 2)),
        };
        let mut limiter = Limiter::new(limits, start);
        // Nanoseconds since the start, bytes, and when to come again.
        for (at, bytes, expected) in [
            (0, 100, Ok(())),
            (0, 2000, Ok(())),
            // 1600 bytes are owed: 1.6 s; the two operations of the burst are used up: 0.1 s.
            (0, 0, Err(1600 * MS + 1)),
            (1600 * MS, 0, Err(1600 * MS + 1)),
            (1600 * MS + 1, 0, Ok(())),
            (1600 * MS + 1, 0, Ok(())),
            // The operations are used up; a nanosecond later there is a trace of the next, and it may be owed.
            (1600 * MS + 1, 0, Err(1600 * MS + 2)),
            (1600 * MS + 2, 0, Ok(())),
            (1600 * MS + 2, 0, Err(1700 * MS + 2)),
        ] {
            let result = limiter.take(start + Duration::from_nanos(at), bytes);
            let result = result.map_err(|until| until.duration_since(start).as_nanos());
            assert_eq!(result, expected.map_err(u128::from), "{bytes} bytes at {at}");
        }
    }

    #[test]
    fn without_limits_everything_goes() {
        let mut limiter = Limiter::new(Limits::default(), Instant::now());
        assert!(limiter.is_unlimited());
        for _ in 0..1000 {
            assert_eq!(limiter.take(Instant::now(), u64::MAX), Ok(()));
        }
    }

    #[test]
    fn absurd_numbers_are_harmless() {
        let start = Instant::now();
        for (per_second, burst) in [(0, 0), (1, u64::MAX), (u64::MAX, u64::MAX)] {
            let limits = Limits {
                bytes: Some(rate(per_second, burst)),
                operations: Some(rate(per_second, burst)),
            };
            let mut limiter = Limiter::new(limits, start);
            let mut now = start;
            for _ in 0..8 {
                if let Err(until) = limiter.take(now, u64::MAX) {
                    assert!(until > now);
                }
                now += Duration::from_secs(1 << 33);
            }
            assert!(
                limiter.take(start, 1).is_ok() || limiter.take(start, 1).is_err(),
                "time may stand still"
            );
        }
    }

    proptest! {
        /// Over any stretch of time no more passes than rate and burst allow, plus the one request that goes into debt; and a
        /// greedy driver that comes when it is told to gets the rate.
        #[test]
        fn the_rate_holds(per_second in 1_u64..10_000_000, burst in 1_u64..1_000_000, sizes in prop::collection::vec(1_u64..300_000, 50..200)) {
            let start = Instant::now();
            let mut limiter = Limiter::new(Limits { bytes: Some(rate(per_second, burst)), operations: None }, start);
            let (mut now, mut moved, largest) = (start, 0_u64, *sizes.iter().max().unwrap());
            for size in &sizes {
                while let Err(until) = limiter.take(now, *size) {
                    prop_assert!(until > now, "it says when, and that is not now");
                    now = until;
                }
                moved += size;
                let elapsed = now.duration_since(start).as_nanos();
                let allowed = u128::from(burst) + elapsed * u128::from(per_second) / NANOS + u128::from(largest) + 1;
                prop_assert!(u128::from(moved) <= allowed, "{} > {}", moved, allowed);
            }
            let elapsed = now.duration_since(start).as_nanos();
            let due = elapsed * u128::from(per_second) / NANOS;
            prop_assert!(u128::from(moved) >= due, "a greedy driver was held back: {} of {}", moved, due);
        }
    }
}
