//! Our own few lines on stderr. The guest's console has stdout to itself.
//!
//! A guest must not be able to fill its node's logs with them: what it can cause goes through [`guest`], and how much was left out is told.

use std::fmt::Arguments;
use std::io::Write;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use node_shim_virtio::lock::lock;

/// Lines of a guest at once: a boot has fewer.
const BURST: u32 = 32;
/// One more each.
const INTERVAL: Duration = Duration::from_secs(2);

/// What guests have left to say.
static VALVE: Mutex<Option<Valve>> = Mutex::new(None);

/// Writes a line. A terminal may be raw, so it ends with a carriage return too.
pub(crate) fn line(text: Arguments<'_>) {
    // There is nowhere to complain about stderr.
    let _ = std::io::stderr().write_all(format!("node-shim: {text}\r\n").as_bytes());
}

/// Writes a line that a guest can cause as often as it likes, unless there were too many of late.
pub(crate) fn guest(text: Arguments<'_>) {
    let now = Instant::now();
    let passed = lock(&VALVE).get_or_insert_with(|| Valve::new(now)).pass(now);
    if let Some(left_out) = passed {
        tell_left_out(left_out);
        line(text);
    }
}

/// Says what was left out and not yet told, at the end.
pub(crate) fn finish() {
    // Not waited for: the thread that holds it may be the one that ends the process.
    let left_out = VALVE
        .try_lock()
        .ok()
        .and_then(|mut valve| valve.as_mut().map(Valve::take_left_out));
    tell_left_out(left_out.unwrap_or_default());
}

fn tell_left_out(lines: u64) {
    if lines > 0 {
        line(format_args!("{lines} lines about what the guest did were left out"));
    }
}

/// Lets [`BURST`] lines pass at once, and one more each [`INTERVAL`].
struct Valve {
    left: u32,
    /// Up to when `left` was counted.
    counted: Instant,
    left_out: u64,
}

impl Valve {
    fn new(now: Instant) -> Self {
        Self {
            left: BURST,
            counted: now,
            left_out: 0,
        }
    }

    /// How many lines were left out before this one, if it may be written.
    fn pass(&mut self, now: Instant) -> Option<u64> {
        while self.left < BURST && now.saturating_duration_since(self.counted) >= INTERVAL {
            self.left += 1;
            self.counted += INTERVAL;
        }
        if self.left == BURST {
            self.counted = now;
        }
        if let Some(left) = self.left.checked_sub(1) {
            self.left = left;
            return Some(self.take_left_out());
        }
        self.left_out = self.left_out.saturating_add(1);
        None
    }

    fn take_left_out(&mut self) -> u64 {
        std::mem::take(&mut self.left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_has_a_burst_and_then_a_trickle_and_what_was_left_out_is_counted() {
        let start = Instant::now();
        let mut valve = Valve::new(start);
        let written = (0..1000).filter(|_| valve.pass(start).is_some()).count();
        assert_eq!(written, BURST as usize);
        assert_eq!(valve.pass(start + INTERVAL), Some(1000 - u64::from(BURST)));
        assert_eq!(valve.pass(start + INTERVAL), None);
        // It never gathers more than a burst, however long it was quiet.
        let later = start + INTERVAL * 100_000;
        let written = (0..1000).filter_map(|_| valve.pass(later)).collect::<Vec<_>>();
        assert_eq!((written.len(), written[0]), (BURST as usize, 1));
        // One line each half of the interval: every other one passes.
        let mut at = later;
        let passed = (0..100).filter(|_| {
            at += INTERVAL / 2;
            valve.pass(at).is_some()
        });
        assert_eq!(passed.count(), 50);
        // A clock that stands still or goes back lets nothing through.
        assert_eq!(valve.pass(start), None);
        assert!(valve.take_left_out() > 0);
        assert_eq!(valve.take_left_out(), 0);
    }
}
