//! pvpanic: a port that a guest's kernel writes to when it panics (QEMU docs/specs/pvpanic.rst).

/// What a guest can say; a read of the port says the same, to tell the driver what is understood.
pub const SUPPORTED: u8 = PANICKED | CRASH_LOADED;
/// The kernel panicked and does nothing more.
const PANICKED: u8 = 1;
/// The kernel panicked and starts its crash kernel, which will reset the machine when it is done.
const CRASH_LOADED: u8 = 2;

/// What a guest has said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// Nothing that is known.
    Nothing,
    /// It panicked: this is its end.
    Panicked,
    /// It panicked and goes on with its crash kernel.
    CrashLoaded,
}

/// What a byte written to the port says.
pub const fn said(value: u8) -> Said {
    if value & CRASH_LOADED != 0 {
        Said::CrashLoaded
    } else if value & PANICKED != 0 {
        Said::Panicked
    } else {
        Said::Nothing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_with_a_crash_kernel_goes_on() {
        for (value, expected) in [
            (0, Said::Nothing),
            (1, Said::Panicked),
            (2, Said::CrashLoaded),
            (3, Said::CrashLoaded),
            (4, Said::Nothing),
        ] {
            assert_eq!(said(value), expected, "{value}");
        }
    }
}
