//! COM1: a 16550 whose output is the process's stdout and whose input is its stdin.

use std::io;
use std::sync::{Arc, Mutex};

use node_shim_virtio::wake::Wake;
use vm_superio::serial::{Error, SerialEvents, SerialState as UartState};
use vm_superio::{Serial, Trigger};

use crate::bus::BusDevice;
use crate::console::Output;
use crate::kvm::Vm;
use crate::layout;
use crate::snapshot::state::SerialState;
use node_shim_virtio::lock::lock;

/// The interrupt line of COM1.
struct Line(Arc<Vm>);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.pulse_line(layout::COM1_IRQ)
    }
}

/// Tells the event loop that the guest has read all input.
struct InputDrained(Arc<Wake>);

impl SerialEvents for InputDrained {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        self.0.signal();
    }
}

/// COM1 on the port bus.
pub(crate) struct SerialPort {
    uart: Mutex<Serial<Line, InputDrained, Output>>,
}

impl SerialPort {
    /// A port that writes to `output` and signals `drained` whenever it can take input again.
    pub(crate) fn new(vm: Arc<Vm>, output: Output, drained: Arc<Wake>) -> Self {
        Self {
            uart: Mutex::new(Serial::with_events(Line(vm), InputDrained(drained), output)),
        }
    }

    /// A port that is as it was saved. Where it had raised its interrupt it does so again.
    ///
    /// # Errors
    /// When KVM does not raise the interrupt, or there is more input than the port holds.
    pub(crate) fn restore(
        vm: Arc<Vm>,
        output: Output,
        drained: Arc<Wake>,
        state: &SerialState,
    ) -> Result<Self, String> {
        let uart = Serial::from_state(&uart_state(state), Line(vm), InputDrained(drained), output);
        Ok(Self {
            uart: Mutex::new(uart.map_err(|error| format!("failed to restore COM1: {error:?}"))?),
        })
    }

    /// The port, to be saved.
    pub(crate) fn save(&self) -> SerialState {
        let state = lock(&self.uart).state();
        SerialState {
            divisor: [state.baud_divisor_low, state.baud_divisor_high],
            registers: [
                state.interrupt_enable,
                state.interrupt_identification,
                state.line_control,
                state.line_status,
                state.modem_control,
                state.modem_status,
                state.scratch,
            ],
            input: state.in_buffer,
        }
    }

    /// Bytes of input that the port can take.
    pub(crate) fn capacity(&self) -> usize {
        lock(&self.uart).fifo_capacity()
    }

    /// Gives input to the guest: at most [`Self::capacity`] bytes. In loop-back mode a UART hears nothing from outside.
    ///
    /// # Errors
    /// When KVM does not raise the interrupt.
    pub(crate) fn input(&self, bytes: &[u8]) -> io::Result<()> {
        match lock(&self.uart).enqueue_raw_bytes(bytes) {
            Ok(_) | Err(Error::FullFifo) => Ok(()),
            Err(Error::Trigger(error) | Error::IOError(error)) => Err(error),
        }
    }
}

fn uart_state(state: &SerialState) -> UartState {
    let [baud_divisor_low, baud_divisor_high] = state.divisor;
    let [
        interrupt_enable,
        interrupt_identification,
        line_control,
        line_status,
        modem_control,
        modem_status,
        scratch,
    ] = state.registers;
    UartState {
        baud_divisor_low,
        baud_divisor_high,
        interrupt_enable,
        interrupt_identification,
        line_control,
        line_status,
        modem_control,
        modem_status,
        scratch,
        in_buffer: state.input.clone(),
    }
}

/// The register that an access is for: accesses are single bytes.
fn register<T>(offset: u64, data: &[T]) -> Option<u8> {
    (data.len() == 1).then(|| u8::try_from(offset).ok()).flatten()
}

impl BusDevice for SerialPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let (Some(offset), [value]) = (register(offset, data), data) {
            *value = lock(&self.uart).read(offset);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (Some(offset), [value]) = (register(offset, data), data) {
            // Output never fails, and an interrupt that cannot be raised is one that the guest polls for.
            let _ = lock(&self.uart).write(offset, *value);
        }
    }
}
