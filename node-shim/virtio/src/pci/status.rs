//! The device status state machine (virtio 1.2, sections 2.1 and 3.1), as a pure function.
//!
//! ```text
//! 0 --ACKNOWLEDGE, DRIVER--> negotiating --FEATURES_OK--> configuring --DRIVER_OK--> live
//! ^                                                                                    |
//! |________________________________ write of 0: reset _________________________________| DEVICE_NEEDS_RESET, FAILED
//! ```

use bitflags::bitflags;

bitflags! {
    /// Device status bits (virtio 1.2, 2.1).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Status: u8 {
        /// The guest has noticed the device.
        const ACKNOWLEDGE = 1;
        /// The guest has a driver for it.
        const DRIVER = 2;
        /// The driver is ready.
        const DRIVER_OK = 4;
        /// Features are agreed.
        const FEATURES_OK = 8;
        /// The device has given up until it is reset.
        const DEVICE_NEEDS_RESET = 64;
        /// The driver has given up.
        const FAILED = 128;
    }
}

/// What a write to the status register asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// Reset the device.
    Reset,
    /// Not a legal step: nothing changes, and the driver sees that when it reads the register back.
    Refuse,
    /// The new status.
    Set(Status),
    /// The new status, if the device can be activated.
    Activate(Status),
}

/// Decides a write of `written` while the status is `current`; `features_acceptable` says whether the driver's feature bits are.
pub fn transition(current: Status, written: u8, features_acceptable: bool) -> Transition {
    if written == 0 {
        return Transition::Reset;
    }
    let written = Status::from_bits_truncate(written);
    // The device alone sets DEVICE_NEEDS_RESET, and drivers echo it.
    let asked = written - Status::DEVICE_NEEDS_RESET;
    let kept = current - Status::DEVICE_NEEDS_RESET;
    if !asked.contains(kept) || asked.is_empty() {
        return Transition::Refuse;
    }
    let mut added = asked - kept;
    if added.contains(Status::FEATURES_OK) && !(asked.contains(Status::DRIVER) && features_acceptable) {
        // "The device MUST NOT offer FEATURES_OK": the bit stays clear and the driver notices (3.1.1 step 6).
        added -= Status::FEATURES_OK;
    }
    if added.contains(Status::DRIVER_OK) {
        if !current.contains(Status::FEATURES_OK) || current.contains(Status::DEVICE_NEEDS_RESET) {
            return Transition::Refuse;
        }
        return Transition::Activate(current | added);
    }
    Transition::Set(current | added)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transitions() {
        const A: u8 = 1;
        const D: u8 = 2;
        const OK: u8 = 4;
        const F: u8 = 8;
        const R: u8 = 64;
        const X: u8 = 128;
        let set = |bits| Transition::Set(Status::from_bits_retain(bits));
        let activate = |bits| Transition::Activate(Status::from_bits_retain(bits));
        for (current, written, acceptable, expected) in [
            (0, A, true, set(A)),
            (A, A | D, true, set(A | D)),
            (A | D, A | D | F, true, set(A | D | F)),
            (A | D, A | D | F, false, set(A | D)),
            (A, A | F, true, set(A)),
            (A | D | F, A | D | F | OK, true, activate(A | D | F | OK)),
            (A | D | F, A | D | F | OK, false, activate(A | D | F | OK)),
            (A | D, A | D | OK, true, Transition::Refuse),
            (A | D, A | D | F | OK, true, Transition::Refuse),
            (A | D | F | OK, A | D | F | OK, true, set(A | D | F | OK)),
            (A | D | F | OK, A | D, true, Transition::Refuse),
            (A | D | F | OK, 0, true, Transition::Reset),
            (A | D | F | OK | R, A | D | F | OK, true, set(A | D | F | OK | R)),
            (
                A | D | F | OK | R,
                A | D | F | OK | R | X,
                true,
                set(A | D | F | OK | R | X),
            ),
            (A | D | F | R, A | D | F | OK, true, Transition::Refuse),
            (0, R, true, Transition::Refuse),
            (0, 0x30, true, Transition::Refuse),
            (0, 0, true, Transition::Reset),
        ] {
            let result = transition(Status::from_bits_retain(current), written, acceptable);
            assert_eq!(result, expected, "{current:#x} written {written:#x}");
        }
    }
}
