//! Frames of the polling guest, through a tap, in a network namespace in which nobody else is.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::Bench;
use crate::figure::Figure;
use crate::monitor::{Aio, GATEWAY_MAC, GUEST_MAC, Machine, Monitor};
use crate::report;
use crate::vm::Vm;

const GUEST_MIB: u64 = 128;
const ROUNDS: u32 = 5;
const TAP: &str = "bench0";
const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 1);
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// Discard: nobody listens there.
const PORT: u16 = 9;
/// Bytes of the headers of Ethernet, IP and UDP.
const HEADERS_BYTES: usize = 42;
/// `ENOBUFS`.
const NO_BUFFERS: i32 = 105;
const MONITORS: [Monitor; 2] = [Monitor::NodeShim, Monitor::Q35(Aio::Uring)];
const SEND: [(Figure, usize, u32); 2] = [(Figure::Send1514, 1514, 100_000), (Figure::Send64, 64, 200_000)];
const RECEIVE: [(Figure, usize, u32); 2] = [(Figure::Receive1514, 1514, 50_000), (Figure::Receive64, 64, 50_000)];

fn run(arguments: &[&str]) -> Result<()> {
    let status = Command::new("ip")
        .args(arguments)
        .status()
        .context("failed to run ip: apt-get install iproute2")?;
    ensure!(status.success(), "`ip {}` ends with {status}", arguments.join(" "));
    Ok(())
}

/// In rounds, each monitor in turn on the same tap.
pub(super) fn measure(bench: &Bench) -> Result<()> {
    run(&["tuntap", "add", "dev", TAP, "mode", "tap", "vnet_hdr"])?;
    let result = measure_on_tap(bench);
    run(&["link", "delete", TAP])?;
    result
}

fn measure_on_tap(bench: &Bench) -> Result<()> {
    run(&["address", "add", &format!("{HOST}/24"), "dev", TAP])?;
    run(&["link", "set", TAP, "address", GATEWAY_MAC, "up"])?;
    run(&["neighbour", "add", &GUEST.to_string(), "lladdr", GUEST_MAC, "dev", TAP])?;
    let machine = Machine {
        tap: Some(TAP.to_owned()),
        ..bench.machine(GUEST_MIB)
    };
    let place = bench.place()?;
    for _ in 0..bench.rounds.unwrap_or(ROUNDS) {
        for monitor in MONITORS {
            let mut vm = bench.start_up(monitor, &machine, place.path())?;
            for (figure, bytes, count) in SEND {
                send(&mut vm, bytes, count / 20)?;
                let rate = send(&mut vm, bytes, count).with_context(|| format!("{monitor}, {}", figure.name()))?;
                report(figure, &monitor.to_string(), rate.round());
            }
            for (figure, bytes, count) in RECEIVE {
                let flood = Flood::start(bytes)?;
                receive(&mut vm, count / 20)?;
                let rate = receive(&mut vm, count).with_context(|| format!("{monitor}, {}", figure.name()))?;
                flood.stop()?;
                report(figure, &monitor.to_string(), rate.round());
            }
        }
    }
    Ok(())
}

/// Frames a second that the guest sends, and that arrive at the tap's other side.
fn send(vm: &mut Vm, bytes: usize, count: u32) -> Result<f64> {
    let before = arrived()?;
    let started = Instant::now();
    vm.tell(&format!("net send {bytes} {count}"))?;
    vm.line_after("sent ")?;
    let took = started.elapsed().as_secs_f64();
    let arrived = arrived()? - before;
    ensure!(arrived >= u64::from(count), "{arrived} of {count} frames arrived");
    Ok(f64::from(count) / took)
}

/// Frames that the tap has had from the guest.
fn arrived() -> Result<u64> {
    // /sys may be that of another network namespace.
    let devices = std::fs::read_to_string("/proc/net/dev").context("failed to read /proc/net/dev")?;
    let numbers = devices
        .lines()
        .find_map(|line| line.trim().strip_prefix(TAP)?.strip_prefix(':'));
    let packets = numbers.and_then(|numbers| numbers.split_whitespace().nth(1));
    packets
        .and_then(|packets| packets.parse().ok())
        .with_context(|| format!("{TAP} is not in /proc/net/dev"))
}

/// Frames a second that the guest receives, of as many as the host can send.
fn receive(vm: &mut Vm, count: u32) -> Result<f64> {
    vm.tell(&format!("net receive {count}"))?;
    vm.line_after("receiving")?;
    let started = Instant::now();
    vm.line_after("received ")?;
    Ok(f64::from(count) / started.elapsed().as_secs_f64())
}

/// A thread that sends datagrams to the guest as fast as it can.
struct Flood {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<std::io::Result<()>>,
}

impl Flood {
    fn start(frame_bytes: usize) -> Result<Self> {
        let socket = UdpSocket::bind((HOST, 0)).context("failed to make a socket")?;
        socket.connect((GUEST, PORT)).context("failed to connect a socket")?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let datagram = vec![0; frame_bytes - HEADERS_BYTES];
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match socket.send(&datagram) {
                    // The tap's queue is full.
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::OutOfMemory) => {}
                    Err(error) if error.raw_os_error() == Some(NO_BUFFERS) => {}
                    result => drop(result?),
                }
            }
            Ok(())
        });
        Ok(Self { stop, thread })
    }

    fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let result = self.thread.join().map_err(|_| anyhow::anyhow!("the sender panicked"))?;
        result.context("failed to send")
    }
}
