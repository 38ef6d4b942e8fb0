//! ACPI fixed hardware: the power button, S5, and the system control interrupt (ACPI 6.4, 4.8.3); and the keyboard controller's
//! reset line, which old software uses.

use std::sync::{Arc, Mutex};

use crate::bus::BusDevice;
use crate::kvm::Vm;
use crate::layout;
use crate::lifecycle::Event;
use crate::mailbox::Mailbox;
use crate::snapshot::state::PowerState;
use node_shim_virtio::lock::lock;

/// PM1 status and enable: power button (table 4.11).
const POWER_BUTTON: u16 = 1 << 8;
/// PM1 control: SCI enabled, which is to say that ACPI is on (table 4.13).
const SCI_ENABLED: u16 = 1;
/// PM1 control: sleep type.
const SLEEP_TYPE_SHIFT: u16 = 10;
/// PM1 control: enter the sleep type. Write-only.
const SLEEP_ENABLE: u16 = 1 << 13;
/// Keyboard controller command: pulse the processor's reset line.
const KEYBOARD_RESET: u8 = 0xfe;

/// The `PM1a` registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Registers {
    status: u16,
    enable: u16,
    control: u16,
}

/// What a write means for the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    None,
    PowerOff,
}

impl Registers {
    /// The byte at an offset from the start of the block.
    fn byte(self, offset: u64) -> u8 {
        let [status, enable, control] = [self.status, self.enable, self.control | SCI_ENABLED].map(u16::to_le_bytes);
        let bytes = [status[0], status[1], enable[0], enable[1], control[0], control[1], 0, 0];
        usize::try_from(offset)
            .ok()
            .and_then(|offset| bytes.get(offset))
            .copied()
            .unwrap_or(0)
    }

    /// Writes a byte.
    fn set_byte(&mut self, offset: u64, value: u8) -> Effect {
        let high = offset % 2 == 1;
        let shifted = if high { u16::from(value) << 8 } else { u16::from(value) };
        let mask = if high { 0xff00 } else { 0x00ff };
        match offset / 2 {
            // Status bits are cleared by writing ones.
            0 => self.status &= !shifted,
            1 => self.enable = (self.enable & !mask) | shifted,
            2 => {
                self.control = ((self.control & !mask) | shifted) & !SLEEP_ENABLE;
                let sleep_type = self.control >> SLEEP_TYPE_SHIFT & 7;
                if shifted & SLEEP_ENABLE != 0 && sleep_type == u16::from(layout::S5_SLEEP_TYPE) {
                    return Effect::PowerOff;
                }
            }
            _ => {}
        }
        Effect::None
    }

    /// Level of the system control interrupt.
    const fn interrupt(self) -> bool {
        self.status & self.enable != 0
    }
}

/// The `PM1a` blocks on the port bus.
pub(crate) struct PowerManagement {
    registers: Mutex<Registers>,
    vm: Arc<Vm>,
    mailbox: Arc<Mailbox>,
}

impl PowerManagement {
    /// Powered on, nothing pressed.
    pub(crate) fn new(vm: Arc<Vm>, mailbox: Arc<Mailbox>) -> Self {
        Self {
            registers: Mutex::default(),
            vm,
            mailbox,
        }
    }

    /// The registers, to be saved.
    pub(crate) fn save(&self) -> PowerState {
        let Registers {
            status,
            enable,
            control,
        } = *lock(&self.registers);
        PowerState {
            status,
            enable,
            control,
        }
    }

    /// Takes over saved registers. The level of the interrupt is in the saved IO APIC.
    pub(crate) fn restore(&self, state: PowerState) {
        let PowerState {
            status,
            enable,
            control,
        } = state;
        *lock(&self.registers) = Registers {
            status,
            enable,
            control,
        };
    }

    /// Presses the power button.
    ///
    /// # Errors
    /// When KVM does not raise the interrupt.
    pub(crate) fn press_power_button(&self) -> std::io::Result<()> {
        let mut registers = lock(&self.registers);
        registers.status |= POWER_BUTTON;
        self.vm.set_line(layout::SCI_IRQ, registers.interrupt())
    }
}

impl BusDevice for PowerManagement {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let registers = *lock(&self.registers);
        for (byte, offset) in data.iter_mut().zip(offset..) {
            *byte = registers.byte(offset);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut registers = lock(&self.registers);
        let before = registers.interrupt();
        for (byte, offset) in data.iter().zip(offset..) {
            match registers.set_byte(offset, *byte) {
                Effect::None => {}
                Effect::PowerOff => self.mailbox.send(Event::GuestPowerOff),
            }
        }
        let after = registers.interrupt();
        if before != after
            && let Err(error) = self.vm.set_line(layout::SCI_IRQ, after)
        {
            self.mailbox
                .send(Event::Crashed(format!("failed to set the ACPI interrupt: {error}")));
        }
    }
}

/// The keyboard controller's command port: it is there only for its reset command.
pub(crate) struct KeyboardController {
    mailbox: Arc<Mailbox>,
}

impl KeyboardController {
    /// A controller without a keyboard.
    pub(crate) fn new(mailbox: Arc<Mailbox>) -> Self {
        Self { mailbox }
    }
}

impl BusDevice for KeyboardController {
    /// Status: no output, ready for commands.
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if data == [KEYBOARD_RESET] {
            self.mailbox.send(Event::GuestReset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_button_interrupts_once_it_is_enabled_and_until_it_is_cleared() {
        let mut registers = Registers::default();
        registers.status |= POWER_BUTTON;
        assert!(!registers.interrupt());
        registers.set_byte(3, 1);
        assert!(registers.interrupt());
        assert_eq!((registers.byte(0), registers.byte(1), registers.byte(3)), (0, 1, 1));
        registers.set_byte(1, 1);
        assert!(!registers.interrupt());
    }

    #[test]
    fn only_s5_powers_off() {
        for sleep_type in 0..8_u8 {
            let mut registers = Registers::default();
            let effect = registers.set_byte(5, sleep_type << 2 | 1 << 5);
            let expected = if sleep_type == 5 {
                Effect::PowerOff
            } else {
                Effect::None
            };
            assert_eq!(effect, expected, "{sleep_type}");
            assert_eq!(registers.byte(5) & 1 << 5, 0, "SLP_EN reads as zero");
        }
        let mut registers = Registers::default();
        assert_eq!(registers.set_byte(5, 5 << 2), Effect::None, "without SLP_EN");
    }

    #[test]
    fn acpi_is_always_on_and_nothing_is_beyond_the_registers() {
        let registers = Registers::default();
        assert_eq!(registers.byte(4), 1);
        for offset in [6, 7, 8, u64::MAX] {
            assert_eq!(registers.byte(offset), 0);
        }
    }
}
