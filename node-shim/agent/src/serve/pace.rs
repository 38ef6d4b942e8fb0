//! What one pod can ask for in a time: whoever has taken over a shim must not keep the agent or the kubelet busy.

use std::time::Duration;

use tokio::time::Instant;

/// How often a pod is listened to: [`Pace::BURST`] times at once, then once in each [`Pace::INTERVAL`]. Pure.
pub(super) struct Pace {
    /// When a pod that had always kept to the interval would have its next turn.
    turn: Instant,
}

impl Pace {
    const BURST: u32 = 20;
    const INTERVAL: Duration = Duration::from_millis(500);

    pub(super) fn new(now: Instant) -> Self {
        Self { turn: now }
    }

    /// When the next packet may be read.
    pub(super) fn next(&mut self, now: Instant) -> Instant {
        self.turn = self.turn.max(now) + Self::INTERVAL;
        let ahead = self
            .turn
            .duration_since(now)
            .saturating_sub(Self::BURST * Self::INTERVAL);
        now + ahead
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_burst_is_taken_at_once_and_then_one_packet_in_an_interval() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        for _ in 0..Pace::BURST {
            assert_eq!(pace.next(start), start);
        }
        assert_eq!(pace.next(start), start + Pace::INTERVAL);
        assert_eq!(pace.next(start + Pace::INTERVAL), start + 2 * Pace::INTERVAL);
        let later = start + Duration::from_mins(1);
        assert_eq!(pace.next(later), later);
    }
}
