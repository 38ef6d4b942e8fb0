//! `node-shim control`: a client of the control socket for people and tests. It prints the answer as one line of JSON.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use clap::{Subcommand, ValueEnum};
use node_shim_protocol::config::GuestNetwork;
use node_shim_protocol::control::{
    AfterSnapshot, AttachDisk, AttachNetwork, Balloon, CONSOLE_PACKET_BYTES, Power, Request, Response,
};
use rustix::event::{PollFd, PollFlags};
use rustix::net::{RecvFlags, SendFlags};

use crate::devices::network;
use crate::packet::{self, PacketError};

/// What to ask for.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Verb {
    /// What the VM does.
    Status,
    /// Presses the power button, switches off, or resets.
    Power {
        /// What.
        #[arg(value_enum)]
        what: PowerVerb,
    },
    /// Stops the vCPUs.
    Pause,
    /// Lets them go on.
    Resume,
    /// Changes what the guest has.
    Resize {
        /// vCPUs.
        #[arg(long)]
        vcpus: Option<u32>,
        /// Bytes of RAM.
        #[arg(long)]
        memory_bytes: Option<u64>,
    },
    /// Plugs a disk.
    AttachDisk {
        /// Its name.
        name: String,
        /// The file with its contents.
        file: PathBuf,
        /// The guest may only read it.
        #[arg(long)]
        read_only: bool,
    },
    /// Unplugs a disk.
    DetachDisk {
        /// Its name.
        name: String,
    },
    /// Plugs a network interface.
    AttachNetwork {
        /// Its name.
        name: String,
        /// The tap, which is there or is made.
        tap: String,
        /// The guest's MAC address.
        #[arg(long)]
        mac: String,
        /// The guest's network in JSON, as `interfaces[].binding.tap.network` of a configuration.
        #[arg(long, value_parser = |text: &str| serde_json::from_str::<GuestNetwork>(text))]
        network: GuestNetwork,
    },
    /// Unplugs a network interface.
    DetachNetwork {
        /// Its name.
        name: String,
    },
    /// Sets the size of the memory balloon.
    Balloon {
        /// Bytes that the guest shall give back.
        bytes: u64,
    },
    /// What the guest says of its memory.
    BalloonStatistics,
    /// Writes the whole VM to a folder.
    Snapshot {
        /// The folder, which must not be there yet, as the VMM sees it.
        folder: PathBuf,
        /// The VM stays paused afterwards.
        #[arg(long)]
        stay_paused: bool,
    },
    /// The guest's serial console on stdin and stdout.
    Console,
}

/// `power`'s argument.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum PowerVerb {
    /// The ACPI power button.
    Button,
    /// Off, at once.
    Off,
    /// A reset, at once.
    Reset,
}

/// Why a request could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    /// Nobody listens.
    #[error("failed to reach a node-shim at {path}: {source}; see that it runs with --control {path}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why not.
        source: PacketError,
    },
    /// A file cannot be opened.
    #[error("failed to open {path}: {source}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the connection to node-shim failed: {0}")]
    Connection(PacketError),
    /// It closed the connection.
    #[error("node-shim closed the connection")]
    Closed,
    /// stdin or stdout failed.
    #[error("failed to pass the console on: {0}")]
    Console(io::Error),
}

/// Makes the request, prints the answer, and says whether it was done.
pub(crate) fn run(socket: &Path, verb: Verb) -> Result<bool, CommandError> {
    let connect_error = |source| CommandError::Connect {
        path: socket.to_owned(),
        source,
    };
    let (request, file) = request(verb)?;
    let connection = packet::connect(socket).map_err(connect_error)?;
    let descriptors: Vec<_> = file.iter().map(AsFd::as_fd).collect();
    packet::send(&connection, &request, &descriptors).map_err(CommandError::Connection)?;
    await_readable(&connection)?;
    let answer = packet::receive::<Response>(&connection).map_err(CommandError::Connection)?;
    let (response, _) = answer.ok_or(CommandError::Closed)?;
    let done = !matches!(response, Response::Error(_));
    if done && request == Request::Console {
        pass_console(&connection)?;
        return Ok(true);
    }
    let text = serde_json::to_string(&response).unwrap_or_default();
    writeln!(io::stdout(), "{text}").map_err(CommandError::Console)?;
    Ok(done)
}

/// The request, and the file that goes with it.
fn request(verb: Verb) -> Result<(Request, Option<OwnedFd>), CommandError> {
    let request = match verb {
        Verb::Status => Request::Status,
        Verb::Power { what } => Request::Power(match what {
            PowerVerb::Button => Power::Button,
            PowerVerb::Off => Power::Off,
            PowerVerb::Reset => Power::Reset,
        }),
        Verb::Pause => Request::Pause,
        Verb::Resume => Request::Resume,
        Verb::Resize { vcpus, memory_bytes } => Request::Resize { vcpus, memory_bytes },
        Verb::AttachDisk { name, file, read_only } => {
            let opened = File::options().read(true).write(!read_only).open(&file);
            let opened = opened.map_err(|source| CommandError::Open { path: file, source })?;
            return Ok((Request::AttachDisk(AttachDisk { name, read_only }), Some(opened.into())));
        }
        Verb::DetachDisk { name } => Request::DetachDisk { name },
        Verb::AttachNetwork {
            name,
            tap,
            mac,
            network,
        } => {
            let opened = network::open_tap_queue(&tap).map_err(|source| CommandError::Open {
                path: tap.into(),
                source,
            })?;
            let request = Request::AttachNetwork(AttachNetwork { name, mac, network });
            return Ok((request, Some(opened)));
        }
        Verb::DetachNetwork { name } => Request::DetachNetwork { name },
        Verb::Balloon { bytes } => Request::Balloon(Balloon::Target { bytes }),
        Verb::BalloonStatistics => Request::Balloon(Balloon::Statistics),
        Verb::Snapshot { folder, stay_paused } => Request::Snapshot {
            folder,
            then: if stay_paused {
                AfterSnapshot::StayPaused
            } else {
                AfterSnapshot::Continue
            },
        },
        Verb::Console => Request::Console,
    };
    Ok((request, None))
}

fn await_readable(connection: &OwnedFd) -> Result<(), CommandError> {
    let connection = connection.as_fd();
    loop {
        match rustix::event::poll(&mut [PollFd::new(&connection, PollFlags::IN)], None) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(CommandError::Console(error.into())),
        }
    }
}

/// Copies stdin to the guest and its output to stdout until the VM ends.
fn pass_console(connection: &OwnedFd) -> Result<(), CommandError> {
    let failed = |error: rustix::io::Errno| CommandError::Console(error.into());
    let (socket, stdin) = (connection.as_fd(), rustix::stdio::stdin());
    let mut input_open = true;
    let mut bytes = [0; 2 * CONSOLE_PACKET_BYTES];
    loop {
        let mut set = vec![PollFd::new(&socket, PollFlags::IN)];
        if input_open {
            set.push(PollFd::new(&stdin, PollFlags::IN));
        }
        match rustix::event::poll(&mut set, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(failed(error)),
        }
        let ready: Vec<bool> = set.iter().map(|fd| !fd.revents().is_empty()).collect();
        if ready.first() == Some(&true) {
            match rustix::net::recv(connection, &mut bytes[..], RecvFlags::empty()) {
                Ok((0, _)) | Err(rustix::io::Errno::CONNRESET) => return Ok(()),
                Ok((count, _)) => {
                    let mut stdout = io::stdout();
                    let written = stdout.write_all(&bytes[..count]).and_then(|()| stdout.flush());
                    written.map_err(CommandError::Console)?;
                }
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        if ready.get(1) == Some(&true) {
            match rustix::io::read(stdin, &mut bytes[..CONSOLE_PACKET_BYTES]) {
                Ok(0) | Err(_) => input_open = false,
                Ok(count) => send_all(connection, &bytes[..count])?,
            }
        }
    }
}

/// Sends one packet, waiting for room.
fn send_all(connection: &OwnedFd, packet: &[u8]) -> Result<(), CommandError> {
    let failed = |error: rustix::io::Errno| CommandError::Console(error.into());
    let socket = connection.as_fd();
    loop {
        match rustix::net::send(connection, packet, SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::AGAIN) => {
                rustix::event::poll(&mut [PollFd::new(&socket, PollFlags::OUT)], None).map_err(failed)?;
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(failed(error)),
        }
    }
}
