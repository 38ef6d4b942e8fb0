//! One thread for each vCPU: it runs the guest until something wants it out.
//!
//! To take a vCPU out, `stop` is set and the thread is sent a signal. The handler sets `immediate_exit` in the thread's own
//! `kvm_run`, so that a signal between the check of `stop` and the start of the guest is not lost
//! (Linux Documentation/virt/kvm/api.rst, section 5).

use std::cell::Cell;
use std::io;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};

use kvm_bindings::{
    KVM_MP_STATE_UNINITIALIZED, KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, kvm_mp_state,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::Killable;

use crate::bus::Bus;
use crate::lifecycle::Event;
use crate::lock::lock;
use crate::mailbox::Mailbox;
use crate::signals;

/// A vCPU's thread runs register accesses of devices and little else.
const STACK_BYTES: usize = 256 * 1024;

thread_local! {
    /// `immediate_exit` in this thread's `kvm_run`, for the signal handler.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

/// Handler of [`signals::kick_signal`]. Does nothing that is not async-signal-safe.
pub(crate) extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // A thread that is being torn down has no vCPU any more.
    let _ = IMMEDIATE_EXIT.try_with(|cell| {
        let immediate_exit = cell.get();
        if !immediate_exit.is_null() {
            // SAFETY: the pointer is set only while this thread owns the mapping.
            unsafe { immediate_exit.write_volatile(1) };
        }
    });
}

/// Where a vCPU's accesses go.
pub(crate) struct Buses {
    /// Memory that is not RAM.
    pub(crate) memory: Bus,
    /// Ports.
    pub(crate) ports: Bus,
}

/// Keeps a vCPU that the guest has ejected out of the guest until it is plugged again.
#[derive(Default)]
pub(crate) struct Parking {
    state: AtomicU8,
    lock: Mutex<()>,
    changed: Condvar,
}

/// In the guest, or on the way there.
const RUNNING: u8 = 0;
/// To stay out of the guest.
const PARKED: u8 = 1;
/// Plugged again: its thread brings it back to the state in which it waits for INIT.
const RELEASED: u8 = 2;

impl Parking {
    /// Keeps the vCPU out, as soon as it comes out.
    pub(crate) fn park(&self) {
        self.set(PARKED);
    }

    /// Plugs the vCPU again.
    pub(crate) fn release(&self) {
        self.set(RELEASED);
    }

    /// Wakes the thread, to look whether it shall stop.
    pub(crate) fn wake(&self) {
        drop(lock(&self.lock));
        self.changed.notify_all();
    }

    fn set(&self, state: u8) {
        self.state.store(state, Ordering::Release);
        self.wake();
    }

    /// Waits while the vCPU is parked and need not stop. `true` when it was plugged again.
    fn wait(&self, stop: &AtomicBool) -> bool {
        if self.state.load(Ordering::Acquire) == PARKED {
            let guard = lock(&self.lock);
            let parked = |_: &mut ()| self.state.load(Ordering::Acquire) == PARKED && !stop.load(Ordering::Acquire);
            // A panic elsewhere would have ended the process.
            drop(self.changed.wait_while(guard, parked));
        }
        let released = self
            .state
            .compare_exchange(RELEASED, RUNNING, Ordering::AcqRel, Ordering::Acquire);
        released.is_ok()
    }
}

/// A running vCPU.
pub(crate) struct Vcpu {
    thread: JoinHandle<()>,
}

impl Vcpu {
    /// Starts the vCPU with this index.
    pub(crate) fn start(
        index: u8,
        vcpu: VcpuFd,
        buses: Arc<Buses>,
        mailbox: Arc<Mailbox>,
        stop: Arc<AtomicBool>,
        parking: Arc<Parking>,
    ) -> io::Result<Self> {
        let thread = thread::Builder::new()
            .name(format!("vcpu{index}"))
            .stack_size(STACK_BYTES)
            .spawn(move || run(vcpu, &buses, &mailbox, &stop, &parking))?;
        Ok(Self { thread })
    }

    /// Takes the vCPU out of the guest; `stop` has been set.
    pub(crate) fn kick(&self) {
        // A thread that has ended needs no signal.
        let _ = self.thread.kill(signals::kick_signal());
    }

    /// Waits for the thread's end.
    pub(crate) fn join(self) {
        // A panic in it would have ended the process.
        let _ = self.thread.join();
    }
}

/// What one exit means.
enum Outcome {
    Continue,
    End(Event),
}

fn run(mut vcpu: VcpuFd, buses: &Buses, mailbox: &Mailbox, stop: &AtomicBool, parking: &Parking) {
    IMMEDIATE_EXIT.set(&raw mut vcpu.get_kvm_run().immediate_exit);
    while !stop.load(Ordering::Acquire) {
        if parking.wait(stop)
            && let Err(error) = vcpu.set_mp_state(kvm_mp_state {
                mp_state: KVM_MP_STATE_UNINITIALIZED,
            })
        {
            mailbox.send(Event::Crashed(format!(
                "failed to reset a vCPU that was plugged again: {error}"
            )));
            break;
        }
        if stop.load(Ordering::Acquire) {
            break;
        }
        match step(&mut vcpu, buses) {
            Outcome::Continue => {}
            Outcome::End(event) => {
                mailbox.send(event);
                break;
            }
        }
    }
    IMMEDIATE_EXIT.set(ptr::null_mut());
}

/// Runs the guest until its next exit.
fn step(vcpu: &mut VcpuFd, buses: &Buses) -> Outcome {
    let crash = match vcpu.run() {
        Ok(exit) => match on_exit(exit, buses) {
            Exit::Handled => return Outcome::Continue,
            Exit::Event(event) => return Outcome::End(event),
            Exit::InternalError => internal_error(vcpu),
            Exit::Fatal(what) => what,
        },
        Err(error) => match error.errno() {
            libc::EINTR => {
                vcpu.set_kvm_immediate_exit(0);
                return Outcome::Continue;
            }
            libc::EAGAIN => return Outcome::Continue,
            _ => format!("KVM_RUN failed: {error}"),
        },
    };
    Outcome::End(Event::Crashed(format!("{crash} at {}", position(vcpu))))
}

/// An exit, sorted by who deals with it.
enum Exit {
    Handled,
    Event(Event),
    InternalError,
    Fatal(String),
}

#[allow(
    clippy::wildcard_enum_match_arm,
    reason = "KVM's exits, of which most belong to other processors: unknown ones end the VM"
)]
fn on_exit(exit: VcpuExit<'_>, buses: &Buses) -> Exit {
    match exit {
        VcpuExit::IoIn(port, data) => buses.ports.read(u64::from(port), data),
        VcpuExit::IoOut(port, data) => buses.ports.write(u64::from(port), data),
        VcpuExit::MmioRead(address, data) => buses.memory.read(address, data),
        VcpuExit::MmioWrite(address, data) => buses.memory.write(address, data),
        VcpuExit::Hlt | VcpuExit::Intr | VcpuExit::IrqWindowOpen => {}
        VcpuExit::Shutdown => return Exit::Event(Event::TripleFault),
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _) => return Exit::Event(Event::GuestPowerOff),
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _) => return Exit::Event(Event::GuestReset),
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_CRASH, _) => {
            return Exit::Fatal("the guest reported a crash".to_owned());
        }
        VcpuExit::FailEntry(reason, cpu) => {
            return Exit::Fatal(format!(
                "the processor refused to enter the guest (reason {reason:#x}, host CPU {cpu})"
            ));
        }
        VcpuExit::InternalError => return Exit::InternalError,
        other => return Exit::Fatal(format!("an exit that no guest of ours may cause ({other:?})")),
    }
    Exit::Handled
}

/// Names of `KVM_EXIT_INTERNAL_ERROR`'s suberrors.
fn internal_error(vcpu: &mut VcpuFd) -> String {
    // SAFETY: the exit reason is KVM_EXIT_INTERNAL_ERROR, so this is the union's member.
    let suberror = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror };
    let name = match suberror {
        1 => "KVM could not emulate an instruction",
        2 => "KVM was interrupted by an exception while it delivered one",
        3 => "KVM could not deliver an event",
        4 => "KVM met an exit reason that it does not know",
        _ => "KVM met an internal error",
    };
    format!("{name} (suberror {suberror})")
}

/// Where the vCPU is, for a message.
fn position(vcpu: &VcpuFd) -> String {
    match (vcpu.get_regs(), vcpu.get_sregs()) {
        (Ok(regs), Ok(sregs)) => format!(
            "RIP {:#x}, RSP {:#x}, CR0 {:#x}, CR2 {:#x}, CR3 {:#x}",
            regs.rip, regs.rsp, sregs.cr0, sregs.cr2, sregs.cr3
        ),
        _ => "an unknown position".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parked_vcpu_waits_until_it_is_plugged_again_or_stops() {
        let (parking, stop) = (Arc::new(Parking::default()), Arc::new(AtomicBool::new(false)));
        assert!(!parking.wait(&stop), "it runs");
        for stopping in [false, true] {
            parking.park();
            let (parked, stopped) = (Arc::clone(&parking), Arc::clone(&stop));
            let thread = thread::spawn(move || parked.wait(&stopped));
            if stopping {
                stop.store(true, Ordering::Release);
                parking.wake();
            } else {
                parking.release();
            }
            assert_eq!(thread.join().unwrap(), !stopping);
        }
        parking.release();
        assert!(parking.wait(&stop) && !parking.wait(&stop), "reset once");
    }
}
