//! The files of a real disk.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, Read};
use std::rc::Rc;

use crate::disk::{Disk, Meter, Window};
use crate::files::{Files, Found, Volume, VolumeId};
use crate::filesystem::{self, FileSystem, FileSystemError, Kind, Mounted, Node};
use crate::limits::Limits;
use crate::table::{self, Partition, Scheme, TableError};

/// Links that are followed on the way to a file, as Linux does.
const LINKS_MAX: usize = 40;
/// Longest path (`PATH_MAX`).
const PATH_BYTES_MAX: usize = 4096;
/// How much of a file is read at once. What lies packed in btrfs is unpacked anew for each read.
const READ_BYTES: usize = 1 << 20;

/// A disk's volumes, mounted.
pub(crate) struct Volumes {
    described: Vec<Volume>,
    mounted: Vec<Mounted>,
    meter: Rc<Meter>,
    limits: Limits,
    /// What is on the disk, for a person.
    layout: Vec<String>,
    /// What could not be read.
    problems: RefCell<Vec<String>>,
    problems_left_out: Cell<usize>,
}

impl Volumes {
    /// Finds and mounts what is on a disk.
    pub(crate) fn open(disk: Rc<dyn Disk>, limits: &Limits) -> Result<Self, TableError> {
        let meter = Meter::new(limits.search_bytes, limits.call_bytes, limits.time);
        let whole = Window::whole(disk, Rc::clone(&meter));
        let table = table::read(&whole, limits.partitions)?;
        let mut volumes = Self {
            described: Vec::new(),
            mounted: Vec::new(),
            meter,
            limits: limits.clone(),
            layout: Vec::new(),
            problems: RefCell::default(),
            problems_left_out: Cell::new(0),
        };
        volumes.problems.get_mut().extend(table.warning);
        for partition in &table.partitions {
            let line = volumes.add(&whole, partition);
            volumes.layout.push(format!("{partition}: {line}"));
        }
        if volumes.layout.is_empty() {
            volumes.layout.push(format!("{} without partitions", table.scheme));
        }
        Ok(volumes)
    }

    fn add(&mut self, whole: &Window, partition: &Partition) -> String {
        let window = whole.part(partition.start, partition.length);
        window.meter().begin(0);
        let kind = match filesystem::identify(&window) {
            Ok(Some(kind)) => kind,
            Ok(None) => return "no file system that is known".to_owned(),
            Err(error) => return format!("cannot be read: {error}"),
        };
        let mounted = match Mounted::mount(kind, window, &self.limits) {
            Ok(mounted) => mounted,
            Err(error) => return format!("{kind}, which cannot be read: {error}"),
        };
        let volume = Volume {
            number: partition.number,
            scheme: partition.scheme,
            purpose: partition.purpose,
            uuid: mounted.uuid(),
            label: mounted.label(),
            file_system: match kind {
                Kind::Ext4 => "ext2",
                Kind::Xfs => "xfs",
                Kind::Btrfs => "btrfs",
                Kind::Fat => "fat",
            },
            partition_uuid: partition.uuid.clone(),
        };
        let line = match &volume.label {
            Some(label) => format!("{kind} {:?}", shown(label)),
            None => kind.to_string(),
        };
        self.described.push(volume);
        self.mounted.push(mounted);
        line
    }

    /// What is on the disk, one line for each partition.
    pub(crate) fn layout(&self) -> &[String] {
        &self.layout
    }

    /// What could not be read so far.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = self.problems.borrow().clone();
        match self.problems_left_out.get() {
            0 => {}
            more => problems.push(format!("and {more} more")),
        }
        problems
    }

    fn report(&self, volume: VolumeId, path: &str, error: &FileSystemError) {
        let mut problems = self.problems.borrow_mut();
        let name = self.volume(volume).map(ToString::to_string).unwrap_or_default();
        let problem = format!("{name}: failed to read {}: {}", shown(path), shown(&error.0));
        if problems.contains(&problem) {
            return;
        }
        if problems.len() < self.limits.places {
            problems.push(problem);
        } else {
            self.problems_left_out.set(self.problems_left_out.get() + 1);
        }
    }

    /// Follows the links in `path`: the path without any, and what is there.
    fn resolve(&self, volume: VolumeId, path: &str) -> Result<Option<(String, Node)>, FileSystemError> {
        let Some(mounted) = self.mounted.get(volume.0) else {
            return Ok(None);
        };
        let mut left: VecDeque<String> = parts(path);
        let mut done: Vec<String> = Vec::new();
        let mut node = Node::Directory;
        let mut links = 0;
        while let Some(part) = left.pop_front() {
            match part.as_str() {
                "" | "." => continue,
                ".." => {
                    done.pop();
                    node = Node::Directory;
                    continue;
                }
                _ => done.push(part),
            }
            let here = format!("/{}", done.join("/"));
            if here.len() > PATH_BYTES_MAX {
                return Err(FileSystemError("the path is too long".to_owned()));
            }
            node = match mounted.node(&here)? {
                None => return Ok(None),
                Some(node) => node,
            };
            match &node {
                Node::Link(target) => {
                    links += 1;
                    if links > LINKS_MAX || target.len() + left.iter().map(String::len).sum::<usize>() > PATH_BYTES_MAX
                    {
                        return Err(FileSystemError("too many links".to_owned()));
                    }
                    done.pop();
                    if target.starts_with('/') {
                        done.clear();
                    }
                    for part in parts(target).into_iter().rev() {
                        left.push_front(part);
                    }
                    node = Node::Directory;
                }
                Node::File(_) | Node::Other if !left.is_empty() => return Ok(None),
                Node::File(_) | Node::Other | Node::Directory => {}
            }
        }
        Ok(Some((format!("/{}", done.join("/")), node)))
    }

    /// Opens a file for reading from its beginning to its end.
    pub(crate) fn open_file(&self, volume: VolumeId, path: &str) -> Result<FileReader<'_>, FileSystemError> {
        let missing = || FileSystemError("it does not exist".to_owned());
        match self.resolve(volume, path)? {
            Some((path, Node::File(bytes))) => Ok(FileReader {
                mounted: self.mounted.get(volume.0).ok_or_else(missing)?,
                path,
                bytes,
                position: 0,
                end: bytes,
                buffer: Vec::new(),
                buffered_at: 0,
            }),
            Some(_) => Err(FileSystemError("it is not a file".to_owned())),
            None => Err(missing()),
        }
    }

    /// Allows reading what was chosen: `bytes`, whatever the search has used up.
    pub(crate) fn grant(&self, bytes: u64) {
        // A packed or scattered file takes more reading than it has bytes.
        self.meter
            .grant(bytes.saturating_mul(4).saturating_add(self.limits.call_bytes));
    }
}

fn parts(path: &str) -> VecDeque<String> {
    path.split('/').map(str::to_owned).collect()
}

/// Text of a disk, fit to be shown: one line, of bounded length.
pub(crate) fn shown(text: &str) -> String {
    const CHARACTERS_MAX: usize = 200;
    let mut clean: String = text
        .chars()
        .take(CHARACTERS_MAX)
        .map(|character| if character.is_control() { ' ' } else { character })
        .collect();
    if text.chars().nth(CHARACTERS_MAX).is_some() {
        clean.push('…');
    }
    clean
}

impl Files for Volumes {
    fn volumes(&self) -> &[Volume] {
        &self.described
    }

    fn find(&self, volume: VolumeId, path: &str) -> Option<Found> {
        match self.resolve(volume, path) {
            Ok(Some((_, Node::File(bytes)))) => Some(Found::File(bytes)),
            Ok(Some((_, Node::Directory))) => Some(Found::Directory),
            Ok(Some((_, Node::Link(_) | Node::Other)) | None) => None,
            Err(error) => {
                self.report(volume, path, &error);
                None
            }
        }
    }

    fn read(&self, volume: VolumeId, path: &str, limit: u64) -> Option<Vec<u8>> {
        let found = self.find(volume, path)?;
        let Found::File(bytes) = found else {
            return None;
        };
        if bytes > limit {
            let error = FileSystemError(format!("it has {bytes} bytes, more than {limit}"));
            self.report(volume, path, &error);
            return None;
        }
        let mut contents = Vec::new();
        let read = self.open_file(volume, path).and_then(|mut file| {
            file.read_to_end(&mut contents)
                .map_err(|error| FileSystemError(error.to_string()))
        });
        match read {
            Ok(_) => Some(contents),
            Err(error) => {
                self.report(volume, path, &error);
                None
            }
        }
    }

    fn read_part(&self, volume: VolumeId, path: &str, offset: u64, buffer: &mut [u8]) -> Option<usize> {
        let read = self.open_file(volume, path).and_then(|file| {
            file.peek(offset, buffer)
                .map_err(|error| FileSystemError(error.to_string()))
        });
        read.map_err(|error| self.report(volume, path, &error)).ok()
    }

    fn list(&self, volume: VolumeId, path: &str) -> Vec<String> {
        let Ok(Some((resolved, Node::Directory))) = self.resolve(volume, path) else {
            return Vec::new();
        };
        let Some(mounted) = self.mounted.get(volume.0) else {
            return Vec::new();
        };
        match mounted.list(&resolved, self.limits.directory_entries) {
            Ok(mut names) => {
                names.sort_unstable();
                names
            }
            Err(error) => {
                self.report(volume, path, &error);
                Vec::new()
            }
        }
    }
}

/// Reads a file, or a part of one, without keeping more than a piece of it.
pub(crate) struct FileReader<'volumes> {
    mounted: &'volumes Mounted,
    path: String,
    bytes: u64,
    position: u64,
    end: u64,
    buffer: Vec<u8>,
    buffered_at: u64,
}

impl FileReader<'_> {
    /// Bytes of the whole file.
    pub(crate) fn file_bytes(&self) -> u64 {
        self.bytes
    }

    /// Only the `length` bytes from `start` on.
    pub(crate) fn part(mut self, start: u64, length: u64) -> Self {
        self.position = start.min(self.bytes);
        self.end = start.saturating_add(length).min(self.bytes);
        self
    }

    /// Fills `buffer` with bytes from anywhere in the file, as far as there are any.
    pub(crate) fn peek(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.fetch(offset + filled as u64, rest)? {
                0 => break,
                bytes => filled += bytes,
            }
        }
        Ok(filled)
    }

    fn fetch(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.mounted
            .read_at(&self.path, offset, buffer)
            .map_err(|error| io::Error::other(error.0))
    }
}

impl Read for FileReader<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = self.end.saturating_sub(self.position);
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(into.len());
        if wanted == 0 {
            return Ok(0);
        }
        let short = || io::Error::new(io::ErrorKind::UnexpectedEof, format!("{} ends early", self.path));
        if wanted >= READ_BYTES {
            let bytes = self.fetch(self.position, &mut into[..wanted.min(READ_BYTES)])?;
            self.position += bytes as u64;
            return if bytes == 0 { Err(short()) } else { Ok(bytes) };
        }
        let mut from = self.position.wrapping_sub(self.buffered_at);
        if self.position < self.buffered_at || from >= self.buffer.len() as u64 {
            let size = usize::try_from(left).unwrap_or(usize::MAX).min(READ_BYTES);
            let mut buffer = std::mem::take(&mut self.buffer);
            buffer.resize(size, 0);
            let bytes = self.fetch(self.position, &mut buffer)?;
            if bytes == 0 {
                return Err(short());
            }
            buffer.truncate(bytes);
            self.buffer = buffer;
            self.buffered_at = self.position;
            from = 0;
        }
        let available = &self.buffer[usize::try_from(from).unwrap_or(usize::MAX).min(self.buffer.len())..];
        let bytes = wanted.min(available.len());
        into[..bytes].copy_from_slice(&available[..bytes]);
        self.position += bytes as u64;
        Ok(bytes)
    }
}

/// Whether a volume's paths may start with a subvolume's name.
pub(crate) fn has_subvolumes(volume: &Volume) -> bool {
    volume.file_system == "btrfs"
}

/// How a scheme is named in GRUB's device names.
pub(crate) fn grub_scheme(scheme: Scheme) -> &'static str {
    match scheme {
        Scheme::Gpt => "gpt",
        Scheme::Mbr => "msdos",
        Scheme::Whole => "",
    }
}
