//! Reading a disk, bounded.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// What a read costs beyond its bytes, so that their number is bounded too.
const READ_COST_BYTES: u64 = 512;

/// Random access to a disk's contents: a raw file, or what a format such as qcow2 makes of one.
pub trait Disk {
    /// Size in bytes. It does not change.
    fn size(&self) -> u64;

    /// Fills `buffer` from `offset` on. The caller keeps to [`Disk::size`].
    ///
    /// # Errors
    /// Of the storage behind it.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

/// A raw image.
#[derive(Debug)]
pub struct RawDisk {
    file: File,
    size: u64,
}

impl RawDisk {
    /// Uses an open image of `size` bytes.
    pub fn new(file: File, size: u64) -> Self {
        Self { file, size }
    }
}

impl Disk for RawDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }
}

impl Disk for Vec<u8> {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let bytes = usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..start.checked_add(buffer.len())?))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }
}

/// How much may still be read: in all, and for the operation that is under way.
#[derive(Debug)]
pub(crate) struct Meter {
    total: Cell<u64>,
    call: Cell<u64>,
    per_call: u64,
    deadline: Cell<Instant>,
    time: Duration,
}

impl Meter {
    /// Allows `total` bytes, and `per_call` of them for each operation, within `time` from now.
    pub(crate) fn new(total: u64, per_call: u64, time: Duration) -> Rc<Self> {
        Rc::new(Self {
            total: Cell::new(total),
            call: Cell::new(per_call),
            per_call,
            deadline: Cell::new(Instant::now() + time),
            time,
        })
    }

    /// An operation that hands out `bytes` begins.
    pub(crate) fn begin(&self, bytes: u64) {
        self.call.set(self.per_call.saturating_add(bytes));
    }

    /// Allows `bytes` more in all, and the whole time again.
    pub(crate) fn grant(&self, bytes: u64) {
        self.deadline.set(Instant::now() + self.time);
        self.total.set(self.total.get().saturating_add(bytes));
    }

    fn spend(&self, bytes: u64) -> io::Result<()> {
        if Instant::now() > self.deadline.get() {
            let seconds = self.time.as_secs();
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("it takes longer than {seconds} seconds"),
            ));
        }
        let cost = bytes.saturating_add(READ_COST_BYTES);
        let spent = |cell: &Cell<u64>| cell.get().checked_sub(cost);
        let (Some(total), Some(call)) = (spent(&self.total), spent(&self.call)) else {
            return Err(io::Error::other("its structures need more reading than is allowed"));
        };
        self.total.set(total);
        self.call.set(call);
        Ok(())
    }
}

/// A range of a disk, such as a partition. No read leaves it.
#[derive(Clone)]
pub(crate) struct Window {
    disk: Rc<dyn Disk>,
    meter: Rc<Meter>,
    start: u64,
    length: u64,
}

impl Window {
    /// The whole disk.
    pub(crate) fn whole(disk: Rc<dyn Disk>, meter: Rc<Meter>) -> Self {
        let length = disk.size();
        Self {
            disk,
            meter,
            start: 0,
            length,
        }
    }

    /// The part of this range that starts at `start` and has up to `length` bytes.
    pub(crate) fn part(&self, start: u64, length: u64) -> Self {
        let start = start.min(self.length);
        Self {
            start: self.start + start,
            length: length.min(self.length - start),
            ..self.clone()
        }
    }

    /// Bytes.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// What is still allowed.
    pub(crate) fn meter(&self) -> &Meter {
        &self.meter
    }

    /// Fills `buffer` from `offset` on.
    pub(crate) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let bytes = buffer.len() as u64;
        if offset.checked_add(bytes).is_none_or(|end| end > self.length) {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("{bytes} bytes at {offset} are beyond its end at {} bytes", self.length),
            ));
        }
        self.meter.spend(bytes)?;
        self.disk.read_at(self.start + offset, buffer)
    }

    /// Reads `N` bytes at `offset`.
    pub(crate) fn array<const N: usize>(&self, offset: u64) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.read_at(offset, &mut bytes)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(bytes: usize, total: u64, per_call: u64) -> Window {
        Window::whole(
            Rc::new(vec![7_u8; bytes]),
            Meter::new(total, per_call, Duration::from_mins(10)),
        )
    }

    #[test]
    fn no_read_leaves_its_window() {
        let part = window(4096, u64::MAX, u64::MAX).part(1024, 512);
        assert_eq!(part.array::<512>(0).unwrap(), [7; 512]);
        assert!(part.array::<1>(512).is_err());
        assert!(part.array::<2>(511).is_err());
        assert!(part.array::<1>(u64::MAX).is_err());
        let end = window(4096, u64::MAX, u64::MAX).part(4000, u64::MAX);
        assert_eq!(end.length(), 96);
        assert_eq!(window(10, 0, 0).part(11, 1).length(), 0);
    }

    #[test]
    fn reading_ends_at_the_limit_of_an_operation_and_of_all() {
        let window = window(4096, 3 * (READ_COST_BYTES + 8), READ_COST_BYTES + 8);
        for _ in 0..3 {
            window.meter().begin(0);
            window.array::<8>(0).unwrap();
            assert!(window.array::<8>(0).is_err(), "the operation's share is used up");
        }
        window.meter().begin(4096);
        assert!(window.array::<8>(0).is_err(), "all is used up");
        window.meter().grant(4096);
        window.array::<8>(0).unwrap();
    }

    #[test]
    fn reading_ends_in_time() {
        let window = Window::whole(Rc::new(vec![0; 8]), Meter::new(1 << 20, 1 << 20, Duration::ZERO));
        let error = window.array::<1>(0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
