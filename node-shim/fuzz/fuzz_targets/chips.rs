//! Hostile accesses to the small chips' registers.
#![no_main]

use std::time::{Duration, Instant, UNIX_EPOCH};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use node_shim_chips::cpus::{Cpus, Effect};
use node_shim_chips::rtc::{Rtc, RtcState};
use node_shim_chips::slots::Slots;
use node_shim_chips::watchdog::{TICK, TICKS_MAX, Watchdog, WatchdogState};

#[derive(Arbitrary, Debug)]
enum Step {
    Clock {
        offset: u8,
        data: [u8; 4],
        length: u8,
        seconds: u32,
        nanoseconds: u32,
    },
    Alarm,
    Watchdog {
        offset: u8,
        data: [u8; 4],
        length: u8,
        after_ms: u32,
    },
    Cpus {
        offset: u8,
        data: [u8; 4],
        length: u8,
    },
    WantCpus(u8),
    Slots {
        offset: u8,
        data: [u8; 4],
        length: u8,
    },
    Unplug(u8),
    Plug(u8),
    Restore(Vec<u8>),
}

fuzz_target!(|input: (u8, u8, Vec<Step>)| {
    let (present, max, steps) = input;
    let (present, max) = (present.max(1), max.max(1));
    let (mut clock, mut watchdog, mut slots) = (Rtc::default(), Watchdog::default(), Slots::default());
    let mut cpus = Cpus::new(present, max);
    let start = Instant::now();
    for step in steps.iter().take(256) {
        match step {
            Step::Clock {
                offset,
                data,
                length,
                seconds,
                nanoseconds,
            } => {
                let now = UNIX_EPOCH + Duration::new(u64::from(*seconds), nanoseconds % 1_000_000_000);
                let length = usize::from(length % 5);
                clock.write(u64::from(*offset), &data[..length]);
                clock.read(u64::from(*offset), &mut [0; 4][..length], now);
                if let Some(wait) = clock.next_alarm(now) {
                    assert!(wait <= Duration::from_secs(86_401));
                }
                clock.read(1, &mut [0], now);
            }
            Step::Alarm => {
                clock.alarm();
            }
            Step::Watchdog {
                offset,
                data,
                length,
                after_ms,
            } => {
                let now = start + Duration::from_millis(u64::from(*after_ms));
                let length = usize::from(length % 5);
                watchdog.write(u64::from(*offset), &data[..length], now);
                watchdog.read(u64::from(*offset), &mut [0; 4][..length], now);
                watchdog.expire(now);
            }
            Step::Cpus { offset, data, length } => {
                let length = usize::from(length % 5);
                let before = cpus.present();
                let effect = cpus.write(u64::from(*offset), &data[..length]);
                cpus.read(u64::from(*offset), &mut [0; 4][..length]);
                let ejected = matches!(effect, Effect::Eject(index) if index > 0);
                assert_eq!(before - cpus.present(), u8::from(ejected));
                assert!(cpus.is_present(0));
            }
            Step::WantCpus(wanted) => {
                for index in cpus.want(*wanted).plug {
                    assert!(!cpus.is_present(index));
                    cpus.plug(index);
                }
                assert!(cpus.present() >= (*wanted).clamp(1, cpus.max()));
            }
            Step::Slots { offset, data, length } => {
                let length = usize::from(length % 5);
                let asked: Vec<u8> = (0..32).filter(|slot| slots.is_leaving(*slot)).collect();
                let ejected = slots.write(u64::from(*offset), &data[..length]);
                assert!(
                    ejected
                        .iter()
                        .all(|slot| asked.contains(slot) && !slots.is_leaving(*slot))
                );
                slots.read(u64::from(*offset), &mut [0; 4][..length]);
            }
            Step::Unplug(slot) => slots.unplug(slot % 32),
            Step::Plug(slot) => slots.plug(slot % 32),
            Step::Restore(bytes) => restore(bytes, &mut clock, &mut watchdog),
        }
    }
});

fn restore(bytes: &[u8], clock: &mut Rtc, watchdog: &mut Watchdog) {
    if let Ok(state) = serde_json::from_slice::<RtcState>(bytes)
        && let Some(restored) = Rtc::restore(&state)
    {
        *clock = restored;
    }
    if let Ok(state) = serde_json::from_slice::<WatchdogState>(bytes) {
        let now = Instant::now();
        *watchdog = Watchdog::restore(&state, now);
        assert!(
            watchdog
                .deadline()
                .is_none_or(|deadline| deadline <= now + TICK * TICKS_MAX)
        );
    }
}
