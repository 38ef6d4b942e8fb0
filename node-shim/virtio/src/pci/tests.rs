use super::*;
use crate::device::HostSource;
use crate::rng::Rng;
use crate::state::{DeviceState, RestoreError, SavedDevice};
use crate::testing::driver::peek;
use crate::testing::{ActivatorLog, Descriptor, DriverQueue, InterruptLog, guest_memory};

const BAR: u32 = 0xc000_0000;
const QUEUE: DriverQueue = DriverQueue::new(0x1000, 16);

struct Machine {
    memory: Arc<Memory>,
    interrupts: Arc<InterruptLog>,
    activator: Arc<ActivatorLog>,
    function: VirtioPci,
}

impl Machine {
    fn new() -> Self {
        Self::with(Box::new(Rng::new()))
    }

    fn with(device: Box<dyn VirtioDevice>) -> Self {
        let (memory, interrupts, activator) = (guest_memory(), Arc::default(), Arc::default());
        let function = VirtioPci::new(
            device,
            Arc::clone(&memory),
            Arc::<InterruptLog>::clone(&interrupts),
            Arc::<ActivatorLog>::clone(&activator),
            BAR,
        );
        let machine = Self {
            memory,
            interrupts,
            activator,
            function,
        };
        machine.write_config(4, &[6, 0]);
        machine
    }

    fn config_u32(&self, offset: u16) -> u32 {
        let mut data = [0; 4];
        self.function.read_config(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write_config(&self, offset: u16, data: &[u8]) {
        self.function.write_config(offset, data);
    }

    fn read<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        self.function.read_bar(offset, &mut data);
        data
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.function.write_bar(offset, data);
    }

    fn status(&self) -> u8 {
        self.read::<1>(20)[0]
    }

    fn enable_msix(&self) {
        let at = self.capabilities().iter().find(|(_, id, _)| *id == 0x11).unwrap().0;
        for vector in 0..u64::from(self.function.vectors()) {
            self.write(0x3000 + 16 * vector, &0xfee0_0000_u32.to_le_bytes());
            self.write(
                0x3000 + 16 * vector + 8,
                &(0x30 + u32::try_from(vector).unwrap()).to_le_bytes(),
            );
            self.write(0x3000 + 16 * vector + 12, &0_u32.to_le_bytes());
        }
        self.write_config(at + 2, &0x8000_u16.to_le_bytes());
    }

    /// Offset, id and `cfg_type` of each capability, walked as Linux does it.
    fn capabilities(&self) -> Vec<(u16, u8, u8)> {
        let mut found = Vec::new();
        let mut at = u16::from(self.config_u32(0x34).to_le_bytes()[0]);
        while at != 0 && found.len() < 48 {
            let [id, next, _, cfg_type] = self.config_u32(at).to_le_bytes();
            found.push((at, id, cfg_type));
            at = u16::from(next);
        }
        found
    }

    fn negotiate(&self) {
        self.write(20, &[1]);
        self.write(20, &[3]);
        self.write(8, &1_u32.to_le_bytes());
        self.write(12, &1_u32.to_le_bytes());
        self.write(20, &[11]);
    }

    fn set_queue(&self, queue: &DriverQueue) {
        self.write(22, &0_u16.to_le_bytes());
        self.write(24, &queue.size.to_le_bytes());
        self.write(26, &0_u16.to_le_bytes());
        for (at, address) in [
            (32, queue.descriptor_table),
            (40, queue.available_ring),
            (48, queue.used_ring),
        ] {
            let [low @ .., h0, h1, h2, h3] = address.to_le_bytes();
            self.write(at, &low);
            self.write(at + 4, &[h0, h1, h2, h3]);
        }
        self.write(28, &1_u16.to_le_bytes());
    }

    fn start(&self) {
        self.enable_msix();
        self.negotiate();
        self.write(16, &1_u16.to_le_bytes());
        self.set_queue(&QUEUE);
        self.write(20, &[15]);
    }
}

#[test]
fn capabilities_are_found_as_linux_finds_them() {
    let machine = Machine::new();
    let capabilities = machine.capabilities();
    let kinds: Vec<(u8, u8)> = capabilities
        .iter()
        .map(|(_, id, kind)| (*id, if *id == 9 { *kind } else { 0 }))
        .collect();
    assert_eq!(kinds, [(9, 1), (9, 3), (9, 4), (9, 2), (9, 5), (0x11, 0)]);
    for (at, id, kind) in &capabilities {
        let [_, _, length, _] = machine.config_u32(*at).to_le_bytes();
        if *id == 9 {
            assert_eq!(length, if matches!(kind, 2 | 5) { 20 } else { 16 });
            let (offset, size) = (machine.config_u32(at + 8), machine.config_u32(at + 12));
            assert!(offset + size <= BAR_BYTES, "capability {kind} is in the BAR");
        }
    }
    let notify = capabilities[3].0;
    assert_eq!(machine.config_u32(notify + 16), 4, "notify_off_multiplier");
    let msix = capabilities[5].0;
    assert_eq!(machine.config_u32(msix) >> 16, 1, "two vectors");
    assert_eq!(
        (machine.config_u32(msix + 4), machine.config_u32(msix + 8)),
        (0x3000, 0x3800)
    );
    assert_eq!(machine.config_u32(0x100), 0, "no extended capability");
}

#[test]
fn a_driver_starts_the_device_and_gets_an_interrupt() {
    let machine = Machine::new();
    machine.start();
    assert_eq!(machine.status(), 15);
    assert_eq!(machine.activator.doorbells(), [(u64::from(BAR) + 0x2000, 0)]);
    assert_eq!(
        machine.activator.kicked(),
        [0],
        "a kick from before DRIVER_OK is not lost"
    );
    machine.write(0x2000, &0_u16.to_le_bytes());
    assert_eq!(machine.activator.kicked(), [0]);
    let mut queue = QUEUE;
    queue.send(&machine.memory, 0, &[Descriptor::writable(0x8000, 64)]);
    machine.function.handle(Event::Queue(0));
    assert_eq!(queue.used(&machine.memory), Some((0, 64)));
    assert_ne!(peek(&machine.memory, 0x8000, 64), [0; 64]);
    assert_eq!(machine.interrupts.triggered(), [0]);
}

#[test]
fn an_interrupt_without_a_vector_or_without_msix_goes_nowhere() {
    for vector in [0xffff_u16, 2, 0] {
        let machine = Machine::new();
        machine.negotiate();
        machine.set_queue(&QUEUE);
        machine.write(20, &[0]);
        machine.negotiate();
        machine.write(26, &vector.to_le_bytes());
        assert_eq!(
            u16::from_le_bytes(machine.read(26)),
            if vector == 0 { 0 } else { 0xffff }
        );
        let mut queue = QUEUE;
        for (at, address) in [
            (32, queue.descriptor_table),
            (40, queue.available_ring),
            (48, queue.used_ring),
        ] {
            machine.write(at, &address.to_le_bytes());
        }
        machine.write(24, &16_u16.to_le_bytes());
        machine.write(28, &1_u16.to_le_bytes());
        machine.write(20, &[15]);
        queue.send(&machine.memory, 0, &[Descriptor::writable(0x8000, 64)]);
        machine.function.handle(Event::Queue(0));
        assert_eq!(queue.used(&machine.memory), Some((0, 64)));
        assert_eq!(machine.interrupts.triggered(), [0_u16; 0]);
    }
}

#[test]
fn features_are_agreed_on_before_anything_else() {
    let machine = Machine::new();
    assert_eq!(u32::from_le_bytes(machine.read(4)), 1 << 28 | 1 << 29);
    machine.write(0, &1_u32.to_le_bytes());
    assert_eq!(u32::from_le_bytes(machine.read(4)), 1, "VERSION_1");
    machine.write(0, &2_u32.to_le_bytes());
    assert_eq!(u32::from_le_bytes(machine.read(4)), 0);
    // A legacy driver, and one that makes features up.
    for (low, high) in [(0_u32, 0_u32), (1, 1), (0, 3)] {
        machine.write(20, &[0]);
        machine.write(20, &[3]);
        for (select, value) in [(0_u32, low), (1, high), (7, 0xffff_ffff)] {
            machine.write(8, &select.to_le_bytes());
            machine.write(12, &value.to_le_bytes());
        }
        machine.write(20, &[11]);
        assert_eq!(machine.status(), 3, "features {low:#x} {high:#x}");
        machine.write(20, &[15]);
        assert!(!machine.activator.connected());
    }
    machine.write(20, &[0]);
    machine.negotiate();
    machine.write(12, &0_u32.to_le_bytes());
    assert_eq!(u32::from_le_bytes(machine.read(12)), 1, "frozen with FEATURES_OK");
}

#[test]
fn queue_registers_are_frozen_once_the_device_is_live() {
    let machine = Machine::new();
    machine.start();
    let before: [u8; 34] = machine.read(22);
    for (at, data) in [
        (24, &[8_u8, 0][..]),
        (26, &[1, 0]),
        (28, &[0, 0]),
        (32, &[0; 4]),
        (36, &[9; 4]),
        (40, &[0; 8]),
    ] {
        machine.write(at, data);
    }
    machine.write(16, &0_u16.to_le_bytes());
    assert_eq!(machine.read::<34>(22), before);
    assert_eq!(u16::from_le_bytes(machine.read(16)), 1);
    assert!(machine.activator.connected());
}

#[test]
fn any_queue_may_be_selected() {
    let machine = Machine::new();
    for selected in [1_u16, 2, 63, 0x7fff, 0xffff] {
        machine.write(22, &selected.to_le_bytes());
        assert_eq!(
            u16::from_le_bytes(machine.read(24)),
            0,
            "queue {selected} does not exist"
        );
        for at in (24..56).step_by(2) {
            machine.write(at, &[1, 0]);
        }
        for at in (32..56).step_by(4) {
            machine.write(at, &[0xff; 4]);
        }
        assert_eq!(machine.read::<4>(24), [0, 0, 0xff, 0xff]);
    }
    for size in [0_u16, 3, 17, 128, 0x8000, 0xffff] {
        machine.write(22, &0_u16.to_le_bytes());
        machine.write(24, &size.to_le_bytes());
        assert_eq!(u16::from_le_bytes(machine.read(24)), 64, "size {size} is not one");
    }
}

#[test]
fn queues_that_cannot_be_are_refused_at_driver_ok() {
    let good = QUEUE;
    for queue in [
        DriverQueue {
            descriptor_table: 0x1008,
            ..good
        },
        DriverQueue {
            available_ring: 0x2001,
            ..good
        },
        DriverQueue {
            used_ring: 0x3002,
            ..good
        },
        DriverQueue {
            descriptor_table: 1 << 40,
            ..good
        },
        DriverQueue {
            descriptor_table: 0xf_fff0,
            ..good
        },
        DriverQueue {
            available_ring: 0xf_fffe,
            ..good
        },
        DriverQueue {
            used_ring: u64::MAX - 3,
            ..good
        },
        DriverQueue {
            descriptor_table: u64::MAX - 15,
            ..good
        },
    ] {
        let machine = Machine::new();
        machine.enable_msix();
        machine.negotiate();
        machine.write(16, &1_u16.to_le_bytes());
        machine.set_queue(&queue);
        machine.write(20, &[15]);
        assert_eq!(machine.status(), 15 | 64, "{queue:x?}");
        assert_eq!(machine.interrupts.triggered(), [1], "the configuration's vector");
        assert_eq!(machine.read::<1>(0x800), [2]);
        assert_eq!(machine.read::<1>(0x800), [0], "reading the ISR clears it");
        assert_eq!(machine.activator.failures().len(), 1);
        assert!(!machine.activator.connected());
        machine.write(20, &[0]);
        machine.start();
        assert_eq!(machine.status(), 15, "a reset makes it good again");
    }
    let machine = Machine::new();
    machine.negotiate();
    machine.write(20, &[15]);
    assert_eq!(machine.status(), 15 | 64, "no queue at all");
}

#[test]
fn a_host_that_cannot_connect_breaks_the_device_only() {
    let machine = Machine::new();
    machine.activator.refuse();
    machine.start();
    assert_eq!(machine.status(), 15 | 64);
    assert!(!machine.activator.connected());
    assert!(machine.activator.failures()[0].contains("connect its doorbells"));
}

#[test]
fn a_broken_driver_gets_a_device_that_needs_a_reset() {
    let machine = Machine::new();
    machine.start();
    let mut queue = QUEUE;
    queue.send(&machine.memory, 0, &[Descriptor::writable(u64::MAX, 64)]);
    machine.function.handle(Event::Queue(0));
    assert_eq!(machine.status(), 15 | 64);
    assert_eq!(machine.interrupts.triggered(), [1]);
    assert!(!machine.activator.connected());
    machine.function.handle(Event::Queue(0));
    assert_eq!(machine.activator.failures().len(), 1, "told once");
    machine.write(0x2000, &[0, 0]);
    machine.write(20, &[0]);
    assert_eq!(machine.status(), 0);
    assert_eq!(machine.activator.disconnects(), 1);
}

#[test]
fn a_reset_disconnects_and_forgets() {
    let machine = Machine::new();
    machine.start();
    machine.write(20, &[0]);
    assert!(!machine.activator.connected());
    assert_eq!(machine.status(), 0);
    assert_eq!(u16::from_le_bytes(machine.read(16)), 0xffff);
    assert_eq!(machine.read::<6>(24), [64, 0, 0xff, 0xff, 0, 0]);
    assert_eq!(machine.read::<24>(32), [0; 24]);
    machine.function.handle(Event::Queue(0));
    machine.function.handle(Event::Host(5));
    machine.write(0x2000, &[0, 0]);
    machine.write(20, &[0]);
    assert_eq!(machine.activator.disconnects(), 1, "once for each connection");
}

#[test]
fn power_on_reset_also_forgets_pci() {
    let machine = Machine::new();
    machine.start();
    machine.write_config(0x10, &0xd000_0000_u32.to_le_bytes());
    assert_eq!(machine.function.bar(), (0xd000_0000, 0x4000));
    machine.function.power_on_reset();
    assert_eq!(machine.function.bar(), (u64::from(BAR), 0x4000));
    assert!(!machine.activator.connected());
    assert_eq!(machine.interrupts.route_of(0), None);
    assert_eq!(machine.read::<4>(20), [0xff; 4], "memory space is off");
    machine.write_config(4, &[6, 0]);
    machine.start();
    assert_eq!(machine.status(), 15);
}

#[test]
fn memory_space_that_is_off_does_not_answer() {
    let machine = Machine::new();
    machine.write_config(4, &[0, 0]);
    machine.write(20, &[1]);
    assert_eq!(machine.read::<4>(0), [0xff; 4]);
    machine.write_config(4, &[2, 0]);
    assert_eq!(machine.status(), 0);
}

#[test]
fn the_bar_is_reached_through_configuration_space() {
    let machine = Machine::new();
    let window = machine.capabilities()[4].0;
    let aim = |bar: u8, offset: u32, length: u32| {
        machine.write_config(window + 4, &[bar]);
        machine.write_config(window + 8, &offset.to_le_bytes());
        machine.write_config(window + 12, &length.to_le_bytes());
    };
    aim(0, 20, 1);
    machine.write_config(window + 16, &[3]);
    assert_eq!(machine.status(), 3);
    let mut data = [0; 4];
    machine.function.read_config(window + 16, &mut data);
    assert_eq!(data[0], 3);
    aim(0, 18, 2);
    machine.function.read_config(window + 16, &mut data);
    assert_eq!(data[..2], [1, 0]);
    for (bar, offset, length) in [
        (1, 20, 1),
        (0, 20, 3),
        (0, 20, 0),
        (0, 21, 4),
        (0, u32::MAX, 1),
        (0, 20, u32::MAX),
    ] {
        aim(bar, offset, length);
        machine.write_config(window + 16, &[0xff; 4]);
        machine.function.read_config(window + 16, &mut data);
        assert_eq!(machine.status(), 3, "bar {bar} offset {offset} length {length}");
    }
}

#[test]
fn every_access_of_every_width_is_harmless() {
    let machine = Machine::new();
    machine.start();
    for offset in (0..u64::from(BAR_BYTES) + 64).chain([u64::MAX, u64::MAX - 3, 1 << 32]) {
        for width in [1, 2, 3, 4, 8, 16] {
            let mut data = vec![0xa5; width];
            // Not the status: it would only be reset.
            if !(offset == 20 && width == 1) {
                machine.write(offset, &data);
            }
            machine.function.read_bar(offset, &mut data);
        }
    }
    for offset in 0..=u16::MAX {
        let mut data = [0; 8];
        machine.function.read_config(offset, &mut data);
        machine.write_config(offset, &data[..usize::from(offset % 9)]);
    }
    assert_eq!(
        machine.read::<4>(0x2000),
        [0; 4],
        "notification registers read as nothing"
    );
}

/// A device whose requests take until the test lets them end.
struct Slow {
    entered: std::sync::mpsc::Sender<()>,
    leave: std::sync::mpsc::Receiver<()>,
    active: Option<Activation>,
}

impl VirtioDevice for Slow {
    fn device_type(&self) -> DeviceType {
        DeviceType::Console
    }
    fn name(&self) -> &'static str {
        "slow"
    }
    fn queue_max_sizes(&self) -> &[u16] {
        &[64]
    }
    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0x5a);
    }
    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        self.active = Some(activation);
        Ok(())
    }
    fn host_sources(&self) -> Vec<HostSource> {
        Vec::new()
    }
    fn handle(&mut self, _event: Event) -> Result<(), DeviceError> {
        assert!(self.active.is_some(), "no event after a reset");
        self.entered.send(()).unwrap();
        self.leave.recv().unwrap();
        Ok(())
    }
    fn reset(&mut self) {
        self.active = None;
    }
    fn save(&self) -> SavedDevice {
        unreachable!("nobody saves it")
    }
    fn restore(&mut self, _state: &DeviceState) -> Result<(), RestoreError> {
        unreachable!("nobody restores it")
    }
}

#[test]
fn a_reset_waits_for_the_request_in_flight_and_other_registers_do_not() {
    let (entered_tx, entered) = std::sync::mpsc::channel();
    let (leave, leave_rx) = std::sync::mpsc::channel();
    let machine = Machine::with(Box::new(Slow {
        entered: entered_tx,
        leave: leave_rx,
        active: None,
    }));
    machine.start();
    std::thread::scope(|scope| {
        scope.spawn(|| machine.function.handle(Event::Queue(0)));
        entered.recv().unwrap();
        // A request is in flight: these return all the same.
        assert_eq!(machine.status(), 15);
        assert_eq!(machine.config_u32(0), 0x1043_1af4);
        machine.write(0x2000, &[0, 0]);
        let reset = scope.spawn(|| machine.write(20, &[0]));
        assert_eq!(machine.status(), 15, "not reset before the request has ended");
        leave.send(()).unwrap();
        reset.join().unwrap();
        machine.function.handle(Event::Queue(0));
    });
    assert_eq!(machine.status(), 0);
}

#[test]
fn a_saved_function_goes_on_as_another() {
    let machine = Machine::new();
    machine.start();
    let mut queue = QUEUE;
    for head in 0..3 {
        queue.send(&machine.memory, head, &[Descriptor::writable(0x8000, 64)]);
        machine.function.handle(Event::Queue(0));
        assert_eq!(queue.used(&machine.memory), Some((u32::from(head), 64)));
    }
    machine.function.pause();
    // The driver's last request before the vCPUs stopped is for whoever goes on.
    queue.send(&machine.memory, 3, &[Descriptor::writable(0x9000, 32)]);
    machine.function.handle(Event::Queue(0));
    assert_eq!(queue.used(&machine.memory), None, "paused");
    let bytes = serde_json::to_vec(&machine.function.save()).unwrap();
    let state: VirtioPciState = serde_json::from_slice(&bytes).unwrap();

    let mut other = Machine::new();
    other.function.power_on_reset();
    other.memory = Arc::clone(&machine.memory);
    other.function = VirtioPci::new(
        Box::new(Rng::new()),
        Arc::clone(&machine.memory),
        Arc::<InterruptLog>::clone(&other.interrupts),
        Arc::<ActivatorLog>::clone(&other.activator),
        BAR,
    );
    other.function.restore(&state).unwrap();
    assert_eq!(other.status(), 15);
    assert_eq!(other.function.save(), state, "what was restored is what was saved");
    assert_eq!(
        other.interrupts.triggered(),
        [0],
        "an interrupt may have been on its way"
    );
    other.function.handle(Event::Queue(0));
    assert_eq!(queue.used(&machine.memory), None, "still paused");
    other.function.resume();
    assert_eq!(other.activator.kicked(), [0]);
    other.function.handle(Event::Queue(0));
    assert_eq!(queue.used(&machine.memory), Some((3, 32)));
    assert_eq!(other.interrupts.triggered(), [0]);
    // And the first one could have gone on as well.
    other.write(20, &[0]);
    assert!(!other.activator.connected());
}

#[test]
fn a_state_that_is_not_this_functions_is_refused() {
    let machine = Machine::new();
    machine.start();
    machine.function.pause();
    let good = serde_json::to_value(machine.function.save()).unwrap();
    for (pointer, value, expected) in [
        ("/name", serde_json::json!("blk0"), "its name was blk0"),
        ("/configuration/2", serde_json::json!(0x41), "another function's"),
        ("/configuration", serde_json::json!([]), "another function's"),
        (
            "/common/driver_features",
            serde_json::json!(1_u64 << 32 | 1),
            "features 0x1",
        ),
        ("/common/queues", serde_json::json!([]), "it had 0 queues and has 1"),
        ("/common/queues/0/size", serde_json::json!(3), "a queue of 3 entries"),
        (
            "/common/queues/0/size",
            serde_json::json!(128),
            "a queue of 128 entries",
        ),
        ("/common/queues/0/vector", serde_json::json!(2), "vector 2 for a queue"),
        ("/common/config_vector", serde_json::json!(9), "vector 9"),
        ("/common/status", serde_json::json!(16), "a status that there is not"),
        (
            "/common/queues/0/used_ring",
            serde_json::json!(1_u64 << 40),
            "not in guest memory",
        ),
        ("/common/queues/0/enabled", serde_json::json!(false), "without queue 0"),
        ("/msix/entries", serde_json::json!([]), "another number of vectors"),
        (
            "/device/device",
            serde_json::json!({"Block": {"serial": vec![0; 20], "capacity": 512, "read_only": true, "write_back": true}}),
            "state in its place is of a block device",
        ),
    ] {
        let mut state = good.clone();
        *state.pointer_mut(pointer).unwrap() = value;
        let state: VirtioPciState = serde_json::from_value(state).unwrap();
        let other = Machine::new();
        let error = other.function.restore(&state).expect_err(pointer).to_string();
        assert!(error.contains(expected), "{pointer}: {error}");
        assert!(!other.activator.connected(), "{pointer}");
    }
}
