//! One thread for each vCPU: it runs the guest until something wants it out.
//!
//! To take a vCPU out, the [`Gate`] is closed and the thread is sent a signal. The handler sets `immediate_exit` in the thread's own
//! `kvm_run`, so that a signal between the look at the gate and the start of the guest is not lost
//! (Linux Documentation/virt/kvm/api.rst, section 5).

use std::cell::Cell;
use std::io;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};

use kvm_bindings::{
    KVM_MP_STATE_UNINITIALIZED, KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN,
    kvm_cpuid_entry2, kvm_mp_state,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::Killable;

use self::gate::Gate;
use self::parking::Parking;
use crate::bus::Bus;
use crate::lifecycle::Event;
use crate::mailbox::Mailbox;
use crate::signals;
use node_shim_virtio::lock::lock;

pub(crate) mod gate;
pub(crate) mod parking;
pub(crate) mod saved;

/// A vCPU's thread runs register accesses of devices and little else.
const STACK_BYTES: usize = 256 * 1024;
/// Most exits that finishing one instruction takes: an access of 64 bytes to memory that is no RAM is 8 of them.
const SETTLE_MAX: usize = 32;

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

/// A vCPU in KVM, and what CPUID tells its guest.
pub(crate) struct Processor {
    /// The vCPU.
    pub(crate) descriptor: VcpuFd,
    /// As it was set. What `KVM_GET_CPUID2` says may be something else: `KVM_PVM` adds what the host's processor has.
    pub(crate) cpuid: Vec<kvm_cpuid_entry2>,
}

/// A vCPU and its thread.
pub(crate) struct Vcpu {
    thread: JoinHandle<()>,
    /// Held by the thread while it is inside of the gate.
    descriptor: Arc<Mutex<VcpuFd>>,
    /// What CPUID tells the guest.
    cpuid: Vec<kvm_cpuid_entry2>,
}

impl Vcpu {
    /// Starts the thread of the vCPU with this index; it runs the guest once the gate is open.
    pub(crate) fn start(
        index: u8,
        processor: Processor,
        buses: Arc<Buses>,
        mailbox: Arc<Mailbox>,
        gate: Arc<Gate>,
        parking: Arc<Parking>,
    ) -> io::Result<Self> {
        let Processor { descriptor, cpuid } = processor;
        let descriptor = Arc::new(Mutex::new(descriptor));
        let of_thread = Arc::clone(&descriptor);
        let thread = thread::Builder::new()
            .name(format!("vcpu{index}"))
            .stack_size(STACK_BYTES)
            .spawn(move || run(&of_thread, &buses, &mailbox, &gate, &parking))?;
        Ok(Self {
            thread,
            descriptor,
            cpuid,
        })
    }

    /// Takes the vCPU out of the guest; the gate has been closed.
    pub(crate) fn kick(&self) {
        // A thread that has ended needs no signal.
        let _ = self.thread.kill(signals::kick_signal());
    }

    /// The vCPU, which is at rest.
    pub(crate) fn descriptor(&self) -> MutexGuard<'_, VcpuFd> {
        lock(&self.descriptor)
    }

    /// What CPUID tells the guest.
    pub(crate) fn cpuid(&self) -> &[kvm_cpuid_entry2] {
        &self.cpuid
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
    /// A signal, or `immediate_exit`: the last instruction is finished.
    Interrupted,
    End(Event),
}

fn run(vcpu: &Mutex<VcpuFd>, buses: &Buses, mailbox: &Mailbox, gate: &Gate, parking: &Parking) {
    IMMEDIATE_EXIT.set(&raw mut lock(vcpu).get_kvm_run().immediate_exit);
    loop {
        if parking.wait(gate)
            && let Err(error) = lock(vcpu).set_mp_state(kvm_mp_state {
                mp_state: KVM_MP_STATE_UNINITIALIZED,
            })
        {
            mailbox.send(Event::Crashed(format!(
                "failed to reset a vCPU that was plugged again: {error}"
            )));
            break;
        }
        let Some(inside) = gate.enter() else { break };
        let ended = run_inside(&mut lock(vcpu), buses, gate, parking);
        if let Some(event) = ended {
            // Whoever waits for the vCPU's rest finds what it said.
            mailbox.send(event);
            break;
        }
        drop(inside);
    }
    IMMEDIATE_EXIT.set(ptr::null_mut());
}

/// Runs the guest until the gate is closed or the vCPU is to be parked, or for good.
fn run_inside(vcpu: &mut VcpuFd, buses: &Buses, gate: &Gate, parking: &Parking) -> Option<Event> {
    while gate.is_open() && !parking.is_wanted() {
        match step(vcpu, buses) {
            Outcome::Continue | Outcome::Interrupted => {}
            Outcome::End(event) => return Some(event),
        }
    }
    settle(vcpu, buses)
}

/// Finishes the instruction whose access to a device was the last exit: only then are the registers those of a place between two
/// instructions (api.rst, the note at `KVM_EXIT_IO`).
fn settle(vcpu: &mut VcpuFd, buses: &Buses) -> Option<Event> {
    for _ in 0..SETTLE_MAX {
        vcpu.set_kvm_immediate_exit(1);
        match step(vcpu, buses) {
            Outcome::Continue => {}
            Outcome::Interrupted => break,
            Outcome::End(event) => return Some(event),
        }
    }
    None
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
                return Outcome::Interrupted;
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
