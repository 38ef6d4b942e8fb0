//! Connects a device that its driver has activated: doorbells become ioeventfds, and they and the host's descriptors join the event
//! loop.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::{Arc, Mutex};

use node_shim_virtio::device::{DeviceError, HostSource};
use node_shim_virtio::transport::{Activator, Doorbell};
use rustix::event::epoll::EventFlags;
use vmm_sys_util::eventfd::EventFd;

use crate::kvm::Vm;
use crate::lifecycle::Event;
use crate::log;
use crate::mailbox::Mailbox;
use crate::poll::{Poll, Source, Token};
use node_shim_virtio::lock::lock;

/// What one function has in KVM and in the event loop.
#[derive(Default)]
struct Connected {
    doorbells: Vec<(Arc<EventFd>, u64, Option<Token>)>,
    host: Vec<(RawFd, Token)>,
}

/// The activator of one PCI function.
pub(crate) struct DeviceActivator {
    function: usize,
    vm: Arc<Vm>,
    poll: Arc<Poll>,
    mailbox: Arc<Mailbox>,
    connected: Mutex<Connected>,
}

impl DeviceActivator {
    /// For the function with this index.
    pub(crate) fn new(function: usize, vm: Arc<Vm>, poll: Arc<Poll>, mailbox: Arc<Mailbox>) -> Self {
        Self {
            function,
            vm,
            poll,
            mailbox,
            connected: Mutex::default(),
        }
    }

    fn add_doorbell(&self, connected: &mut Connected, doorbell: &Doorbell<'_>) -> io::Result<()> {
        let kick = Arc::new(doorbell.kick.try_clone()?);
        self.vm.add_doorbell(&kick, doorbell.address)?;
        connected.doorbells.push((Arc::clone(&kick), doorbell.address, None));
        if !doorbell.polled {
            return Ok(());
        }
        let source = Source::Doorbell {
            function: self.function,
            queue: doorbell.queue,
            kick: Arc::clone(&kick),
        };
        let token = self.poll.add(borrow(kick.as_raw_fd()), EventFlags::IN, source)?;
        if let Some((_, _, slot)) = connected.doorbells.last_mut() {
            *slot = Some(token);
        }
        Ok(())
    }
}

/// Borrows a descriptor whose owner keeps it open for as long as it is connected.
fn borrow<'a>(descriptor: RawFd) -> BorrowedFd<'a> {
    // SAFETY: an eventfd in `Connected`, or a host source that its device keeps open until `disconnect` has returned.
    unsafe { BorrowedFd::borrow_raw(descriptor) }
}

fn flags(source: HostSource) -> EventFlags {
    let mut flags = EventFlags::ET;
    flags.set(EventFlags::IN, source.readable);
    flags.set(EventFlags::OUT, source.writable);
    flags
}

impl Activator for DeviceActivator {
    fn connect(&self, doorbells: &[Doorbell<'_>], host: &[HostSource]) -> io::Result<()> {
        let mut connected = lock(&self.connected);
        for doorbell in doorbells {
            self.add_doorbell(&mut connected, doorbell)?;
        }
        for (index, source) in host.iter().enumerate() {
            let event = Source::Host {
                function: self.function,
                index,
            };
            let token = self.poll.add(borrow(source.fd), flags(*source), event)?;
            connected.host.push((source.fd, token));
        }
        self.mailbox.send(Event::DriverReady);
        Ok(())
    }

    fn disconnect(&self) {
        let Connected { doorbells, host } = std::mem::take(&mut *lock(&self.connected));
        for (kick, address, token) in doorbells {
            if let Err(error) = self.vm.remove_doorbell(&kick, address) {
                log::line(format_args!("failed to remove the doorbell at {address:#x}: {error}"));
            }
            if let Some(token) = token {
                self.poll.remove(borrow(kick.as_raw_fd()), token);
            }
        }
        for (descriptor, token) in host {
            self.poll.remove(borrow(descriptor), token);
        }
    }

    fn failed(&self, device: &str, error: &DeviceError) {
        log::line(format_args!("{device} waits for a reset by its driver: {error}"));
    }
}
