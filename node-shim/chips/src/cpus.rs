//! The controller for plugging and unplugging processors (ACPI 6.4, 5.2.12 and 6.3): registers that the methods in the DSDT use.
//!
//! | offset | read | written |
//! |---|---|---|
//! | 0 | | selects a processor |
//! | 1 | bit 0: it is there; bit 1: it was plugged; bit 2: it shall go | bits 1 and 2: the guest has seen that; bit 3: it is ejected |
//! | 2 | | event of `_OST` |
//! | 3 | | status of `_OST`, which reports it |

use serde::{Deserialize, Serialize};

/// Bytes of the register block.
pub const BYTES: u16 = 4;
const SELECT: u64 = 0;
const STATE: u64 = 1;
const OUTCOME_EVENT: u64 = 2;
const OUTCOME_STATUS: u64 = 3;

/// State: the processor is there.
pub const PRESENT: u8 = 1;
/// State: it was plugged, and the guest has not yet seen it.
pub const INSERTING: u8 = 2;
/// State: the guest shall give it up.
pub const REMOVING: u8 = 4;
/// State: the guest has given it up.
pub const EJECT: u8 = 8;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Cpu {
    present: bool,
    inserting: bool,
    removing: bool,
}

/// The controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpus {
    selected: u8,
    event: u8,
    processors: Vec<Cpu>,
}

/// What a write means for the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// This processor is gone: take it out of the guest.
    Eject(u8),
    /// The guest says what came of an event (ACPI 6.4, 6.3.5): 0 is success.
    Outcome {
        /// The processor.
        cpu: u8,
        /// 1: plugged; 3: asked to go.
        event: u8,
        /// How it went.
        status: u8,
    },
}

/// What has to happen for another number of processors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// To be started, and then [`Cpus::plug`]ged.
    pub plug: Vec<u8>,
    /// The guest is to be told to look.
    pub notify: bool,
}

impl Cpus {
    /// `max` processors, of which the first `present` are there.
    pub fn new(present: u8, max: u8) -> Self {
        let cpu = |index| Cpu {
            present: index < present,
            ..Cpu::default()
        };
        Self {
            selected: 0,
            event: 0,
            processors: (0..max.max(present)).map(cpu).collect(),
        }
    }

    /// Number of processors that are there.
    pub fn present(&self) -> u8 {
        let present = self.processors.iter().filter(|cpu| cpu.present).count();
        u8::try_from(present).unwrap_or(u8::MAX)
    }

    /// Which processors are there.
    pub fn is_present(&self, index: u8) -> bool {
        self.processors.get(usize::from(index)).is_some_and(|cpu| cpu.present)
    }

    /// Most processors.
    pub fn max(&self) -> u8 {
        u8::try_from(self.processors.len()).unwrap_or(u8::MAX)
    }

    /// Asks for the first `wanted` processors and no others; 1 to [`Self::max`]. Those that shall go are there until the guest ejects them.
    pub fn want(&mut self, wanted: u8) -> Change {
        let wanted = wanted.clamp(1, self.max());
        let mut change = Change::default();
        // The index comes second: one after 254 cannot be counted.
        for (cpu, index) in self.processors.iter_mut().zip(0_u8..) {
            match (index < wanted, cpu.present) {
                (true, false) => change.plug.push(index),
                (true, true) => cpu.removing = false,
                // Asked again: the guest may have refused.
                (false, true) => {
                    cpu.removing = true;
                    change.notify = true;
                }
                (false, false) => {}
            }
        }
        change
    }

    /// A processor was started, and waits for the guest to take it.
    pub fn plug(&mut self, index: u8) {
        if let Some(cpu) = self.processors.get_mut(usize::from(index)) {
            *cpu = Cpu {
                present: true,
                inserting: true,
                removing: false,
            };
        }
    }

    /// Reads registers.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let ([value], STATE) = (data, offset) else { return };
        if let Some(cpu) = self.processors.get(usize::from(self.selected)) {
            *value = (u8::from(cpu.present) * PRESENT)
                | (u8::from(cpu.inserting) * INSERTING)
                | (u8::from(cpu.removing) * REMOVING);
        }
    }

    /// Writes a register.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        let [value] = *data else { return Effect::None };
        match offset {
            SELECT => self.selected = value,
            STATE => return self.write_state(value),
            OUTCOME_EVENT => self.event = value,
            OUTCOME_STATUS => {
                return Effect::Outcome {
                    cpu: self.selected,
                    event: self.event,
                    status: value,
                };
            }
            _ => {}
        }
        Effect::None
    }

    fn write_state(&mut self, value: u8) -> Effect {
        let index = self.selected;
        let Some(cpu) = self.processors.get_mut(usize::from(index)) else {
            return Effect::None;
        };
        if value & INSERTING != 0 {
            cpu.inserting = false;
        }
        if value & REMOVING != 0 {
            cpu.removing = false;
        }
        // The boot processor stays: a machine without one cannot reset.
        if value & EJECT == 0 || index == 0 || !cpu.present {
            return Effect::None;
        }
        *cpu = Cpu::default();
        Effect::Eject(index)
    }

    /// A state that was saved, if it is one of a machine with so many processors.
    pub fn restore(state: &Self, max: u8) -> Option<Self> {
        let right =
            state.processors.len() == usize::from(max) && state.processors.first().is_some_and(|cpu| cpu.present);
        right.then(|| state.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(cpus: &mut Cpus, index: u8) -> u8 {
        cpus.write(SELECT, &[index]);
        let mut data = [0xff];
        cpus.read(STATE, &mut data);
        data[0]
    }

    #[test]
    fn plugging_is_seen_and_acknowledged() {
        let mut cpus = Cpus::new(1, 4);
        let change = cpus.want(3);
        assert_eq!((change.plug.as_slice(), change.notify), (&[1, 2][..], false));
        assert_eq!(state(&mut cpus, 1), 0, "not before it was started");
        cpus.plug(1);
        cpus.plug(2);
        assert_eq!(state(&mut cpus, 2), PRESENT | INSERTING);
        cpus.write(STATE, &[INSERTING]);
        assert_eq!(
            (state(&mut cpus, 2), state(&mut cpus, 1)),
            (PRESENT, PRESENT | INSERTING)
        );
        assert_eq!(cpus.present(), 3);
    }

    #[test]
    fn unplugging_is_the_guests_to_finish() {
        let mut cpus = Cpus::new(4, 4);
        assert!(cpus.want(2).notify);
        assert_eq!(state(&mut cpus, 3), PRESENT | REMOVING);
        cpus.write(STATE, &[REMOVING]);
        assert_eq!(cpus.present(), 4);
        assert_eq!(cpus.write(STATE, &[EJECT]), Effect::Eject(3));
        assert_eq!((cpus.present(), state(&mut cpus, 3)), (3, 0));
        assert_eq!(cpus.write(STATE, &[EJECT]), Effect::None, "once");
        assert_eq!(cpus.want(4).plug, [3]);
        assert_eq!(state(&mut cpus, 2), PRESENT, "it may stay after all");
    }

    #[test]
    fn the_boot_processor_and_those_that_are_not_there_cannot_be_ejected() {
        let mut cpus = Cpus::new(2, 2);
        for index in [0, 2, 255] {
            cpus.write(SELECT, &[index]);
            assert_eq!(cpus.write(STATE, &[0xff]), Effect::None, "{index}");
        }
        assert_eq!(cpus.present(), 2);
        cpus.write(SELECT, &[1]);
        cpus.write(OUTCOME_EVENT, &[3]);
        let outcome = Effect::Outcome {
            cpu: 1,
            event: 3,
            status: 0x81,
        };
        assert_eq!(cpus.write(OUTCOME_STATUS, &[0x81]), outcome);
        for (offset, bytes) in [(4, 1), (u64::MAX, 1), (0, 2), (1, 4)] {
            cpus.write(offset, &[0xff; 4][..bytes]);
            cpus.read(offset, &mut [0; 4][..bytes]);
        }
        assert_eq!((cpus.want(0).plug.len(), cpus.max()), (0, 2));
    }

    #[test]
    fn a_state_of_another_machine_is_refused() {
        let cpus = Cpus::new(2, 3);
        assert_eq!(Cpus::restore(&cpus, 3), Some(cpus.clone()));
        assert_eq!(Cpus::restore(&cpus, 4), None);
        assert_eq!(Cpus::restore(&Cpus::new(0, 3), 3), None);
    }

    #[test]
    fn the_most_that_can_be_counted_come_and_go() {
        let mut cpus = Cpus::new(1, u8::MAX);
        assert_eq!(cpus.want(u8::MAX).plug.len(), 254);
        (1..u8::MAX).for_each(|index| cpus.plug(index));
        assert_eq!(cpus.present(), u8::MAX);
        assert!(cpus.want(1).notify);
    }
}
