//! Guest memory as the target of vectored system calls: the only place where pointers into it exist.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::{GuestMemoryBackend, VolatileSlice};

use crate::chain::Segment;
use crate::device::Memory;

/// Most vectors that one system call takes (`IOV_MAX`, limits.h of Linux).
const MAX_VECTORS: usize = 1024;

/// Room for the vectors of one [`Buffers`], kept between requests so that none of them allocates.
#[derive(Default)]
pub struct Room {
    /// Empty outside of a [`Buffers`].
    vectors: Vec<libc::iovec>,
}

// SAFETY: a Room has no elements, so no pointer goes to another thread; only the allocation does.
unsafe impl Send for Room {}

/// Pieces of guest memory in order, consumed from the front by each transfer.
pub struct Buffers<'m> {
    vectors: Vec<libc::iovec>,
    /// The vectors before this one are consumed.
    first: usize,
    remaining: usize,
    memory: PhantomData<&'m Memory>,
}

impl<'m> Buffers<'m> {
    /// The host's view of `segments`.
    ///
    /// # Errors
    /// When a segment is not in guest memory.
    pub fn gather(room: Room, memory: &'m Memory, segments: &[Segment]) -> io::Result<Self> {
        let mut buffers = Self {
            vectors: room.vectors,
            first: 0,
            remaining: 0,
            memory: PhantomData,
        };
        for segment in segments {
            let length = usize::try_from(segment.length).map_err(io::Error::other)?;
            for slice in GuestMemoryBackend::get_slices(memory, segment.address, length) {
                let slice = slice.map_err(io::Error::other)?;
                // The mapping outlives 'm, and guest memory is never unmapped while its `Memory` lives.
                let start = slice.ptr_guard_mut().as_ptr();
                buffers.vectors.push(libc::iovec {
                    iov_base: start.cast(),
                    iov_len: slice.len(),
                });
                buffers.remaining += slice.len();
            }
        }
        Ok(buffers)
    }

    /// Bytes of the host itself, for reading what is not the guest's.
    pub fn over(bytes: &'m mut [u8]) -> Self {
        Self {
            remaining: bytes.len(),
            vectors: vec![libc::iovec {
                iov_base: bytes.as_mut_ptr().cast(),
                iov_len: bytes.len(),
            }],
            first: 0,
            memory: PhantomData,
        }
    }

    /// Gives the room back for the next request.
    pub fn into_room(mut self) -> Room {
        self.vectors.clear();
        Room { vectors: self.vectors }
    }

    /// Bytes that are left.
    pub fn len(&self) -> usize {
        self.remaining
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.remaining == 0
    }

    /// Whether the first `length` bytes, which are there, begin and end at multiples of `alignment` in each piece.
    pub fn is_aligned(&self, length: usize, alignment: usize) -> bool {
        let mut left = length;
        for vector in self.vectors.get(self.first..).unwrap_or_default() {
            if left == 0 {
                break;
            }
            let count = vector.iov_len.min(left);
            if !vector.iov_base.addr().is_multiple_of(alignment) || !count.is_multiple_of(alignment) {
                return false;
            }
            left -= count;
        }
        left == 0
    }

    /// Drops everything after the first `length` bytes.
    pub fn truncate(&mut self, length: usize) {
        let mut excess = self.remaining.saturating_sub(length);
        while excess > 0 {
            let Some(last) = self.vectors.last_mut() else { return };
            let cut = last.iov_len.min(excess);
            last.iov_len -= cut;
            excess -= cut;
            self.remaining -= cut;
            if last.iov_len == 0 {
                self.vectors.pop();
            }
        }
    }

    /// Consumes `length` bytes of the front.
    pub fn skip(&mut self, length: usize) {
        let mut length = length.min(self.remaining);
        self.remaining -= length;
        while length > 0 {
            let Some(vector) = self.vectors.get_mut(self.first) else {
                return;
            };
            let step = vector.iov_len.min(length);
            // SAFETY: `step` is at most the vector's length, so the result is inside or one past the same mapping.
            vector.iov_base = unsafe { vector.iov_base.byte_add(step) };
            vector.iov_len -= step;
            length -= step;
            if vector.iov_len == 0 {
                self.first += 1;
            }
        }
    }

    /// Reads `length` bytes of a file into the front.
    ///
    /// # Errors
    /// Of `preadv(2)`; `UnexpectedEof` when the file ends before.
    pub fn read_exact_at(&mut self, file: BorrowedFd<'_>, length: usize, offset: u64) -> io::Result<()> {
        self.transfer_all(length, offset, io::ErrorKind::UnexpectedEof, |vectors, count, at| {
            // SAFETY: the vectors point to guest memory that `Memory` keeps mapped, and `count` is their number.
            unsafe { libc::preadv(file.as_raw_fd(), vectors, count, at) }
        })
    }

    /// Writes `length` bytes of the front to a file.
    ///
    /// # Errors
    /// Of `pwritev(2)`; `WriteZero` when the file takes no more.
    pub fn write_all_at(&mut self, file: BorrowedFd<'_>, length: usize, offset: u64) -> io::Result<()> {
        self.transfer_all(length, offset, io::ErrorKind::WriteZero, |vectors, count, at| {
            // SAFETY: the vectors point to guest memory that `Memory` keeps mapped, and `count` is their number.
            unsafe { libc::pwritev(file.as_raw_fd(), vectors, count, at) }
        })
    }

    /// One `readv(2)` into everything that is left; returns and consumes what was read.
    ///
    /// # Errors
    /// Of the system call.
    pub fn read_once(&mut self, file: BorrowedFd<'_>) -> io::Result<usize> {
        self.transfer_front(self.remaining, |vectors, count| {
            // SAFETY: the vectors point to guest memory that `Memory` keeps mapped, and `count` is their number.
            unsafe { libc::readv(file.as_raw_fd(), vectors, count) }
        })
    }

    /// One `readv(2)` into what is left, and then into `spill`. Returns how many bytes of guest memory there was room for, and what was
    /// read, which may be more than there was room for altogether when a datagram was cut off. Everything counts as consumed.
    pub fn read_once_spilling(&mut self, file: BorrowedFd<'_>, spill: &mut [u8]) -> (usize, io::Result<usize>) {
        // Room for one more vector in the call.
        self.vectors.truncate(self.first + MAX_VECTORS - 1);
        let room = self.vectors[self.first..].iter().map(|vector| vector.iov_len).sum();
        self.vectors.push(libc::iovec {
            iov_base: spill.as_mut_ptr().cast(),
            iov_len: spill.len(),
        });
        self.remaining = room + spill.len();
        let read = self.read_once(file);
        // No pointer to the spill stays behind.
        self.vectors.clear();
        (self.first, self.remaining) = (0, 0);
        (room, read)
    }

    /// One `writev(2)` of everything that is left; returns and consumes what was written.
    ///
    /// # Errors
    /// Of the system call.
    pub fn write_once(&mut self, file: BorrowedFd<'_>) -> io::Result<usize> {
        self.transfer_front(self.remaining, |vectors, count| {
            // SAFETY: the vectors point to guest memory that `Memory` keeps mapped, and `count` is their number.
            unsafe { libc::writev(file.as_raw_fd(), vectors, count) }
        })
    }

    /// One `writev(2)` of `first`, and then of everything that is left, which counts as consumed. Returns what was written.
    ///
    /// # Errors
    /// Of the system call; `InvalidInput` when there are more pieces than one call takes.
    pub fn write_once_after(&mut self, first: &[u8], file: BorrowedFd<'_>) -> io::Result<usize> {
        if self.vectors.len() - self.first >= MAX_VECTORS {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let vector = libc::iovec {
            // The call only reads through it.
            iov_base: first.as_ptr().cast_mut().cast(),
            iov_len: first.len(),
        };
        self.vectors.insert(self.first, vector);
        self.remaining += first.len();
        let written = self.write_once(file);
        // No pointer to `first` stays behind.
        self.vectors.clear();
        (self.first, self.remaining) = (0, 0);
        written
    }

    /// Copies bytes into the front; returns how many there was room for.
    pub fn fill_from(&mut self, bytes: &[u8]) -> usize {
        let mut done = 0;
        self.for_each_front(bytes.len(), |slice| {
            slice.copy_from(&bytes[done..done + slice.len()]);
            done += slice.len();
        });
        self.skip(done);
        done
    }

    /// Copies the front out without consuming it; returns how many bytes there were.
    pub fn peek_into(&self, bytes: &mut [u8]) -> usize {
        let mut done = 0;
        self.for_each_front(bytes.len(), |slice| {
            done += slice.copy_to(&mut bytes[done..done + slice.len()]);
        });
        done
    }

    /// Copies the front out; returns how many bytes there were.
    pub fn copy_into(&mut self, bytes: &mut [u8]) -> usize {
        let done = self.peek_into(bytes);
        self.skip(done);
        done
    }

    /// Appends the vectors of the first `length` bytes, and consumes them.
    pub fn split_front(&mut self, length: usize, into: &mut Vec<libc::iovec>) {
        let mut left = length.min(self.remaining);
        while left > 0 {
            let Some(vector) = self.vectors.get(self.first) else {
                return;
            };
            let count = vector.iov_len.min(left);
            into.push(libc::iovec {
                iov_base: vector.iov_base,
                iov_len: count,
            });
            self.skip(count);
            left -= count;
        }
    }

    /// Fills `length` bytes of the front with zeros.
    pub fn fill_zero(&mut self, length: usize) {
        const ZEROS: [u8; 4096] = [0; 4096];
        let mut left = length.min(self.remaining);
        while left > 0 {
            left -= self.fill_from(&ZEROS[..left.min(ZEROS.len())]);
        }
    }

    fn for_each_front(&self, length: usize, mut each: impl FnMut(&VolatileSlice<'_>)) {
        let mut left = length;
        for vector in &self.vectors[self.first..] {
            if left == 0 {
                return;
            }
            let count = vector.iov_len.min(left);
            // SAFETY: the vector is a part of guest memory that `Memory` keeps mapped, and `count` is at most its length.
            each(&unsafe { VolatileSlice::new(vector.iov_base.cast(), count) });
            left -= count;
        }
    }

    fn transfer_all(
        &mut self,
        length: usize,
        offset: u64,
        at_end: io::ErrorKind,
        call: impl Fn(*const libc::iovec, libc::c_int, libc::off_t) -> libc::ssize_t,
    ) -> io::Result<()> {
        if length > self.remaining {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut done = 0;
        while done < length {
            let at = offset
                .checked_add(done as u64)
                .and_then(|at| libc::off_t::try_from(at).ok());
            let at = at.ok_or(io::ErrorKind::InvalidInput)?;
            match self.transfer_front(length - done, |vectors, count| call(vectors, count, at)) {
                Ok(0) => return Err(at_end.into()),
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Calls with the vectors of the first `length` bytes, and consumes what the call says that it moved.
    fn transfer_front(
        &mut self,
        length: usize,
        call: impl FnOnce(*const libc::iovec, libc::c_int) -> libc::ssize_t,
    ) -> io::Result<usize> {
        let (mut count, mut covered) = (0, 0);
        while covered < length.min(self.remaining) && count < MAX_VECTORS {
            covered += self.vectors[self.first + count].iov_len;
            count += 1;
        }
        // The last vector may reach beyond `length`: shorten it for this call.
        let excess = covered.saturating_sub(length);
        let last = self.first + count.max(1) - 1;
        if excess > 0 {
            self.vectors[last].iov_len -= excess;
        }
        let number = libc::c_int::try_from(count).map_err(io::Error::other)?;
        let moved = call(self.vectors[self.first..].as_ptr(), number);
        let error = io::Error::last_os_error();
        if excess > 0 {
            self.vectors[last].iov_len += excess;
        }
        let Ok(moved) = usize::try_from(moved) else {
            return Err(error);
        };
        self.skip(moved);
        Ok(moved)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;

    use vm_memory::GuestAddress;

    use super::*;
    use crate::testing::driver::{peek, put};
    use crate::testing::guest_memory;

    fn segments() -> [Segment; 3] {
        [(0x1000, 3), (0x3000, 5), (0x2000, 2)].map(|(address, length)| Segment {
            address: GuestAddress(address),
            length,
        })
    }

    #[test]
    fn copies_cross_segments_and_consume() {
        let memory = guest_memory();
        let mut buffers = Buffers::gather(Room::default(), &memory, &segments()).unwrap();
        assert_eq!(buffers.fill_from(b"abcd"), 4);
        assert_eq!(buffers.len(), 6);
        assert_eq!(buffers.fill_from(b"efghijKL"), 6);
        assert_eq!(peek(&memory, 0x1000, 3), b"abc");
        assert_eq!(peek(&memory, 0x3000, 5), b"defgh");
        assert_eq!(peek(&memory, 0x2000, 2), b"ij");
        let mut buffers = Buffers::gather(buffers.into_room(), &memory, &segments()).unwrap();
        let mut all = [0; 16];
        assert_eq!(buffers.peek_into(&mut all), 10);
        assert_eq!(&all[..10], b"abcdefghij");
        buffers.skip(2);
        buffers.truncate(7);
        assert_eq!(buffers.copy_into(&mut all), 7);
        assert_eq!(&all[..7], b"cdefghi");
        assert!(buffers.is_empty());
    }

    #[test]
    fn file_transfers_cover_exactly_the_length() {
        let memory = guest_memory();
        put(&memory, 0x1000, b"abc");
        put(&memory, 0x3000, b"defgh");
        let mut file = tempfile::tempfile().unwrap();
        let mut buffers = Buffers::gather(Room::default(), &memory, &segments()).unwrap();
        buffers.write_all_at(file.as_fd(), 5, 10).unwrap();
        assert_eq!(buffers.len(), 5);
        buffers.write_all_at(file.as_fd(), 3, 0).unwrap();
        let mut contents = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut contents).unwrap();
        assert_eq!(contents, b"fgh\0\0\0\0\0\0\0abcde");
        file.rewind().unwrap();
        file.write_all(b"ABCDEFGHIJ").unwrap();
        let mut buffers = Buffers::gather(Room::default(), &memory, &segments()).unwrap();
        buffers.read_exact_at(file.as_fd(), 4, 0).unwrap();
        assert_eq!(
            peek(&memory, 0x3000, 5),
            b"Defgh",
            "the rest of the second segment is untouched"
        );
        let error = buffers.read_exact_at(file.as_fd(), 6, 12).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_segment_outside_of_guest_memory_is_an_error() {
        let memory = guest_memory();
        let outside = [Segment {
            address: GuestAddress(u64::MAX - 1),
            length: 16,
        }];
        assert!(Buffers::gather(Room::default(), &memory, &outside).is_err());
    }
}
