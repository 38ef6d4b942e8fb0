//! How much a hostile disk can make this library do.

use std::time::Duration;

/// Bounds on everything that a disk's contents decide.
///
/// Memory stays within a few times [`Limits::call_bytes`] plus [`Limits::unpacked_kernel_bytes`] where a kernel is unpacked: a file
/// system's reader keeps at most a small multiple of what it has read in one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes that may be read from the disk while looking for a kernel.
    pub search_bytes: u64,
    /// Bytes that may be read from the disk for one operation on a file system, beyond the bytes that were asked for.
    pub call_bytes: u64,
    /// Time that looking for a kernel may take, and again reading what was found. Only what reads the disk looks at the clock: packed files
    /// of btrfs can take far longer to unpack than to read.
    pub time: Duration,
    /// Partitions that are looked at, the first ones.
    pub partitions: usize,
    /// Entries of one directory that are looked at.
    pub directory_entries: usize,
    /// Bytes of one configuration file.
    pub configuration_bytes: u64,
    /// Boot loader entries (Boot Loader Specification files, unified kernels, GRUB's menu entries) that are looked at.
    pub entries: usize,
    /// Statements that a GRUB configuration may run; each 256 bytes of words cost as much as one.
    pub script_steps: u32,
    /// How deep a GRUB configuration's blocks, functions and files may be nested.
    pub script_nesting: u32,
    /// Bytes of all GRUB variables together, and of one expanded command.
    pub script_bytes: usize,
    /// Bytes of a command line. Linux for x86 takes at most 2047 (`COMMAND_LINE_SIZE`).
    pub command_line_bytes: usize,
    /// Bytes of a kernel as it lies on the disk.
    pub kernel_bytes: u64,
    /// Bytes of all initial RAM disks together.
    pub initrd_bytes: u64,
    /// Initial RAM disks.
    pub initrds: usize,
    /// Bytes of a kernel after it was unpacked.
    pub unpacked_kernel_bytes: u64,
    /// Places named in an error.
    pub places: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            search_bytes: 1 << 30,
            call_bytes: 64 << 20,
            time: Duration::from_mins(2),
            partitions: 32,
            directory_entries: 4096,
            configuration_bytes: 1 << 20,
            entries: 256,
            script_steps: 100_000,
            script_nesting: 40,
            script_bytes: 1 << 20,
            command_line_bytes: 4096,
            kernel_bytes: 256 << 20,
            initrd_bytes: 1 << 30,
            initrds: 16,
            unpacked_kernel_bytes: 512 << 20,
            places: 24,
        }
    }
}
