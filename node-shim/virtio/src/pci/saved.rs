//! Pausing, saving and restoring a function (see [`crate::state`]).

use serde::{Deserialize, Serialize};

use super::common::CommonState;
use super::msix::MsixState;
use super::{Phase, Slot, VirtioPci};
use crate::device::Event;
use crate::state::{RestoreError, SavedDevice};

/// A function and its device, as they are saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioPciState {
    name: String,
    configuration: Vec<u8>,
    common: CommonState,
    isr: u8,
    msix: MsixState,
    live: bool,
    device: SavedDevice,
}

impl VirtioPci {
    /// Brings the device to rest: nothing is in flight afterwards, and no event reaches it until [`Self::resume`]. The vCPUs have been
    /// stopped, so no register changes either.
    pub fn pause(&self) {
        let mut slot = self.device();
        if slot.paused {
            return;
        }
        slot.paused = true;
        if slot.phase == Phase::Running
            && let Err(error) = slot.device.pause()
        {
            self.give_up(&mut slot, &error);
        }
    }

    /// Lets the device go on, and has it look at everything that may have happened meanwhile. On the event loop's thread.
    pub fn resume(&self) {
        let mut slot = self.device();
        if !std::mem::take(&mut slot.paused) || slot.phase != Phase::Running {
            return;
        }
        slot.device.resume();
        self.kick_all();
        for index in 0..slot.device.host_sources().len() {
            if slot.phase == Phase::Running
                && let Err(error) = slot.device.handle(Event::Host(index))
            {
                self.give_up(&mut slot, &error);
            }
        }
    }

    /// Brings what the device holds back of its contents to where they are kept. It is paused.
    ///
    /// # Errors
    /// Of the host's storage.
    pub fn flush(&self) -> std::io::Result<()> {
        self.device().device.flush()
    }

    /// The state of the function and its device. Both are paused.
    pub fn save(&self) -> VirtioPciState {
        let slot = self.device();
        let function = self.function();
        VirtioPciState {
            name: self.name.clone(),
            configuration: function.space.bytes().to_vec(),
            common: function.common.save(),
            isr: function.isr,
            msix: self.msix.save(),
            live: slot.phase == Phase::Running,
            device: slot.device.save(),
        }
    }

    /// Takes over a saved state. The function is as [`Self::new`] made it, guest memory is that of the saved one, and vCPUs do not run.
    /// Afterwards it is paused: [`Self::resume`] lets it go on.
    ///
    /// # Errors
    /// When the state is not one of this function. It is then of no further use.
    pub fn restore(&self, state: &VirtioPciState) -> Result<(), RestoreError> {
        let VirtioPciState {
            name,
            configuration,
            common,
            isr,
            msix,
            live,
            device,
        } = state;
        if *name != self.name {
            return Err(RestoreError::differs(&self.name, "name", &name, &self.name));
        }
        let invalid = |what: String| RestoreError::invalid(&self.name, what);
        let mut slot = self.device();
        if slot.phase != Phase::Idle {
            return Err(invalid("its driver is there already".to_owned()));
        }
        slot.paused = true;
        slot.device.restore(&device.device)?;
        {
            let mut function = self.function();
            if !function.space.restore(configuration) {
                return Err(invalid("the PCI configuration is another function's".to_owned()));
            }
            function.common.restore(common).map_err(invalid)?;
            function.isr = *isr;
        }
        if !self.msix.restore(msix) {
            return Err(invalid("it has another number of vectors".to_owned()));
        }
        if *live {
            self.restore_live(&mut slot, device)?;
        } else if common.is_live() {
            // It had given up on its driver, which has been told.
            slot.phase = Phase::Broken;
        }
        Ok(())
    }

    fn restore_live(&self, slot: &mut Slot, saved: &SavedDevice) -> Result<(), RestoreError> {
        let activated = self.activate(slot, &saved.queues).and_then(|()| slot.device.pause());
        if let Err(source) = activated {
            self.stop(slot);
            slot.phase = Phase::Broken;
            return Err(RestoreError::Activate {
                device: self.name.clone(),
                source,
            });
        }
        // An interrupt that was on its way when the VM was saved is raised again: one too many does no harm.
        let queues = self.function().common.live_vectors();
        for vector in queues {
            // An eventfd that cannot be written is full, so the interrupt is on its way already.
            let _ = crate::transport::Interrupts::trigger(self.msix.as_ref(), vector);
        }
        Ok(())
    }
}
