//! Network throughput between a guest and the host of its tap.

use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::{Bench, told, told_at_cost};
use crate::figure::Figure;
use crate::monitor::{Aio, GATEWAY_MAC, Machine, Monitor};
use crate::profile::Profile;
use crate::vm::Vm;
use crate::{report, say};

const ROUNDS: u32 = 3;
const SECONDS: u32 = 4;
const OMIT_SECONDS: u32 = 1;
const TAP: &str = "tap0";
const HOST: &str = "10.0.2.1";
const PORT: u16 = 7001;
const MBIT_BYTES: f64 = 1e6 / 8.0;
/// What TCP has in a frame of Ethernet; profiles are for each of these, however many of them cross the queues at once.
const SEGMENT_BYTES: f64 = 1448.0;
const MONITORS: [Monitor; 2] = [Monitor::NodeShim, Monitor::Q35(Aio::Uring)];
/// The figure, and more of what iperf3 is told.
const TCP: [(Figure, &str); 4] = [
    (Figure::TcpSend1, ""),
    (Figure::TcpSend4, "--parallel 4"),
    (Figure::TcpReceive1, "--reverse"),
    (Figure::TcpReceive4, "--reverse --parallel 4"),
];

/// A process that ends with its owner.
struct Server(Child);

impl Server {
    fn start(command: &mut Command) -> Result<Self> {
        let child = command.stdout(Stdio::null()).spawn();
        Ok(Self(child.with_context(|| {
            format!("failed to run {}", command.get_program().display())
        })?))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let status = Command::new(program).args(arguments).stdout(Stdio::null()).status();
    let status = status.with_context(|| format!("failed to run {program}"))?;
    ensure!(status.success(), "{program} {arguments:?} ends with {status}");
    Ok(())
}

/// In rounds, each monitor in turn on the same tap.
pub(super) fn measure(bench: &Bench) -> Result<()> {
    run("tunctl", &["-t", TAP])?;
    let result = measure_on_tap(bench);
    run("tunctl", &["-d", TAP])?;
    result
}

fn measure_on_tap(bench: &Bench) -> Result<()> {
    run("ip", &["addr", "add", &format!("{HOST}/24"), "dev", TAP])?;
    run("ip", &["link", "set", TAP, "address", GATEWAY_MAC])?;
    run("ip", &["link", "set", TAP, "up"])?;
    let _iperf = Server::start(Command::new("iperf3").arg("--server"))?;
    let this = std::env::current_exe().context("failed to find this program")?;
    let _answers = Server::start(Command::new(this).args(["answer", &format!("{HOST}:{PORT}")]))?;
    let place = tempfile::tempdir().context("failed to make a directory")?;
    for _ in 0..bench.rounds.unwrap_or(ROUNDS) {
        for monitor in MONITORS {
            let machine = Machine {
                tap: Some(TAP.to_owned()),
                ..bench.machine()
            };
            let mut vm = bench.start_with_tools(monitor, machine, place.path())?;
            told(&mut vm, "network")?;
            measure_one(&mut vm, &monitor.to_string())?;
        }
    }
    Ok(())
}

fn measure_one(vm: &mut Vm, monitor: &str) -> Result<()> {
    for (figure, more) in TCP {
        let command = format!(
            "iperf3 --client {HOST} --time {SECONDS} --omit {OMIT_SECONDS} --format m {more} | sed -n 's/.*receiver/RESULT &/p'"
        );
        let (lines, spent) = told_at_cost(vm, &command)?;
        // The last is the sum, where there are several streams.
        let line = lines
            .last()
            .with_context(|| format!("iperf3 says nothing of {}", figure.name()))?;
        let rate = megabits(line).with_context(|| format!("iperf3 says: {line}"))?;
        say(&Profile {
            figure,
            monitor,
            operations: rate * MBIT_BYTES / SEGMENT_BYTES * f64::from(SECONDS + OMIT_SECONDS),
            spent,
        });
        report(figure, monitor, rate);
    }
    let udp = format!(
        "iperf3 --client {HOST} --udp --length 64 --bandwidth 0 --time {SECONDS} | sed -n 's/.*receiver/RESULT &/p'"
    );
    let (lines, spent) = told_at_cost(vm, &udp)?;
    let line = lines.last().context("iperf3 says nothing of UDP")?;
    let (arrived, all) = arrived(line).with_context(|| format!("iperf3 says: {line}"))?;
    say(&Profile {
        figure: Figure::UdpSend,
        monitor,
        operations: all,
        spent,
    });
    report(Figure::UdpSend, monitor, arrived / f64::from(SECONDS));
    let lines = told(
        vm,
        &format!("/node-shim-bench ask {HOST}:{PORT} {SECONDS} | sed 's/^/RESULT /'"),
    )?;
    let line = lines.last().context("no request was answered")?;
    report(
        Figure::RequestResponse,
        monitor,
        line.parse().with_context(|| format!("the guest says: {line}"))?,
    );
    Ok(())
}

/// `[SUM]   0.00-4.00   sec   812 MBytes  1703 Mbits/sec                  receiver`
fn megabits(line: &str) -> Option<f64> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let unit = words.iter().position(|word| *word == "Mbits/sec")?;
    words.get(unit.checked_sub(1)?)?.parse().ok()
}

/// Packets that arrived, and that were sent, of a line that has those that were lost, and all:
/// `[  5]   0.00-4.04   sec  3.70 MBytes  7.69 Mbits/sec  0.021 ms  1234/61854 (2%)  receiver`.
fn arrived(line: &str) -> Option<(f64, f64)> {
    let (lost, all) = line
        .split_whitespace()
        .filter_map(|word| word.split_once('/'))
        .next_back()?;
    let (lost, all): (f64, f64) = (lost.parse().ok()?, all.parse().ok()?);
    Some((all - lost, all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iperfs_lines_are_understood() {
        let tcp = "[SUM]   0.00-4.00   sec   812 MBytes  1703 Mbits/sec                  receiver";
        assert_eq!(megabits(tcp), Some(1703.0));
        let udp = "[  5]   0.00-4.04   sec  3.70 MBytes  7.69 Mbits/sec  0.021 ms  1234/61854 (2%)  receiver";
        assert_eq!(arrived(udp), Some((60620.0, 61854.0)));
        assert_eq!((megabits("receiver"), arrived("receiver")), (None, None));
    }
}
