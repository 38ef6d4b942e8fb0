//! Where a vCPU waits that the guest has ejected: KVM never gives a vCPU up, so its thread stays outside of the guest until it is plugged again.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex};

use super::gate::Gate;
use node_shim_virtio::lock::lock;

/// In the guest, or on the way there.
const RUNNING: u8 = 0;
/// To stay out of the guest.
const PARKED: u8 = 1;
/// Plugged again: its thread brings it back to the state in which it waits for INIT.
const RELEASED: u8 = 2;

/// See the [module](self).
#[derive(Default)]
pub(crate) struct Parking {
    state: AtomicU8,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Parking {
    /// Of a vCPU that a snapshot has as ejected.
    pub(crate) fn parked() -> Self {
        Self {
            state: AtomicU8::new(PARKED),
            ..Self::default()
        }
    }

    /// Keeps the vCPU out, as soon as it comes out.
    pub(crate) fn park(&self) {
        self.set(PARKED);
    }

    /// Plugs the vCPU again.
    pub(crate) fn release(&self) {
        self.set(RELEASED);
    }

    /// Wakes the thread, to look at the gate.
    pub(crate) fn wake(&self) {
        drop(lock(&self.lock));
        self.changed.notify_all();
    }

    /// Whether the vCPU has to come out of the guest.
    pub(super) fn is_wanted(&self) -> bool {
        self.state.load(Ordering::Acquire) != RUNNING
    }

    /// Waits while the vCPU is parked and need not end. `true` when it was plugged again.
    pub(super) fn wait(&self, gate: &Gate) -> bool {
        if self.state.load(Ordering::Acquire) == PARKED {
            let guard = lock(&self.lock);
            let parked = |(): &mut ()| self.state.load(Ordering::Acquire) == PARKED && !gate.is_stopped();
            // A panic elsewhere would have ended the process.
            drop(self.changed.wait_while(guard, parked));
        }
        self.state
            .compare_exchange(RELEASED, RUNNING, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    fn set(&self, state: u8) {
        self.state.store(state, Ordering::Release);
        self.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    #[test]
    fn a_parked_vcpu_waits_until_it_is_plugged_again_or_stops() {
        let (parking, gate) = (Arc::new(Parking::default()), Arc::new(Gate::new()));
        assert!(!parking.wait(&gate) && !parking.is_wanted(), "it runs");
        for stopping in [false, true] {
            parking.park();
            assert!(parking.is_wanted());
            let (parked, stopped) = (Arc::clone(&parking), Arc::clone(&gate));
            let thread = thread::spawn(move || parked.wait(&stopped));
            if stopping {
                gate.stop();
                parking.wake();
            } else {
                parking.release();
            }
            assert_eq!(thread.join().unwrap(), !stopping);
        }
        parking.release();
        assert!(parking.wait(&gate) && !parking.wait(&gate), "reset once");
    }
}
