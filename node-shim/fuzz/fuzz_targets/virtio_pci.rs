//! Hostile accesses to a function's configuration space and BAR.
#![no_main]

use std::sync::Arc;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use node_shim_fuzz::Address;
use node_shim_virtio::block::{Block, MemoryStorage};
use node_shim_virtio::device::Event;
use node_shim_virtio::pci::VirtioPci;
use node_shim_virtio::testing::driver::put;
use node_shim_virtio::testing::{ActivatorLog, InterruptLog, guest_memory};

#[derive(Arbitrary, Debug)]
enum Access {
    ReadConfig {
        offset: u16,
        width: u8,
    },
    WriteConfig {
        offset: u8,
        value: u32,
        width: u8,
    },
    ReadBar {
        offset: u16,
        width: u8,
    },
    WriteBar {
        offset: u16,
        value: u64,
        width: u8,
    },
    /// A register of the common configuration, so that the fuzzer finds them soon.
    WriteCommon {
        offset: u8,
        value: u32,
        width: u8,
    },
    FarBar {
        offset: u64,
    },
    /// All the steps up to DRIVER_OK, with these queue addresses.
    Start {
        table: Address,
        available: Address,
        used: Address,
        size: u16,
    },
    Put {
        address: Address,
        bytes: Vec<u8>,
    },
    Kick(u8),
    PowerOn,
}

fn width(width: u8) -> usize {
    [1, 2, 4, 8][usize::from(width % 4)]
}

fuzz_target!(|accesses: Vec<Access>| {
    let memory = guest_memory();
    let (interrupts, activator) = (Arc::new(InterruptLog::default()), Arc::new(ActivatorLog::default()));
    let device = Box::new(Block::in_memory("blk", "serial", MemoryStorage::new(vec![1; 8192])));
    let function = VirtioPci::new(device, memory.clone(), interrupts, activator.clone(), 0xc000_0000);
    function.write_config(4, &[6, 0]);
    for access in accesses.iter().take(128) {
        match access {
            Access::ReadConfig { offset, width: bytes } => function.read_config(*offset, &mut [0; 8][..width(*bytes)]),
            Access::WriteConfig {
                offset,
                value,
                width: bytes,
            } => {
                function.write_config(u16::from(*offset), &value.to_le_bytes()[..width(*bytes).min(4)]);
            }
            Access::ReadBar { offset, width: bytes } => {
                function.read_bar(u64::from(*offset), &mut [0; 8][..width(*bytes)]);
            }
            Access::WriteBar {
                offset,
                value,
                width: bytes,
            } => {
                function.write_bar(u64::from(*offset), &value.to_le_bytes()[..width(*bytes)]);
            }
            Access::WriteCommon {
                offset,
                value,
                width: bytes,
            } => {
                function.write_bar(u64::from(offset % 64), &value.to_le_bytes()[..width(*bytes).min(4)]);
            }
            Access::FarBar { offset } => {
                function.read_bar(*offset, &mut [0; 8]);
                function.write_bar(*offset, &[0xff; 8]);
            }
            Access::Start {
                table,
                available,
                used,
                size,
            } => start(&function, [*table, *available, *used], *size),
            Access::Put { address, bytes } => put(&memory, address.resolve(), bytes),
            Access::Kick(queue) => {
                function.write_bar(0x2000 + 4 * u64::from(*queue), &[0, 0]);
                function.handle(Event::Queue(u16::from(*queue)));
                function.handle(Event::Host(usize::from(*queue)));
            }
            Access::PowerOn => {
                function.power_on_reset();
                function.write_config(4, &[6, 0]);
            }
        }
        let mut status = [0];
        function.read_bar(20, &mut status);
        // Connected exactly while the device is live, as far as memory space lets the driver see it.
        if status[0] != 0xff {
            assert_eq!(
                activator.connected(),
                status[0] & 4 != 0 && status[0] & 64 == 0,
                "status {:#x}",
                status[0]
            );
        }
    }
});

fn start(function: &VirtioPci, addresses: [Address; 3], size: u16) {
    function.write_bar(20, &[0]);
    function.write_bar(20, &[3]);
    function.write_bar(8, &1_u32.to_le_bytes());
    function.write_bar(12, &1_u32.to_le_bytes());
    function.write_bar(20, &[11]);
    function.write_bar(22, &[0, 0]);
    function.write_bar(24, &size.to_le_bytes());
    for (register, address) in [32, 40, 48].into_iter().zip(addresses) {
        function.write_bar(register, &(address.resolve() & !0xf).to_le_bytes());
    }
    function.write_bar(28, &[1, 0]);
    function.write_bar(20, &[15]);
}
