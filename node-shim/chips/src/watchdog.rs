//! A watchdog timer for the driver `wdat_wdt`, which an ACPI WDAT table tells how to use it (docs/adr/0004-watchdog.md).
//!
//! | offset | register | |
//! |---|---|---|
//! | 0 | control | bit 0: the timer runs; bit 1: it has expired once (written: cleared) |
//! | 4 | period | ticks of [`TICK`] that the timer runs for, at least [`TICKS_MIN`] |
//! | 8 | remaining | ticks that are left (read only) |
//! | 12 | reset | a write of anything starts the period anew |
//!
//! All have four bytes and are accessed as a whole.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Bytes of the register block.
pub const BYTES: u16 = 16;
/// Offset of the control register.
pub const CONTROL: u64 = 0;
/// Offset of the period.
pub const PERIOD: u64 = 4;
/// Offset of what is left of it.
pub const REMAINING: u64 = 8;
/// Offset of the register that starts the period anew.
pub const RESET: u64 = 12;
/// Control: the timer runs.
pub const RUNNING: u32 = 1;
/// Control: the timer has expired since this was last cleared.
pub const EXPIRED: u32 = 2;
/// What a period is counted in.
pub const TICK: Duration = Duration::from_millis(100);
/// Shortest period in ticks: a second.
pub const TICKS_MIN: u32 = 10;
/// Longest period in ticks: an hour.
pub const TICKS_MAX: u32 = 36_000;
/// Period in ticks at power-on: a minute.
const TICKS_DEFAULT: u32 = 600;

/// The timer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watchdog {
    period_ticks: u32,
    /// When it expires, if it runs.
    deadline: Option<Instant>,
    expired: bool,
}

/// What is saved of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchdogState {
    /// In ticks.
    period_ticks: u32,
    /// What is left, if it runs.
    remaining_ms: Option<u64>,
    expired: bool,
}

impl Default for Watchdog {
    /// As after power-on: stopped.
    fn default() -> Self {
        Self {
            period_ticks: TICKS_DEFAULT,
            deadline: None,
            expired: false,
        }
    }
}

impl Watchdog {
    /// Reads a register.
    pub fn read(&self, offset: u64, data: &mut [u8], now: Instant) {
        let value = match offset {
            CONTROL => (u32::from(self.deadline.is_some()) * RUNNING) | (u32::from(self.expired) * EXPIRED),
            PERIOD => self.period_ticks,
            REMAINING => self.deadline.map_or(0, |deadline| {
                let left = deadline.saturating_duration_since(now).as_millis() / TICK.as_millis();
                u32::try_from(left).unwrap_or(u32::MAX)
            }),
            _ => 0,
        };
        data.fill(0);
        if let [a, b, c, d] = data {
            [*a, *b, *c, *d] = value.to_le_bytes();
        }
    }

    /// Writes a register. Whoever owns the timer looks at [`Self::deadline`] afterwards.
    pub fn write(&mut self, offset: u64, data: &[u8], now: Instant) {
        let Ok(bytes) = <[u8; 4]>::try_from(data) else { return };
        let value = u32::from_le_bytes(bytes);
        match offset {
            CONTROL => {
                if value & EXPIRED != 0 {
                    self.expired = false;
                }
                match (value & RUNNING != 0, self.deadline) {
                    (true, None) => self.start(now),
                    (false, _) => self.deadline = None,
                    (true, Some(_)) => {}
                }
            }
            PERIOD => {
                self.period_ticks = value.clamp(TICKS_MIN, TICKS_MAX);
                self.restart(now);
            }
            RESET => self.restart(now),
            _ => {}
        }
    }

    fn start(&mut self, now: Instant) {
        self.deadline = Some(now + TICK * self.period_ticks);
    }

    fn restart(&mut self, now: Instant) {
        if self.deadline.is_some() {
            self.start(now);
        }
    }

    /// When the timer expires, if it runs.
    pub const fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whether the time is over; then the timer is stopped.
    pub fn expire(&mut self, now: Instant) -> bool {
        let over = self.deadline.is_some_and(|deadline| deadline <= now);
        if over {
            self.deadline = None;
            self.expired = true;
        }
        over
    }

    /// Back to the state after power-on, but for the memory of having expired.
    pub fn power_on(&mut self) {
        let expired = self.expired;
        *self = Self::default();
        self.expired = expired;
    }

    /// Its state. Time does not go on in it: a VM that is paused does not hang.
    pub fn save(&self, now: Instant) -> WatchdogState {
        let remaining = self.deadline.map(|deadline| deadline.saturating_duration_since(now));
        WatchdogState {
            period_ticks: self.period_ticks,
            remaining_ms: remaining.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
            expired: self.expired,
        }
    }

    /// Takes over a saved state; what is not possible in it becomes what is.
    pub fn restore(state: &WatchdogState, now: Instant) -> Self {
        let period_ticks = state.period_ticks.clamp(TICKS_MIN, TICKS_MAX);
        let longest = TICK * period_ticks;
        Self {
            period_ticks,
            deadline: state
                .remaining_ms
                .map(|left| now + Duration::from_millis(left).min(longest)),
            expired: state.expired,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(watchdog: &Watchdog, offset: u64, now: Instant) -> u32 {
        let mut data = [0xff; 4];
        watchdog.read(offset, &mut data, now);
        u32::from_le_bytes(data)
    }

    fn write(watchdog: &mut Watchdog, offset: u64, value: u32, now: Instant) {
        watchdog.write(offset, &value.to_le_bytes(), now);
    }

    #[test]
    fn it_expires_unless_it_is_reset_in_time() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut watchdog = Watchdog::default();
        write(&mut watchdog, PERIOD, 20, start);
        assert_eq!(watchdog.deadline(), None, "it does not run");
        write(&mut watchdog, CONTROL, RUNNING, start);
        assert_eq!(read(&watchdog, REMAINING, at(500)), 15);
        write(&mut watchdog, RESET, 1, at(1500));
        assert!(!watchdog.expire(at(3499)));
        assert_eq!(read(&watchdog, CONTROL, at(3499)), RUNNING);
        assert!(watchdog.expire(at(3500)));
        assert!(!watchdog.expire(at(9999)), "once");
        assert_eq!(read(&watchdog, CONTROL, at(9999)), EXPIRED);
        watchdog.power_on();
        assert_eq!(read(&watchdog, CONTROL, start), EXPIRED, "for the next kernel to know");
        write(&mut watchdog, CONTROL, EXPIRED, start);
        assert_eq!(read(&watchdog, CONTROL, start), 0);
        write(&mut watchdog, CONTROL, RUNNING, start);
        write(&mut watchdog, CONTROL, 0, start);
        assert_eq!(watchdog.deadline(), None);
    }

    #[test]
    fn periods_are_bounded_and_torn_accesses_do_nothing() {
        let now = Instant::now();
        let mut watchdog = Watchdog::default();
        for (written, kept) in [(0, TICKS_MIN), (u32::MAX, TICKS_MAX), (600, 600)] {
            write(&mut watchdog, PERIOD, written, now);
            assert_eq!(read(&watchdog, PERIOD, now), kept);
        }
        for (offset, bytes) in [(0, 1), (0, 2), (1, 4), (2, 2), (16, 4), (u64::MAX, 4)] {
            watchdog.write(offset, &[0xff; 4][..bytes], now);
            watchdog.read(offset, &mut [0; 8][..bytes], now);
        }
        assert_eq!(watchdog.deadline(), None);
    }

    #[test]
    fn time_does_not_pass_while_it_is_saved() {
        let now = Instant::now();
        let mut watchdog = Watchdog::default();
        write(&mut watchdog, PERIOD, 100, now);
        write(&mut watchdog, CONTROL, RUNNING, now);
        let state = watchdog.save(now + Duration::from_secs(4));
        let later = now + Duration::from_secs(1000);
        let restored = Watchdog::restore(&state, later);
        assert_eq!(restored.deadline(), Some(later + Duration::from_secs(6)));
        let damaged = WatchdogState {
            period_ticks: u32::MAX,
            remaining_ms: Some(u64::MAX),
            expired: false,
        };
        let longest = now + TICK * TICKS_MAX;
        assert_eq!(Watchdog::restore(&damaged, now).deadline(), Some(longest));
    }
}
