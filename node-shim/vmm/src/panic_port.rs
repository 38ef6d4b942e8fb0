//! The port that a guest's kernel panics on.

use std::sync::Arc;

use node_shim_chips::panic_port::{SUPPORTED, Said, said};

use crate::bus::BusDevice;
use crate::lifecycle::Event;
use crate::log;
use crate::mailbox::Mailbox;

/// pvpanic.
pub(crate) struct PanicPort {
    mailbox: Arc<Mailbox>,
}

impl PanicPort {
    /// A port that tells the thread that decides.
    pub(crate) fn new(mailbox: Arc<Mailbox>) -> Self {
        Self { mailbox }
    }
}

impl BusDevice for PanicPort {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(SUPPORTED);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        let [value] = *data else { return };
        match said(value) {
            Said::Nothing => {}
            Said::Panicked => self.mailbox.send(Event::Panicked),
            Said::CrashLoaded => log::guest(format_args!("the guest's kernel panicked and starts its crash kernel")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_panic_without_a_crash_kernel_is_the_end() {
        let mailbox = Arc::new(Mailbox::new().unwrap());
        let port = PanicPort::new(Arc::clone(&mailbox));
        for value in [&[0][..], &[2], &[3], &[1, 0]] {
            port.write(0, value);
            assert!(mailbox.take().is_empty(), "{value:?}");
        }
        port.write(0, &[1]);
        assert_eq!(mailbox.take(), [Event::Panicked]);
        let mut data = [0];
        port.read(0, &mut data);
        assert_eq!(data, [3]);
    }
}
