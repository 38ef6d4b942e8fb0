//! The table of connections: what the guest's packets do to them, and what comes from the host's sockets.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

use super::connection::{Connection, FromHost, State};
use super::greeting::Greeting;
use super::packet::{Credit, DATA_MAX_BYTES, Operation, Ports, Received, Sent, TYPE_STREAM};
use crate::buffers::Buffers;

/// Most connections, those included whose client has yet to say what it wants: each may hold a buffer of 64 KiB.
pub(super) const CONNECTIONS_MAX: usize = 128;
/// Most packets without data that wait for the guest to take them; then its own packets wait.
const CONTROL_MAX: usize = 256;
/// Host ports of connections that the host makes start here, above what anybody listens on.
const FIRST_HOST_PORT: u32 = 1 << 30;
/// How long a client may take to say what it wants, the guest to answer, and an end to be acknowledged.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most events of the host that are looked at before the guest has its turn again.
const EVENTS_MAX: usize = 64;

const LISTENER: u64 = u64::MAX;
const TIMER: u64 = u64::MAX - 1;

/// Everything that is not queues.
pub(super) struct Muxer {
    path: PathBuf,
    listener: UnixListener,
    acceptable: bool,
    epoll: OwnedFd,
    timer: OwnedFd,
    next_id: u64,
    next_port: u32,
    connections: BTreeMap<u64, Connection>,
    by_ports: BTreeMap<Ports, u64>,
    control: VecDeque<Sent>,
    /// Connections that may have data for the guest, each in it once.
    ready: VecDeque<u64>,
}

impl Muxer {
    /// Listens on a socket; connections of the guest to port n go to the socket whose path ends with `_n` in addition.
    pub(super) fn new(path: &Path, listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let edge = EventFlags::IN | EventFlags::ET;
        epoll::add(&epoll, listener.as_fd(), EventData::new_u64(LISTENER), edge)?;
        epoll::add(&epoll, timer.as_fd(), EventData::new_u64(TIMER), edge)?;
        Ok(Self {
            path: path.to_owned(),
            listener,
            acceptable: true,
            epoll,
            timer,
            next_id: 0,
            next_port: FIRST_HOST_PORT,
            connections: BTreeMap::new(),
            by_ports: BTreeMap::new(),
            control: VecDeque::new(),
            ready: VecDeque::new(),
        })
    }

    /// Readable when anything happens on the host's side.
    pub(super) const fn descriptor(&self) -> &OwnedFd {
        &self.epoll
    }

    /// Drops every connection.
    pub(super) fn clear(&mut self) {
        self.connections.clear();
        self.by_ports.clear();
        self.control.clear();
        self.ready.clear();
    }

    /// Whether the guest must take packets before it may send more.
    pub(super) fn is_full(&self) -> bool {
        self.control.len() >= CONTROL_MAX
    }

    /// Looks at the host's side. `true` when there may be more to look at.
    pub(super) fn on_host(&mut self, now: Instant) -> io::Result<bool> {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        let none = Timespec { tv_sec: 0, tv_nsec: 0 };
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&none)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &events {
            match event.data.u64() {
                LISTENER => self.acceptable = true,
                TIMER => {
                    let mut expirations = [0; 8];
                    // Empty when it was set anew meanwhile.
                    let _ = rustix::io::read(&self.timer, &mut expirations);
                }
                id => self.on_socket(id, event.flags, now),
            }
        }
        self.accept(now)?;
        self.expire(now);
        Ok(events.len() == EVENTS_MAX)
    }

    fn accept(&mut self, now: Instant) -> io::Result<()> {
        let mut budget = EVENTS_MAX;
        while self.acceptable && budget > 0 && !self.is_full() {
            budget -= 1;
            match self.listener.accept() {
                // One too many is closed at once.
                Ok(_) if self.connections.len() >= CONNECTIONS_MAX => {}
                Ok((stream, _)) => {
                    let connection = Connection::new(stream, State::Greeting(Vec::new()), None, Some(now + PATIENCE));
                    let id = self.insert(connection)?;
                    self.greet(id, now);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.acceptable = false,
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
                    ) => {}
                // No descriptor left, most likely: the client waits until there is one.
                Err(_) => return Ok(()),
            }
        }
        Ok(())
    }

    fn insert(&mut self, connection: Connection) -> io::Result<u64> {
        connection.stream.set_nonblocking(true)?;
        let id = self.next_id;
        self.next_id += 1;
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&self.epoll, connection.stream.as_fd(), EventData::new_u64(id), flags)?;
        if let Some(ports) = connection.ports {
            self.by_ports.insert(ports, id);
        }
        self.connections.insert(id, connection);
        Ok(id)
    }

    /// Closing the socket takes it out of the epoll set.
    fn remove(&mut self, id: u64) {
        if let Some(ports) = self.connections.remove(&id).and_then(|connection| connection.ports) {
            self.by_ports.remove(&ports);
        }
    }

    /// Ends a connection, and tells the guest if it knows of it.
    fn abort(&mut self, id: u64) {
        if let Some(ports) = self.connections.get(&id).and_then(|connection| connection.ports) {
            self.control.push_back(Sent::reset(ports));
        }
        self.remove(id);
    }

    fn on_socket(&mut self, id: u64, flags: EventFlags, now: Instant) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        if flags.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR) {
            connection.readable = true;
        }
        match connection.state {
            State::Greeting(_) => self.greet(id, now),
            // A client that does not wait for the answer.
            State::Requested if flags.intersects(EventFlags::HUP | EventFlags::ERR) => self.abort(id),
            State::Requested => {}
            State::Established => {
                if flags.intersects(EventFlags::OUT) && !connection.flush() {
                    self.abort(id);
                    return;
                }
                self.settle(id);
            }
        }
    }

    /// Reads what a client wants, and asks the guest.
    fn greet(&mut self, id: u64, now: Instant) {
        let greeting = self.connections.get_mut(&id).and_then(Connection::read_greeting);
        match greeting {
            Some(Greeting::More) => {}
            Some(Greeting::Connect(guest)) => {
                let host = self.free_port(guest);
                let Some(connection) = self.connections.get_mut(&id) else {
                    return;
                };
                let ports = Ports { host, guest };
                connection.ports = Some(ports);
                connection.state = State::Requested;
                connection.deadline = Some(now + PATIENCE);
                let credit = connection.credit();
                self.by_ports.insert(ports, id);
                self.control
                    .push_back(Sent::control(ports, Operation::Request, 0, credit));
            }
            Some(Greeting::Wrong) | None => self.remove(id),
        }
    }

    /// A host port that no connection to this port of the guest has. There are more ports than connections.
    fn free_port(&mut self, guest: u32) -> u32 {
        loop {
            let host = self.next_port;
            self.next_port = host.checked_add(1).unwrap_or(FIRST_HOST_PORT);
            if !self.by_ports.contains_key(&Ports { host, guest }) {
                return host;
            }
        }
    }

    fn expire(&mut self, now: Instant) {
        let late = |(id, connection): (&u64, &Connection)| {
            connection
                .deadline
                .is_some_and(|deadline| deadline <= now)
                .then_some(*id)
        };
        let late: Vec<u64> = self.connections.iter().filter_map(late).collect();
        for id in late {
            self.abort(id);
        }
    }

    /// Sets the timer to the next deadline.
    pub(super) fn set_timer(&self) -> io::Result<()> {
        let next = self
            .connections
            .values()
            .filter_map(|connection| connection.deadline)
            .min();
        let wait = next.map_or(Duration::ZERO, |deadline| {
            // Zero would switch the timer off.
            deadline
                .saturating_duration_since(Instant::now())
                .max(Duration::from_millis(1))
        });
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let timer = Itimerspec {
            it_interval: zero,
            it_value: Timespec {
                tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(wait.subsec_nanos()),
            },
        };
        rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &timer)?;
        Ok(())
    }

    /// A packet of the guest with its data.
    pub(super) fn on_packet(&mut self, packet: &Received, data: Buffers<'_>, now: Instant) {
        let ports = packet.ports;
        let known = self.by_ports.get(&ports).copied();
        let operation = packet.operation.filter(|_| packet.kind == TYPE_STREAM);
        match (known, operation) {
            (Some(id), Some(Operation::Reset)) => self.remove(id),
            (None, Some(Operation::Reset)) => {}
            (None, Some(Operation::Request)) => self.connect(packet),
            (Some(id), Some(Operation::Response)) => self.established(id, packet.credit),
            (
                Some(id),
                Some(
                    operation @ (Operation::Data
                    | Operation::Shutdown
                    | Operation::CreditUpdate
                    | Operation::CreditRequest),
                ),
            ) => self.on_established(id, operation, packet, data, now),
            // The ports are taken, there is no such connection, or no such operation.
            (Some(id), Some(Operation::Request) | None) => self.abort(id),
            (
                None,
                Some(
                    Operation::Response
                    | Operation::Data
                    | Operation::Shutdown
                    | Operation::CreditUpdate
                    | Operation::CreditRequest,
                )
                | None,
            ) => self.control.push_back(Sent::reset(ports)),
        }
    }

    /// The guest connects to a port of the host.
    fn connect(&mut self, packet: &Received) {
        let ports = packet.ports;
        let opened = if self.connections.len() < CONNECTIONS_MAX {
            connect_without_waiting(&port_path(&self.path, ports.host))
        } else {
            Err(io::ErrorKind::QuotaExceeded.into())
        };
        let inserted = opened.and_then(|stream| {
            let mut connection = Connection::new(stream, State::Established, Some(ports), None);
            connection.set_peer(packet.credit);
            let credit = connection.credit();
            self.insert(connection).map(|_| credit)
        });
        let answer = match inserted {
            Ok(credit) => Sent::control(ports, Operation::Response, 0, credit),
            // Nobody listens there.
            Err(_) => Sent::reset(ports),
        };
        self.control.push_back(answer);
    }

    fn established(&mut self, id: u64, credit: Credit) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        if connection.state != State::Requested || !connection.say_ok() {
            self.abort(id);
            return;
        }
        connection.state = State::Established;
        connection.deadline = None;
        connection.set_peer(credit);
        self.settle(id);
    }

    fn on_established(&mut self, id: u64, operation: Operation, packet: &Received, data: Buffers<'_>, now: Instant) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        if connection.state != State::Established {
            self.abort(id);
            return;
        }
        connection.set_peer(packet.credit);
        let fine = match operation {
            Operation::Data => packet.length <= DATA_MAX_BYTES && connection.take(data),
            Operation::Shutdown => {
                connection.guest_shut(packet.flags);
                // What it sent is written for as long as the client reads; a client that does not is not waited for.
                connection.deadline = connection
                    .deadline
                    .or(Some(now + PATIENCE).filter(|_| packet.flags == 3));
                true
            }
            Operation::CreditRequest => {
                let credit = connection.credit();
                self.control
                    .push_back(Sent::control(packet.ports, Operation::CreditUpdate, 0, credit));
                true
            }
            Operation::CreditUpdate => true,
            Operation::Request | Operation::Response | Operation::Reset => false,
        };
        if fine {
            self.settle(id);
        } else {
            self.abort(id);
        }
    }

    /// After anything happened to a connection: what follows from it.
    fn settle(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        if connection.is_over() {
            self.abort(id);
            return;
        }
        if connection.owes_credit()
            && let Some(ports) = connection.ports
        {
            let credit = connection.credit();
            self.control
                .push_back(Sent::control(ports, Operation::CreditUpdate, 0, credit));
        }
        if connection.wants_to_send() && !connection.listed {
            connection.listed = true;
            self.ready.push_back(id);
        }
    }

    /// The next packet without data for the guest.
    pub(super) fn next_control(&mut self) -> Option<Sent> {
        self.control.pop_front()
    }

    /// Whether there is anything that a buffer of the guest's would be of use for.
    pub(super) fn has_packets(&mut self) -> bool {
        while let Some(id) = self.ready.front() {
            let Some(connection) = self.connections.get_mut(id) else {
                self.ready.pop_front();
                continue;
            };
            if !connection.wants_to_send() {
                connection.listed = false;
                self.ready.pop_front();
            } else if connection.room() == 0 {
                // The guest says when there is room again; it is asked once.
                connection.listed = false;
                if !std::mem::replace(&mut connection.credit_asked, true)
                    && let Some(ports) = connection.ports
                {
                    let credit = connection.credit();
                    self.control
                        .push_back(Sent::control(ports, Operation::CreditRequest, 0, credit));
                }
                self.ready.pop_front();
            } else {
                return true;
            }
        }
        !self.control.is_empty()
    }

    /// Reads data of the connection whose turn it is into a buffer of the guest's, and returns the header to put before it.
    pub(super) fn next_data(&mut self, buffers: &mut Buffers<'_>, now: Instant) -> Option<Sent> {
        let id = self.ready.pop_front()?;
        let connection = self.connections.get_mut(&id)?;
        connection.listed = false;
        let ports = connection.ports?;
        buffers.truncate(connection.room().min(DATA_MAX_BYTES) as usize);
        match connection.read_into(buffers) {
            FromHost::Data(length) => {
                let credit = connection.credit();
                self.settle(id);
                Some(Sent {
                    ports,
                    operation: Operation::Data,
                    length,
                    flags: 0,
                    credit,
                })
            }
            FromHost::Nothing => {
                // Again, if it was only interrupted.
                self.settle(id);
                None
            }
            FromHost::End => {
                let gone = is_gone(&connection.stream);
                let flags = connection.host_shut(gone);
                if connection.host_gone() {
                    connection.deadline = Some(now + PATIENCE);
                }
                let packet = Sent::control(ports, Operation::Shutdown, flags, connection.credit());
                self.control.push_back(packet);
                self.settle(id);
                None
            }
            FromHost::Broken => {
                self.abort(id);
                None
            }
        }
    }
}

/// Whether a client has closed its socket, rather than only said that it sends no more.
fn is_gone(stream: &UnixStream) -> bool {
    use rustix::event::{PollFd, PollFlags, poll};
    let mut descriptors = [PollFd::new(stream, PollFlags::OUT)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut descriptors, Some(&now)).is_err() || descriptors[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
}

/// Where connections to a port of the host go.
fn port_path(path: &Path, port: u32) -> PathBuf {
    let mut name: OsString = path.as_os_str().to_owned();
    name.push(format!("_{port}"));
    PathBuf::from(name)
}

/// A listener whose backlog is full refuses: the event loop waits for nobody.
fn connect_without_waiting(path: &Path) -> io::Result<UnixStream> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(UnixStream::from(socket))
}
