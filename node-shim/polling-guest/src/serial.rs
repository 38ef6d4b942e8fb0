//! The first serial port, polled.

use core::fmt::{self, Write};

use crate::{LINE_BYTES, port};

const COM1: u16 = 0x3f8;
/// Line status: data ready, transmitter empty.
const STATUS: u16 = COM1 + 5;
const READY: u8 = 1;

struct Serial;

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // No monitor is known whose transmitter is ever full: asking would be an exit for each byte.
        text.bytes().for_each(|byte| port::write8(COM1, byte));
        Ok(())
    }
}

/// Says a line.
pub(crate) fn put_line(line: fmt::Arguments<'_>) {
    // It cannot fail.
    let _ = Serial.write_fmt(line);
    port::write8(COM1, b'\n');
}

/// Waits for a line; what of it does not fit is dropped.
pub(crate) fn line(buffer: &mut [u8; LINE_BYTES]) -> &str {
    let mut length = 0;
    loop {
        while port::read8(STATUS) & READY == 0 {
            core::hint::spin_loop();
        }
        match port::read8(COM1) {
            b'\n' => return core::str::from_utf8(&buffer[..length]).unwrap_or(""),
            byte if length < LINE_BYTES => {
                buffer[length] = byte;
                length += 1;
            }
            _ => {}
        }
    }
}
