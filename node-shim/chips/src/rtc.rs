//! The clock of a PC: an MC146818 with its CMOS memory behind an index and a data port (Motorola MC146818 data sheet; ports 0x70 and 0x71).
//!
//! The time is the host's, in UTC and BCD, as Linux always reads it on x86; the guest cannot set it. The alarm interrupts, which is what
//! `hwclock` and wake-up alarms of Linux use; periodic and update interrupts Linux makes itself.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Offset of the index port.
const INDEX: u64 = 0;
/// Offset of the data port.
const DATA: u64 = 1;
/// Bytes of CMOS memory with the clock's registers.
const BYTES: usize = 128;
/// The bit of the index port that masks NMIs on a PC.
const INDEX_MASK: u8 = 0x7f;

const SECONDS: u8 = 0;
const SECONDS_ALARM: u8 = 1;
const MINUTES: u8 = 2;
const MINUTES_ALARM: u8 = 3;
const HOURS: u8 = 4;
const HOURS_ALARM: u8 = 5;
const WEEKDAY: u8 = 6;
const DAY: u8 = 7;
const MONTH: u8 = 8;
const YEAR: u8 = 9;
const REGISTER_A: u8 = 10;
const REGISTER_B: u8 = 11;
const REGISTER_C: u8 = 12;
const REGISTER_D: u8 = 13;
/// Where the century is: the FADT says so to the guest.
pub const CENTURY: u8 = 0x32;

/// Register A: an update is in progress, and the time may be read only when it is not.
const UPDATE_IN_PROGRESS: u8 = 0x80;
/// Register A at power-on: a 32.768 kHz crystal, 1024 Hz periodic rate.
const RATE_DEFAULT: u8 = 0x26;
/// Register B: alarm interrupts; 24 hours a day.
const ALARM_ENABLE: u8 = 0x20;
const HOURS_24: u8 = 0x02;
/// Register C: an interrupt is pending; it is the alarm's.
const INTERRUPT: u8 = 0x80;
const ALARM: u8 = 0x20;
/// Register D: the battery is good.
const VALID: u8 = 0x80;
/// The time before a second in which an update is in progress (data sheet: 244 us).
const UPDATE_NANOSECONDS: u32 = 244_000;
/// An alarm register that matches every value has both of its high bits set.
const ANY: u8 = 0xc0;
const SECONDS_OF_DAY: u64 = 86_400;

/// The clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rtc {
    index: u8,
    rate: u8,
    control: u8,
    pending: u8,
    /// Everything that is not a register of the clock, and the alarm.
    memory: [u8; BYTES],
}

/// What is saved of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtcState {
    index: u8,
    rate: u8,
    control: u8,
    pending: u8,
    memory: Vec<u8>,
}

impl Default for Rtc {
    fn default() -> Self {
        Self {
            index: 0,
            rate: RATE_DEFAULT,
            control: HOURS_24,
            pending: 0,
            memory: [0; BYTES],
        }
    }
}

/// A date and a time of day in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Calendar {
    year: u64,
    month: u8,
    day: u8,
    /// 1 is Sunday.
    weekday: u8,
    hour: u8,
    minute: u8,
    second: u8,
}

impl Calendar {
    /// From seconds since 1970, by counting 400-year periods of the Gregorian calendar from 1 March of the year 0, so that leap days come last.
    #[allow(clippy::cast_possible_truncation, reason = "each value is less than its divisor")]
    fn from_seconds(seconds: u64) -> Self {
        let (days, of_day) = (seconds / SECONDS_OF_DAY, seconds % SECONDS_OF_DAY);
        // 1 January 1970 is day 719,468 from 1 March of the year 0.
        let shifted = days + 719_468;
        let (period, day_of_period) = (shifted / 146_097, shifted % 146_097);
        let year_of_period =
            (day_of_period - day_of_period / 1_460 + day_of_period / 36_524 - day_of_period / 146_096) / 365;
        let day_of_year = day_of_period - (365 * year_of_period + year_of_period / 4 - year_of_period / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let month = if month_from_march < 10 {
            month_from_march + 3
        } else {
            month_from_march - 9
        };
        Self {
            year: 400 * period + year_of_period + u64::from(month <= 2),
            month: month as u8,
            day: (day_of_year - (153 * month_from_march + 2) / 5 + 1) as u8,
            // 1 January 1970 was a Thursday.
            weekday: ((days + 4) % 7 + 1) as u8,
            hour: (of_day / 3600) as u8,
            minute: (of_day / 60 % 60) as u8,
            second: (of_day % 60) as u8,
        }
    }
}

const fn bcd(value: u8) -> u8 {
    ((value / 10 % 10) << 4) | (value % 10)
}

fn since_epoch(now: SystemTime) -> Duration {
    now.duration_since(UNIX_EPOCH).unwrap_or_default()
}

impl Rtc {
    /// Reads a port. `true` when the interrupt line falls, which reading register C does.
    pub fn read(&mut self, offset: u64, data: &mut [u8], now: SystemTime) -> bool {
        let [value] = data else { return false };
        match offset {
            INDEX => *value = self.index,
            DATA => {
                *value = self.register(self.index, now);
                if self.index == REGISTER_C {
                    return std::mem::take(&mut self.pending) & INTERRUPT != 0;
                }
            }
            _ => {}
        }
        false
    }

    #[allow(
        clippy::cast_possible_truncation,
        reason = "a century and a year of it are less than 100"
    )]
    fn register(&self, index: u8, now: SystemTime) -> u8 {
        let now = since_epoch(now);
        let calendar = Calendar::from_seconds(now.as_secs());
        match index {
            SECONDS => bcd(calendar.second),
            MINUTES => bcd(calendar.minute),
            HOURS => bcd(calendar.hour),
            WEEKDAY => calendar.weekday,
            DAY => bcd(calendar.day),
            MONTH => bcd(calendar.month),
            YEAR => bcd((calendar.year % 100) as u8),
            CENTURY => bcd((calendar.year / 100 % 100) as u8),
            REGISTER_A => {
                let updating = now.subsec_nanos() >= 1_000_000_000 - UPDATE_NANOSECONDS;
                self.rate | if updating { UPDATE_IN_PROGRESS } else { 0 }
            }
            REGISTER_B => self.control,
            REGISTER_C => self.pending,
            REGISTER_D => VALID,
            other => self.memory[usize::from(other & INDEX_MASK)],
        }
    }

    /// Writes a port. Whoever owns the timer looks at [`Self::next_alarm`] afterwards.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let [value] = *data else { return };
        match (offset, self.index) {
            (INDEX, _) => self.index = value & INDEX_MASK,
            // The time is the host's.
            (DATA, SECONDS | MINUTES | HOURS | WEEKDAY..=YEAR | CENTURY | REGISTER_C | REGISTER_D) => {}
            (DATA, REGISTER_A) => self.rate = value & !UPDATE_IN_PROGRESS,
            (DATA, REGISTER_B) => self.control = value | HOURS_24,
            (DATA, other) => self.memory[usize::from(other & INDEX_MASK)] = value,
            _ => {}
        }
    }

    /// How long until the alarm, if it is on. An alarm that matches no time never comes.
    pub fn next_alarm(&self, now: SystemTime) -> Option<Duration> {
        if self.control & ALARM_ENABLE == 0 {
            return None;
        }
        let now = since_epoch(now);
        let matches = |register: u8, value: u8| {
            let alarm = self.memory[usize::from(register)];
            alarm >= ANY || alarm == bcd(value)
        };
        let possible = [(HOURS_ALARM, 24), (MINUTES_ALARM, 60), (SECONDS_ALARM, 60)];
        if !possible
            .iter()
            .all(|(register, end)| (0..*end).any(|value| matches(*register, value)))
        {
            return None;
        }
        let start = now.as_secs() + 1;
        let mut second = start;
        // In steps as long as nothing before can match: at most 24 + 60 + 60 of them, and there is a match.
        while second <= start + SECONDS_OF_DAY {
            let time = Calendar::from_seconds(second);
            if !matches(HOURS_ALARM, time.hour) {
                second += 3600 - second % 3600;
            } else if !matches(MINUTES_ALARM, time.minute) {
                second += 60 - second % 60;
            } else if matches(SECONDS_ALARM, time.second) {
                return Duration::from_secs(second).checked_sub(now);
            } else {
                second += 1;
            }
        }
        None
    }

    /// The alarm's time has come. `true` when the interrupt line rises.
    pub fn alarm(&mut self) -> bool {
        if self.control & ALARM_ENABLE == 0 {
            return false;
        }
        let rises = self.pending & INTERRUPT == 0;
        self.pending |= ALARM | INTERRUPT;
        rises
    }

    /// Its state.
    pub fn save(&self) -> RtcState {
        RtcState {
            index: self.index,
            rate: self.rate,
            control: self.control,
            pending: self.pending,
            memory: self.memory.to_vec(),
        }
    }

    /// Takes over a saved state; `None` when it is of another chip.
    pub fn restore(state: &RtcState) -> Option<Self> {
        Some(Self {
            index: state.index & INDEX_MASK,
            rate: state.rate & !UPDATE_IN_PROGRESS,
            control: state.control | HOURS_24,
            pending: state.pending,
            memory: state.memory.as_slice().try_into().ok()?,
        })
    }

    /// Whether the interrupt line is high.
    pub const fn interrupt(&self) -> bool {
        self.pending & INTERRUPT != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64, nanoseconds: u32) -> SystemTime {
        UNIX_EPOCH + Duration::new(seconds, nanoseconds)
    }

    fn get(rtc: &mut Rtc, register: u8, now: SystemTime) -> u8 {
        rtc.write(INDEX, &[register]);
        let mut data = [0xff];
        rtc.read(DATA, &mut data, now);
        data[0]
    }

    fn set(rtc: &mut Rtc, register: u8, value: u8) {
        rtc.write(INDEX, &[register]);
        rtc.write(DATA, &[value]);
    }

    #[test]
    fn the_time_is_the_hosts_in_bcd() {
        for (seconds, [century, year, month, day, weekday, hour, minute, second]) in [
            (0, [0x19, 0x70, 0x01, 0x01, 5, 0, 0, 0]),
            (951_782_399, [0x20, 0x00, 0x02, 0x28, 2, 0x23, 0x59, 0x59]),
            (951_782_400, [0x20, 0x00, 0x02, 0x29, 3, 0, 0, 0]),
            (1_795_379_655, [0x20, 0x26, 0x11, 0x22, 1, 0x20, 0x34, 0x15]),
            (4_107_542_400, [0x21, 0x00, 0x03, 0x01, 2, 0, 0, 0]),
        ] {
            let mut rtc = Rtc::default();
            let now = at(seconds, 1);
            let found = [CENTURY, YEAR, MONTH, DAY, WEEKDAY, HOURS, MINUTES, SECONDS]
                .map(|register| get(&mut rtc, register, now));
            assert_eq!(
                found,
                [century, year, month, day, weekday, hour, minute, second],
                "{seconds}"
            );
        }
    }

    #[test]
    fn an_update_is_in_progress_before_each_second_and_the_time_cannot_be_set() {
        let mut rtc = Rtc::default();
        assert_eq!(get(&mut rtc, REGISTER_A, at(5, 999_755_999)), RATE_DEFAULT);
        assert_eq!(
            get(&mut rtc, REGISTER_A, at(5, 999_756_000)),
            RATE_DEFAULT | UPDATE_IN_PROGRESS
        );
        for register in [SECONDS, MINUTES, HOURS, DAY, MONTH, YEAR, CENTURY, REGISTER_D] {
            let before = get(&mut rtc, register, at(5, 0));
            set(&mut rtc, register, 0x55);
            assert_eq!(get(&mut rtc, register, at(5, 0)), before, "{register}");
        }
        set(&mut rtc, REGISTER_B, 0);
        assert_eq!(get(&mut rtc, REGISTER_B, at(5, 0)), HOURS_24);
        set(&mut rtc, 0x8f, 7);
        assert_eq!(get(&mut rtc, 0x0f, at(5, 0)), 7, "the top bit is not the index's");
        assert_eq!(get(&mut rtc, REGISTER_D, at(5, 0)), VALID);
    }

    #[test]
    fn the_alarm_comes_when_its_time_does() {
        let now = at(1_000_000, 500_000_000); // 13:46:40.5
        for (hour, minute, second, expected) in [
            (0xff, 0xff, 0xff, Some(500)),
            (0xc0, 0xc0, 0x45, Some(4_500)),
            (0x13, 0x47, 0x00, Some(19_500)),
            (0x13, 0x46, 0x40, Some(86_399_500)),
            (0x00, 0x00, 0x00, Some(36_799_500)),
            (0x24, 0x00, 0x00, None),
            (0x13, 0x61, 0xff, None),
            (0xff, 0xff, 0x6f, None),
        ] {
            let mut rtc = Rtc::default();
            for (register, value) in [(HOURS_ALARM, hour), (MINUTES_ALARM, minute), (SECONDS_ALARM, second)] {
                set(&mut rtc, register, value);
            }
            assert_eq!(rtc.next_alarm(now), None, "it is off");
            set(&mut rtc, REGISTER_B, ALARM_ENABLE);
            let expected = expected.map(Duration::from_millis);
            assert_eq!(rtc.next_alarm(now), expected, "{hour:x}:{minute:x}:{second:x}");
        }
    }

    #[test]
    fn the_line_rises_once_and_falls_when_register_c_is_read() {
        let mut rtc = Rtc::default();
        assert!(!rtc.alarm(), "it is off");
        set(&mut rtc, REGISTER_B, ALARM_ENABLE);
        assert!(rtc.alarm() && !rtc.alarm() && rtc.interrupt());
        let same = Rtc::restore(&rtc.save()).unwrap();
        assert_eq!(same, rtc);
        rtc.write(INDEX, &[REGISTER_C]);
        let mut data = [0];
        assert!(rtc.read(DATA, &mut data, at(0, 0)));
        assert_eq!(data, [INTERRUPT | ALARM]);
        assert!(!rtc.read(DATA, &mut data, at(0, 0)));
        assert_eq!(data, [0]);
        let damaged = RtcState {
            memory: vec![0; 127],
            ..rtc.save()
        };
        assert!(Rtc::restore(&damaged).is_none());
    }
}
