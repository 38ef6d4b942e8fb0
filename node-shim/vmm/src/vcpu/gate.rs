//! What lets vCPUs run, brings them to rest and ends them, all together.
//!
//! ```text
//! main thread                      vCPU thread
//! close ------------------------>  out of the guest, access finished, at rest
//! await_rest <-------------------  (all of them)
//! open ------------------------->  into the guest
//! stop ------------------------->  ends
//! ```

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use node_shim_virtio::lock::lock;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Run,
    Rest,
    Stop,
}

struct State {
    wanted: Wanted,
    /// vCPUs that may be in the guest.
    running: usize,
}

/// See the [module](self).
pub(crate) struct Gate {
    /// Whether vCPUs shall leave the guest: what they look at before each entry.
    closed: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

impl Gate {
    /// A closed gate, with nobody inside.
    pub(crate) fn new() -> Self {
        Self {
            closed: AtomicBool::new(true),
            state: Mutex::new(State {
                wanted: Wanted::Rest,
                running: 0,
            }),
            changed: Condvar::new(),
        }
    }

    /// Whether the guest may be entered.
    pub(crate) fn is_open(&self) -> bool {
        !self.closed.load(Ordering::Acquire)
    }

    /// Whether vCPUs shall end.
    pub(crate) fn is_stopped(&self) -> bool {
        lock(&self.state).wanted == Wanted::Stop
    }

    /// Lets vCPUs run.
    pub(crate) fn open(&self) {
        self.set(Wanted::Run);
    }

    /// Asks vCPUs to come to rest. They have to be kicked out of the guest afterwards.
    pub(crate) fn close(&self) {
        self.set(Wanted::Rest);
    }

    /// Asks vCPUs to end. They have to be kicked out of the guest afterwards.
    pub(crate) fn stop(&self) {
        self.set(Wanted::Stop);
    }

    fn set(&self, wanted: Wanted) {
        let mut state = lock(&self.state);
        state.wanted = wanted;
        self.closed.store(wanted != Wanted::Run, Ordering::Release);
        drop(state);
        self.changed.notify_all();
    }

    /// Waits until no vCPU is in the guest.
    pub(crate) fn await_rest(&self) {
        let state = lock(&self.state);
        let rested = self.changed.wait_while(state, |state| state.running > 0);
        drop(rested.unwrap_or_else(PoisonError::into_inner));
    }

    /// A vCPU waits until it may run: `None` when it shall end.
    pub(crate) fn enter(&self) -> Option<Inside<'_>> {
        let state = lock(&self.state);
        let mut state = self
            .changed
            .wait_while(state, |state| state.wanted == Wanted::Rest)
            .unwrap_or_else(PoisonError::into_inner);
        (state.wanted == Wanted::Run).then(|| {
            state.running += 1;
            Inside(self)
        })
    }
}

/// Permission to be in the guest; given back when it is dropped.
pub(crate) struct Inside<'a>(&'a Gate);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).running -= 1;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::thread;

    use super::*;

    #[test]
    fn nobody_is_inside_of_a_closed_gate_however_often_it_opens() {
        let gate = Arc::new(Gate::new());
        let inside = Arc::new(AtomicUsize::new(0));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let (gate, inside) = (Arc::clone(&gate), Arc::clone(&inside));
                thread::spawn(move || {
                    let mut entered = 0_u32;
                    while let Some(permission) = gate.enter() {
                        inside.fetch_add(1, Ordering::SeqCst);
                        entered += 1;
                        while gate.is_open() {
                            thread::yield_now();
                        }
                        inside.fetch_sub(1, Ordering::SeqCst);
                        drop(permission);
                    }
                    entered
                })
            })
            .collect();
        gate.await_rest();
        for _ in 0..50 {
            gate.open();
            while inside.load(Ordering::SeqCst) == 0 {
                thread::yield_now();
            }
            gate.close();
            gate.await_rest();
            assert_eq!(inside.load(Ordering::SeqCst), 0);
        }
        gate.stop();
        let entered: u32 = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
        assert!(entered >= 50, "{entered}");
    }
}
