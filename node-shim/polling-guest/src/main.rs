//! A guest without an operating system. It is loaded as a PVH kernel, drops to CPL3, where `KVM_PVM` runs it at full speed, and drives
//! virtio devices by polling: nothing interrupts it. It is asked through the first serial port, a line for a line:
//!
//! ```text
//! block OPERATION BYTES DEPTH COUNT   read|write at random places, or readseq|writeseq one after the other:
//!                                     `block COUNT KICKS`, or `error WHAT`
//! net send BYTES COUNT                frames from the first interface, all alike: `sent COUNT KICKS`
//! net receive COUNT                   waits for so many frames: `received COUNT BYTES`
//! hostile TYPE SEED COUNT               breaks a virtio device's rules in that many chains: `survived COUNT`
//! touch MIB                           writes to each page of that many MiB: `touched`
//! ping                                `pong`
//! ```
//!
//! Its first instructions say `!`, and it says `up` in a line when it can be asked. Nothing here trusts the device: a status, a length or an
//! index that cannot be is an error line, because the guest is a test of monitors as much as a load.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "halves of addresses are meant to be cut, and all else was compared with a bound"
)]
#![no_std]
#![no_main]

use core::arch::global_asm;
use core::panic::PanicInfo;

mod block;
mod hostile;
mod memory;
mod net;
mod pci;
mod port;
mod queue;
mod serial;
mod virtio;

global_asm!(include_str!("start.s"));

/// Longest command.
const LINE_BYTES: usize = 128;

/// Where `start.s` goes at CPL3.
#[unsafe(no_mangle)]
extern "C" fn polling_guest() -> ! {
    serial::put_line(format_args!("up"));
    let mut line = [0; LINE_BYTES];
    let mut disk = None;
    let mut interface = None;
    loop {
        let command = serial::line(&mut line);
        let mut words = command.split(' ').filter(|word| !word.is_empty());
        let answer = match words.next() {
            Some("ping") => {
                serial::put_line(format_args!("pong"));
                Ok(())
            }
            Some("touch") => touch(&mut words),
            Some("hostile") => {
                // What it leaves is no disk and no interface that could be used.
                (disk, interface) = (None, None);
                hostile::command(&mut words)
            }
            Some("block") => block::command(&mut disk, &mut words),
            Some("net") => net::command(&mut interface, &mut words),
            _ => Err("no such command"),
        };
        if let Err(what) = answer {
            serial::put_line(format_args!("error {what}"));
        }
    }
}

/// Writes to pages of the buffers, and beyond them: the guest is told how much memory it has.
fn touch<'a>(words: &mut impl Iterator<Item = &'a str>) -> Result<(), &'static str> {
    let pages = u64::from(number(words)?.min(2048)) << 8;
    (0..pages).for_each(|page| memory::write(memory::DATA + (page << 12), page + 1));
    serial::put_line(format_args!("touched"));
    Ok(())
}

/// The next word as a number.
fn number<'a>(words: &mut impl Iterator<Item = &'a str>) -> Result<u32, &'static str> {
    let word = words.next().ok_or("a number is missing")?;
    word.parse().map_err(|_| "not a number")
}

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    serial::put_line(format_args!("panic {info}"));
    loop {
        core::hint::spin_loop();
    }
}
