//! Load on the first interface (virtio 1.2, 5.1), as plain frames without offloads.

use crate::queue::{Part, Queue};
use crate::virtio::Device;
use crate::{memory, number, serial};

const TYPE: u16 = 1;
/// `VIRTIO_NET_F_MAC`: a device has an address that it knows.
const MAC: u64 = 1 << 5;
/// Bytes before a frame.
const HEADER_BYTES: u32 = 12;
/// Largest frame.
const FRAME_BYTES: u32 = 1514;
/// Bytes of each buffer.
const BUFFER_BYTES: u64 = 2048;
/// Buffers of each direction.
const BUFFERS: u16 = 128;
/// Of the frames that are sent: Ethernet's and IP's headers, and UDP's.
const HEADERS_BYTES: u32 = 14 + 20 + 8;
/// The address that Tandem gives a guest, and that of the other end.
const FROM: [u8; 4] = [10, 0, 2, 2];
const TO: [u8; 4] = [10, 0, 2, 1];

/// The interface, once it was used.
pub(crate) struct Interface {
    receive: Queue,
    transmit: Queue,
    mac: [u8; 6],
}

/// Carries out a command.
pub(crate) fn command<'a>(
    interface: &mut Option<Interface>,
    words: &mut impl Iterator<Item = &'a str>,
) -> Result<(), &'static str> {
    if interface.is_none() {
        *interface = Some(open()?);
    }
    let interface = interface.as_mut().ok_or("there is no interface")?;
    match words.next() {
        Some("send") => {
            let (bytes, count) = (number(words)?, number(words)?);
            let kicks = interface.transmit.kicks;
            send(interface, bytes, count)?;
            serial::put_line(format_args!("sent {count} {}", interface.transmit.kicks - kicks));
        }
        Some("receive") => {
            let count = number(words)?;
            serial::put_line(format_args!("receiving"));
            let bytes = receive(interface, count)?;
            serial::put_line(format_args!("received {count} {bytes}"));
        }
        _ => return Err("neither send nor receive"),
    }
    Ok(())
}

fn buffer(direction: u64, index: u16) -> u64 {
    memory::DATA + (direction * u64::from(BUFFERS) + u64::from(index)) * BUFFER_BYTES
}

fn open() -> Result<Interface, &'static str> {
    let device = Device::open(TYPE, MAC)?;
    let (mut receive, transmit) = (device.queue(0, 1)?, device.queue(1, 2)?);
    if receive.size() < BUFFERS || transmit.size() < BUFFERS {
        return Err("a queue is too small");
    }
    let mac = core::array::from_fn(|index| memory::read(device.config + index as u64));
    for index in 0..BUFFERS {
        let part = Part {
            address: buffer(0, index),
            bytes: BUFFER_BYTES as u32,
            is_written: true,
        };
        receive.describe(index, &[part]);
        receive.give(index);
    }
    device.start();
    receive.kick();
    Ok(Interface { receive, transmit, mac })
}

/// Writes a frame: UDP from the guest's own address to the other end's port 9.
fn write_frame(at: u64, mac: [u8; 6], bytes: u32) {
    let total = (bytes - 14) as u16;
    let mut frame = [0_u8; HEADERS_BYTES as usize];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&mac);
    frame[12] = 8;
    let ip = &mut frame[14..34];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&total.to_be_bytes());
    ip[8] = 64;
    ip[9] = 17;
    ip[12..16].copy_from_slice(&FROM);
    ip[16..20].copy_from_slice(&TO);
    let sum: u32 = ip
        .as_chunks()
        .0
        .iter()
        .map(|&word| u32::from(u16::from_be_bytes(word)))
        .sum();
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    frame[34..36].copy_from_slice(&9_u16.to_be_bytes());
    frame[36..38].copy_from_slice(&9_u16.to_be_bytes());
    frame[38..40].copy_from_slice(&(total - 20).to_be_bytes());
    for (offset, byte) in (0..).zip(frame) {
        memory::write(at + offset, byte);
    }
}

fn send(interface: &mut Interface, bytes: u32, count: u32) -> Result<(), &'static str> {
    if !(HEADERS_BYTES..=FRAME_BYTES).contains(&bytes) {
        return Err("a frame has 42 to 1514 bytes");
    }
    let queue = &mut interface.transmit;
    for index in 0..BUFFERS {
        let address = buffer(1, index);
        for offset in 0..u64::from(HEADER_BYTES) {
            memory::write(address + offset, 0_u8);
        }
        write_frame(address + u64::from(HEADER_BYTES), interface.mac, bytes);
        queue.describe(
            index,
            &[Part {
                address,
                bytes: HEADER_BYTES + bytes,
                is_written: false,
            }],
        );
    }
    let (mut given, mut taken) = (0, 0);
    while given < count && given < u32::from(BUFFERS) {
        queue.give(given as u16);
        given += 1;
    }
    queue.kick();
    while taken < count {
        let mut is_any = false;
        while let Some((head, _)) = queue.take()? {
            taken += 1;
            if given < count {
                queue.give(head);
                given += 1;
                is_any = true;
            }
        }
        if is_any {
            queue.kick();
        }
    }
    Ok(())
}

fn receive(interface: &mut Interface, count: u32) -> Result<u64, &'static str> {
    let (mut total, mut taken) = (0_u64, 0);
    while taken < count {
        let mut is_any = false;
        while let Some((head, bytes)) = interface.receive.take()? {
            if !(HEADER_BYTES..=BUFFER_BYTES as u32).contains(&bytes) {
                return Err("a frame of an impossible length");
            }
            total += u64::from(bytes - HEADER_BYTES);
            taken += 1;
            interface.receive.give(head);
            is_any = true;
        }
        if is_any {
            interface.receive.kick();
        }
    }
    Ok(total)
}
