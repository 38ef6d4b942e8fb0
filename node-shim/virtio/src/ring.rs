//! A virtqueue from its device's side: chains come out checked, completions go back, and the driver is interrupted once for each batch.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use crate::chain::Chain;
use crate::device::{Activation, DeviceError, FEATURE_INDIRECT_DESC, Memory};
use crate::state::QueuePosition;
use crate::transport::Interrupts;

/// `VIRTQ_AVAIL_F_NO_INTERRUPT` (virtio 1.2, 2.7.7).
const AVAILABLE_NO_INTERRUPT: u16 = 1;

/// What became of a chain that [`Ring::drain`] handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It is done, with so many bytes written.
    Done(u32),
    /// It must wait: it goes back, and nothing more is taken.
    Stall,
}

/// A live virtqueue.
pub struct Ring {
    device: String,
    index: u16,
    queue: Queue,
    kick: EventFd,
    vector: Option<u16>,
    memory: Arc<Memory>,
    interrupts: Arc<dyn Interrupts>,
    indirect: bool,
    /// Something was returned since the driver was last interrupted.
    unannounced: bool,
}

impl Ring {
    /// Takes queue `index` out of an activation.
    ///
    /// # Errors
    /// When the driver did not enable it.
    pub fn take(activation: &mut Activation, index: u16, device: &str) -> Result<Self, DeviceError> {
        let active = activation.queues.get_mut(usize::from(index)).and_then(Option::take);
        let active = active.ok_or_else(|| DeviceError::Driver {
            device: device.to_owned(),
            what: format!("it is ready without queue {index}"),
        })?;
        Ok(Self {
            device: device.to_owned(),
            index,
            queue: active.queue,
            kick: active.kick,
            vector: active.vector,
            memory: activation.memory.clone(),
            interrupts: activation.interrupts.clone(),
            indirect: activation.features & FEATURE_INDIRECT_DESC != 0,
            unannounced: false,
        })
    }

    /// Guest memory.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Number of entries.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Where the queue stands, as [`crate::device::VirtioDevice::save`] gives it.
    pub fn position(&self) -> QueuePosition {
        QueuePosition {
            next_available: self.queue.next_avail(),
            next_used: self.queue.next_used(),
        }
    }

    /// Takes the next available chain, if there is one.
    ///
    /// # Errors
    /// When the ring or the chain is broken.
    pub fn next(&mut self, chain: &mut Chain) -> Result<bool, DeviceError> {
        let head = {
            let available = self.queue.iter(self.memory.as_ref());
            let mut available = available.map_err(|error| broken(&self.device, self.index, &error))?;
            let Some(next) = available.next() else { return Ok(false) };
            next.head_index()
        };
        let table = GuestAddress(self.queue.desc_table());
        let read = chain.read(&self.memory, table, self.queue.size(), head, self.indirect);
        read.map_err(|error| self.broken(&error))?;
        Ok(true)
    }

    /// Whether the driver has made a chain available, as far as can be seen without asking it for a kick.
    ///
    /// # Errors
    /// When the available ring cannot be read.
    pub fn has_next(&self) -> Result<bool, DeviceError> {
        let available = self.queue.avail_idx(self.memory.as_ref(), Ordering::Acquire);
        let available = available.map_err(|error| self.broken(&error))?;
        Ok(available.0 != self.queue.next_avail())
    }

    /// Puts the last `count` chains back, as if [`Self::next`] had not taken them.
    pub fn put_back(&mut self, count: u16) {
        self.queue.set_next_avail(self.queue.next_avail().wrapping_sub(count));
    }

    /// Returns a chain with `written` bytes in its writable buffers.
    ///
    /// # Errors
    /// When the used ring cannot be written.
    pub fn complete(&mut self, head: u16, written: u32) -> Result<(), DeviceError> {
        self.unannounced = true;
        self.queue
            .add_used(self.memory.as_ref(), head, written)
            .map_err(|error| self.broken(&error))
    }

    /// Interrupts the driver if something was returned and it wants to know.
    ///
    /// # Errors
    /// When the rings cannot be read or the interrupt cannot be raised.
    pub fn announce(&mut self) -> Result<(), DeviceError> {
        if !std::mem::take(&mut self.unannounced) || !self.wants_interrupt()? {
            return Ok(());
        }
        self.interrupts.raise(self.vector, &self.device)
    }

    /// Asks the driver for a kick with its next chain. `true` when there is one already, which may come without a kick.
    ///
    /// # Errors
    /// When the rings cannot be read or written.
    pub fn enable_kicks(&mut self) -> Result<bool, DeviceError> {
        self.queue
            .enable_notification(self.memory.as_ref())
            .map_err(|error| self.broken(&error))
    }

    /// Tells the driver that kicks are not needed for now.
    ///
    /// # Errors
    /// When the rings cannot be written.
    pub fn disable_kicks(&mut self) -> Result<(), DeviceError> {
        self.queue
            .disable_notification(self.memory.as_ref())
            .map_err(|error| self.broken(&error))
    }

    /// Another end of what the driver kicks, for a device that waits for it itself.
    ///
    /// # Errors
    /// When the host has no descriptor left.
    pub fn kick(&self) -> std::io::Result<EventFd> {
        self.kick.try_clone()
    }

    /// Has the event loop call again, after everybody else had a turn.
    pub fn kick_self(&self) {
        // Full means that it will.
        let _ = self.kick.write(1);
    }

    /// Handles available chains with `process`, at most as many as the queue has entries, so that no driver keeps the event loop to
    /// itself. One interrupt at the end. `false` when `process` stalled.
    ///
    /// # Errors
    /// When the driver broke the ring, or `process` fails.
    pub fn drain(
        &mut self,
        chain: &mut Chain,
        mut process: impl FnMut(&Memory, &Chain) -> Result<Step, DeviceError>,
    ) -> Result<bool, DeviceError> {
        let outcome = self.drain_batch(chain, &mut process);
        self.announce()?;
        outcome
    }

    fn drain_batch(
        &mut self,
        chain: &mut Chain,
        process: &mut impl FnMut(&Memory, &Chain) -> Result<Step, DeviceError>,
    ) -> Result<bool, DeviceError> {
        let mut budget = self.queue.size();
        self.disable_kicks()?;
        while budget > 0 {
            if self.next(chain)? {
                budget -= 1;
                match process(&self.memory, chain)? {
                    Step::Done(written) => self.complete(chain.head(), written)?,
                    Step::Stall => {
                        self.put_back(1);
                        return Ok(false);
                    }
                }
            } else if !self.enable_kicks()? {
                return Ok(true);
            } else {
                self.disable_kicks()?;
            }
        }
        self.kick_self();
        Ok(true)
    }

    /// virtio-queue knows `EVENT_IDX` only; the flag is what a driver without it uses.
    fn wants_interrupt(&mut self) -> Result<bool, DeviceError> {
        let wanted = self
            .queue
            .needs_notification(self.memory.as_ref())
            .map_err(|error| self.broken(&error))?;
        if !wanted || self.queue.event_idx_enabled() {
            return Ok(wanted);
        }
        let flags: u16 = self
            .memory
            .read_obj(GuestAddress(self.queue.avail_ring()))
            .map_err(|_| self.broken(&virtio_queue::Error::QueueNotReady))?;
        Ok(u16::from_le(flags) & AVAILABLE_NO_INTERRUPT == 0)
    }

    fn broken(&self, what: &dyn std::fmt::Display) -> DeviceError {
        broken(&self.device, self.index, what)
    }
}

fn broken(device: &str, index: u16, what: &dyn std::fmt::Display) -> DeviceError {
    DeviceError::Driver {
        device: device.to_owned(),
        what: format!("queue {index}: {what}"),
    }
}
