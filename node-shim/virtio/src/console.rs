//! virtio-console (virtio 1.2, section 5.3) with one port: `hvc0`. What the guest prints comes in lines instead of bytes, which is what
//! makes it cheaper than a serial port.
//!
//! ```text
//! guest --transmit queue--> Sink
//! guest <--receive queue--- Port::input
//! ```

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};

use crate::buffers::{Buffers, Room};
use crate::chain::Chain;
use crate::device::{Activation, DeviceError, DeviceType, Event, HostSource, Memory, VirtioDevice, read_config_bytes};
use crate::lock::lock;
use crate::ring::{Ring, Step};
use crate::state::{DeviceState, RestoreError, SavedDevice};
use crate::transport::Interrupts;
use crate::wake::Wake;

/// `VIRTIO_CONSOLE_F_SIZE` (5.3.3): the driver is told the terminal's size.
const FEATURE_SIZE: u64 = 1 << 0;
/// `VIRTIO_CONSOLE_F_EMERG_WRITE` (5.3.3): a driver that has no queue yet may print a byte at a time.
const FEATURE_EMERGENCY_WRITE: u64 = 1 << 2;
/// Entries of each queue. Linux has one buffer at a time in the transmit queue.
const QUEUE_SIZE: u16 = 64;
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// Bytes of input that wait for a guest that does not read.
const INPUT_MAX_BYTES: usize = 4096;
/// `cols`, `rows`, `max_nr_ports`, `emerg_wr` (5.3.4).
const CONFIG_BYTES: usize = 12;
const EMERGENCY_WRITE_OFFSET: u64 = 8;
/// Bytes of output that are copied at a time.
const CHUNK_BYTES: usize = 4096;
/// Most bytes of one buffer that are printed: Linux sends a page. What is beyond is dropped, so that no driver keeps the event loop.
const OUTPUT_MAX_BYTES: usize = 64 * 1024;

/// Where the guest's output goes.
pub trait Sink: Send {
    /// Takes output. It must not wait: a Linux guest spins until its buffer comes back.
    fn write(&mut self, bytes: &[u8]);
}

/// The size of a terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Characters of a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

#[derive(Default)]
struct Shared {
    input: VecDeque<u8>,
    size: Size,
    size_changed: bool,
    /// Input was refused, and somebody waits for room.
    wanted: bool,
}

/// The host's end of the console. Clones are the same one.
#[derive(Clone)]
pub struct Port {
    shared: Arc<Mutex<Shared>>,
    /// Wakes the device.
    wake: Arc<Wake>,
    /// Signalled when there is room for input again.
    drained: Arc<Wake>,
}

impl Port {
    /// A port that signals `drained` when it can take input again.
    ///
    /// # Errors
    /// When there is no eventfd.
    pub fn new(drained: Arc<Wake>) -> io::Result<Self> {
        Ok(Self {
            shared: Arc::default(),
            wake: Arc::new(Wake::new()?),
            drained,
        })
    }

    /// Bytes of input that the port can take. After a zero, `drained` says when to ask again.
    pub fn capacity(&self) -> usize {
        let mut shared = self.lock();
        let capacity = INPUT_MAX_BYTES.saturating_sub(shared.input.len());
        shared.wanted = capacity == 0;
        capacity
    }

    /// Gives input to the guest: what is beyond [`Self::capacity`] is dropped.
    pub fn input(&self, bytes: &[u8]) {
        let mut shared = self.lock();
        let room = INPUT_MAX_BYTES.saturating_sub(shared.input.len());
        shared.input.extend(bytes.iter().take(room));
        drop(shared);
        self.wake.signal();
    }

    /// Tells the guest the size of the terminal.
    pub fn resize(&self, size: Size) {
        let mut shared = self.lock();
        if shared.size == size {
            return;
        }
        shared.size = size;
        shared.size_changed = true;
        drop(shared);
        self.wake.signal();
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        lock(&self.shared)
    }
}

/// A virtio console.
pub struct Console {
    port: Port,
    sink: Box<dyn Sink>,
    active: Option<Active>,
    chain: Chain,
    room: Room,
}

struct Active {
    receive: Ring,
    transmit: Ring,
    interrupts: Arc<dyn Interrupts>,
    config_vector: Option<u16>,
}

/// What is saved of a console: input that the guest has not read. The terminal's size is the host's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleState {
    input: Vec<u8>,
}

impl Console {
    /// A console between a port and a sink.
    pub fn new(port: Port, sink: Box<dyn Sink>) -> Self {
        Self {
            port,
            sink,
            active: None,
            chain: Chain::default(),
            room: Room::default(),
        }
    }

    fn transmit(&mut self) -> Result<(), DeviceError> {
        let Some(active) = &mut self.active else { return Ok(()) };
        let (sink, room) = (&mut self.sink, &mut self.room);
        active.transmit.drain(&mut self.chain, |memory, chain| {
            print(memory, chain, room, sink.as_mut())?;
            Ok(Step::Done(0))
        })?;
        Ok(())
    }

    /// Moves input to the guest, as far as it gave buffers.
    fn receive(&mut self) -> Result<(), DeviceError> {
        let Some(active) = &mut self.active else { return Ok(()) };
        let mut shared = self.port.lock();
        let room = &mut self.room;
        active.receive.drain(&mut self.chain, |memory, chain| {
            // A chain without room for a byte goes back at once, or a driver could stop its own input with it.
            if shared.input.is_empty() && chain.writable_bytes() > 0 {
                return Ok(Step::Stall);
            }
            let mut buffers = gather(room, memory, chain, Direction::ToGuest)?;
            let count = buffers.fill_from(shared.input.make_contiguous());
            *room = buffers.into_room();
            shared.input.drain(..count);
            // At most INPUT_MAX_BYTES.
            Ok(Step::Done(u32::try_from(count).unwrap_or_default()))
        })?;
        if shared.wanted && shared.input.len() < INPUT_MAX_BYTES {
            shared.wanted = false;
            self.port.drained.signal();
        }
        Ok(())
    }

    fn announce_size(&mut self) -> Result<(), DeviceError> {
        let Some(active) = &self.active else { return Ok(()) };
        if !std::mem::take(&mut self.port.lock().size_changed) {
            return Ok(());
        }
        active.interrupts.raise(active.config_vector, self.name())
    }
}

#[derive(Clone, Copy)]
enum Direction {
    ToGuest,
    FromGuest,
}

fn gather<'m>(
    room: &mut Room,
    memory: &'m Memory,
    chain: &Chain,
    direction: Direction,
) -> Result<Buffers<'m>, DeviceError> {
    let segments = match direction {
        Direction::ToGuest => chain.writable(),
        Direction::FromGuest => chain.readable(),
    };
    Buffers::gather(std::mem::take(room), memory, segments).map_err(|source| host_error("find its buffers", source))
}

fn print(memory: &Memory, chain: &Chain, room: &mut Room, sink: &mut dyn Sink) -> Result<(), DeviceError> {
    let mut buffers = gather(room, memory, chain, Direction::FromGuest)?;
    buffers.truncate(OUTPUT_MAX_BYTES);
    let mut chunk = [0; CHUNK_BYTES];
    while !buffers.is_empty() {
        let count = buffers.copy_into(&mut chunk);
        sink.write(&chunk[..count]);
    }
    *room = buffers.into_room();
    Ok(())
}

fn host_error(what: &'static str, source: io::Error) -> DeviceError {
    DeviceError::Host {
        device: "console".into(),
        what,
        source,
    }
}

impl VirtioDevice for Console {
    fn device_type(&self) -> DeviceType {
        DeviceType::Console
    }

    fn name(&self) -> &'static str {
        "console"
    }

    fn features(&self) -> u64 {
        FEATURE_SIZE | FEATURE_EMERGENCY_WRITE
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE, QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let size = self.port.lock().size;
        let mut config = [0; CONFIG_BYTES];
        config[..2].copy_from_slice(&size.columns.to_le_bytes());
        config[2..4].copy_from_slice(&size.rows.to_le_bytes());
        config[4] = 1;
        read_config_bytes(&config, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (EMERGENCY_WRITE_OFFSET, [byte, ..]) = (offset, data) {
            self.sink.write(&[*byte]);
        }
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), DeviceError> {
        self.active = Some(Active {
            receive: Ring::take(&mut activation, RECEIVE, self.name())?,
            transmit: Ring::take(&mut activation, TRANSMIT, self.name())?,
            interrupts: activation.interrupts,
            config_vector: activation.config_vector,
        });
        Ok(())
    }

    fn host_sources(&self) -> Vec<HostSource> {
        vec![self.port.wake.source()]
    }

    fn handle(&mut self, event: Event) -> Result<(), DeviceError> {
        match event {
            Event::Queue(TRANSMIT) => self.transmit(),
            Event::Queue(_) => self.receive(),
            Event::Host(_) => {
                self.port.wake.clear();
                self.announce_size()?;
                self.receive()
            }
        }
    }

    fn reset(&mut self) {
        self.active = None;
    }

    fn save(&self) -> SavedDevice {
        let queues = match &self.active {
            None => vec![None, None],
            Some(active) => vec![Some(active.receive.position()), Some(active.transmit.position())],
        };
        SavedDevice {
            queues,
            device: DeviceState::Console(ConsoleState {
                input: self.port.lock().input.iter().copied().collect(),
            }),
        }
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Console(state) = state else {
            return Err(RestoreError::kind(self.name(), state));
        };
        if state.input.len() > INPUT_MAX_BYTES {
            return Err(RestoreError::Invalid {
                device: self.name().to_owned(),
                what: format!("{} bytes of input wait", state.input.len()),
            });
        }
        self.port.lock().input = state.input.iter().copied().collect();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
