//! What is measured, and the bar for it (issue "the VMM: jailed, fuzzed, and ahead of its peers").

/// What is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Better {
    /// Time and memory.
    Lower,
    /// Throughput.
    Higher,
}

/// What a figure must reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Bar {
    /// At most this, in the figure's unit.
    AtMost(f64),
    /// Ours through the best peer's: at most this.
    RatioAtMost(f64),
    /// Ours through the best peer's: at least this.
    RatioAtLeast(f64),
    /// It is only told.
    None,
}

/// A row's number out of its samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Statistic {
    /// The middle one.
    Median,
    /// What 95 of 100 are not above.
    Percentile95,
}

/// A row of the table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Row {
    /// What it says.
    pub(crate) title: &'static str,
    /// Of the samples.
    pub(crate) statistic: Statistic,
    /// What it must reach.
    pub(crate) bar: Bar,
}

macro_rules! figures {
    ($($(#[$doc:meta])* $variant:ident $name:literal $unit:literal $better:ident [$($title:literal $statistic:ident $bar:expr),+];)+) => {
        /// A thing that is measured.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum Figure { $($(#[$doc])* $variant),+ }

        impl Figure {
            /// All, in the table's order.
            pub(crate) const ALL: &[Self] = &[$(Self::$variant),+];

            /// As it is in samples.
            pub(crate) fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            /// What its samples are in.
            pub(crate) fn unit(self) -> &'static str {
                match self { $(Self::$variant => $unit),+ }
            }

            /// What is better.
            pub(crate) fn better(self) -> Better {
                match self { $(Self::$variant => Better::$better),+ }
            }

            /// Its rows in the table.
            pub(crate) fn rows(self) -> &'static [Row] {
                match self {
                    $(Self::$variant => &[$(Row { title: $title, statistic: Statistic::$statistic, bar: $bar }),+]),+
                }
            }
        }
    };
}

figures! {
    /// Resident pages, private and shared, that are not the guest's.
    Memory "memory" "KiB" Lower ["native: memory of the VMM beyond guest RAM, 1 vCPU, 128 MiB" Median Bar::AtMost(4096.0)];
    /// From starting the process to the guest's first output, which is its third instruction.
    Start "start" "ms" Lower [
        "native: exec to first guest instruction" Median Bar::AtMost(5.0),
        "native: exec to first guest instruction, 95th percentile" Percentile95 Bar::AtMost(5.0)
    ];
    /// By the monitor's own clock, from its start to vCPUs that run.
    Restore "restore" "ms" Lower ["native: restore to running, 1 GiB guest" Median Bar::AtMost(10.0)];
    /// From starting the process to an answer of the restored guest.
    RestoreAnswer "restore-answer" "ms" Lower ["native: exec to the restored guest's first answer, 1 GiB guest" Median Bar::None];
    /// Size of the file.
    Binary "binary" "KiB" Lower ["static binary" Median Bar::AtMost(6_000_000.0 / 1024.0)];
    /// Random reads of 4 KiB, one at a time.
    Read1 "read-1" "IO/s" Higher ["native: 4 KiB random read, depth 1" Median Bar::RatioAtLeast(1.0)];
    /// Random reads of 4 KiB, 32 at a time.
    Read32 "read-32" "IO/s" Higher ["native: 4 KiB random read, depth 32" Median Bar::RatioAtLeast(1.0)];
    /// Random writes of 4 KiB, one at a time.
    Write1 "write-1" "IO/s" Higher ["native: 4 KiB random write, depth 1" Median Bar::RatioAtLeast(1.0)];
    /// Random writes of 4 KiB, 32 at a time.
    Write32 "write-32" "IO/s" Higher ["native: 4 KiB random write, depth 32" Median Bar::RatioAtLeast(1.0)];
    /// Reads of 1 MiB in order, 4 at a time.
    ReadMib "read-mib" "MiB/s" Higher ["native: 1 MiB sequential read" Median Bar::RatioAtLeast(1.0)];
    /// Writes of 1 MiB in order, 4 at a time.
    WriteMib "write-mib" "MiB/s" Higher ["native: 1 MiB sequential write" Median Bar::RatioAtLeast(1.0)];
    /// Frames of 1,514 bytes from the guest.
    Send1514 "send-1514" "frames/s" Higher ["native: sent frames of 1514 bytes" Median Bar::RatioAtLeast(1.0)];
    /// Frames of 64 bytes from the guest.
    Send64 "send-64" "frames/s" Higher ["native: sent frames of 64 bytes" Median Bar::RatioAtLeast(1.0)];
    /// Frames of 1,514 bytes to the guest.
    Receive1514 "receive-1514" "frames/s" Higher ["native: received frames of 1514 bytes" Median Bar::RatioAtLeast(1.0)];
    /// Frames of 64 bytes to the guest.
    Receive64 "receive-64" "frames/s" Higher ["native: received frames of 64 bytes" Median Bar::RatioAtLeast(1.0)];
    /// From starting the monitor to the guest's init.
    Boot "boot" "s" Lower ["emulated: exec to init, unmodified Debian kernel" Median Bar::RatioAtMost(0.8)];
    /// The guest's own clock when its init starts.
    BootKernel "boot-kernel" "s" Lower ["emulated: kernel start to init, unmodified Debian kernel" Median Bar::RatioAtMost(0.8)];
    /// fio: random reads of 4 KiB, one at a time.
    FioRead1 "fio-read-1" "IO/s" Higher ["emulated: fio 4 KiB random read, depth 1" Median Bar::RatioAtLeast(1.0)];
    /// fio: random reads of 4 KiB, 32 at a time.
    FioRead32 "fio-read-32" "IO/s" Higher ["emulated: fio 4 KiB random read, depth 32" Median Bar::RatioAtLeast(1.0)];
    /// fio: random writes of 4 KiB, one at a time.
    FioWrite1 "fio-write-1" "IO/s" Higher ["emulated: fio 4 KiB random write, depth 1" Median Bar::RatioAtLeast(1.0)];
    /// fio: random writes of 4 KiB, 32 at a time.
    FioWrite32 "fio-write-32" "IO/s" Higher ["emulated: fio 4 KiB random write, depth 32" Median Bar::RatioAtLeast(1.0)];
    /// fio: reads of 1 MiB in order.
    FioReadMib "fio-read-mib" "MiB/s" Higher ["emulated: fio 1 MiB sequential read" Median Bar::RatioAtLeast(1.0)];
    /// fio: writes of 1 MiB in order.
    FioWriteMib "fio-write-mib" "MiB/s" Higher ["emulated: fio 1 MiB sequential write" Median Bar::RatioAtLeast(1.0)];
    /// iperf3: one TCP stream from the guest.
    TcpSend1 "tcp-send-1" "Mbit/s" Higher ["emulated: TCP from the guest, 1 stream" Median Bar::RatioAtLeast(1.0)];
    /// iperf3: four TCP streams from the guest.
    TcpSend4 "tcp-send-4" "Mbit/s" Higher ["emulated: TCP from the guest, 4 streams" Median Bar::RatioAtLeast(1.0)];
    /// iperf3: one TCP stream to the guest.
    TcpReceive1 "tcp-receive-1" "Mbit/s" Higher ["emulated: TCP to the guest, 1 stream" Median Bar::RatioAtLeast(1.0)];
    /// iperf3: four TCP streams to the guest.
    TcpReceive4 "tcp-receive-4" "Mbit/s" Higher ["emulated: TCP to the guest, 4 streams" Median Bar::RatioAtLeast(1.0)];
    /// One byte there and back over TCP.
    RequestResponse "tcp-rr" "1/s" Higher ["emulated: TCP request and response" Median Bar::RatioAtLeast(1.0)];
    /// iperf3: UDP datagrams of 64 bytes that arrive from the guest.
    UdpSend "udp-send-64" "packets/s" Higher ["emulated: UDP of 64 bytes from the guest" Median Bar::RatioAtLeast(1.0)];
}

impl Figure {
    /// The figure with this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|figure| figure.name() == name)
    }
}
