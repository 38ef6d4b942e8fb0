//! Says when a file of a certain name appears in a directory, by inotify.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::inotify;
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use crate::event_loop;

/// Room for some 15 events with the longest file name (`NAME_MAX`, 255 bytes).
const EVENT_BUFFER_BYTES: usize = 4096;

/// Failure to watch.
#[derive(Debug, thiserror::Error)]
#[error("failed to watch the directory {}", directory.display())]
pub(crate) struct DirectoryWatchError {
    directory: PathBuf,
    source: io::Error,
}

/// Watches one directory for one file name.
pub(crate) struct DirectoryWatch {
    inotify: AsyncFd<OwnedFd>,
    directory: PathBuf,
    file_name: String,
}

impl DirectoryWatch {
    /// Watches `directory` for files called `file_name` that are made in it, moved into it or removed from it, from now on.
    pub(crate) fn new(directory: &Path, file_name: &str) -> Result<Self, DirectoryWatchError> {
        let open = || {
            let inotify = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
            let events = inotify::WatchFlags::CREATE
                | inotify::WatchFlags::MOVED_TO
                | inotify::WatchFlags::DELETE
                | inotify::WatchFlags::MOVED_FROM;
            inotify::add_watch(&inotify, directory, events | inotify::WatchFlags::ONLYDIR)?;
            event_loop::watch(inotify)
        };
        let inotify = open().map_err(|source| DirectoryWatchError {
            directory: directory.to_owned(),
            source,
        })?;
        Ok(Self {
            inotify,
            directory: directory.to_owned(),
            file_name: file_name.to_owned(),
        })
    }

    /// Waits until something happened to the file since the last call. Cancel safe: an event is either returned or still queued.
    pub(crate) async fn changed(&mut self) -> Result<(), DirectoryWatchError> {
        let wait = async {
            loop {
                let mut guard = self.inotify.readable().await?;
                match read_events(guard.get_inner(), &self.file_name) {
                    Ok(true) => return Ok(()),
                    Ok(false) => {}
                    Err(Errno::WOULDBLOCK) => guard.clear_ready(),
                    Err(error) => return Err(error.into()),
                }
            }
        };
        wait.await.map_err(|source| DirectoryWatchError {
            directory: self.directory.clone(),
            source,
        })
    }
}

/// Reads one buffer of events. Whether one of them is about `file_name`, or the kernel dropped some.
fn read_events(inotify: &OwnedFd, file_name: &str) -> Result<bool, Errno> {
    let mut buffer = [MaybeUninit::uninit(); EVENT_BUFFER_BYTES];
    let mut reader = inotify::Reader::new(inotify, &mut buffer);
    let mut relevant = false;
    loop {
        let event = reader.next()?;
        relevant |= event.events().contains(inotify::ReadFlags::QUEUE_OVERFLOW)
            || event
                .file_name()
                .is_some_and(|name| name.to_bytes() == file_name.as_bytes());
        if reader.is_buffer_empty() {
            return Ok(relevant);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[tokio::test]
    async fn only_the_named_file_is_reported() {
        let directory = tempfile::tempdir().unwrap();
        let mut watch = DirectoryWatch::new(directory.path(), "kubelet.sock").unwrap();
        fs::write(directory.path().join("other"), "").unwrap();
        assert!(!read_events(watch.inotify.get_ref(), "kubelet.sock").unwrap());
        fs::write(directory.path().join("kubelet.sock"), "").unwrap();
        watch.changed().await.unwrap();
        fs::remove_file(directory.path().join("kubelet.sock")).unwrap();
        watch.changed().await.unwrap();
    }

    #[tokio::test]
    async fn a_directory_that_is_missing_is_named() {
        let error = DirectoryWatch::new(Path::new("/nonexistent/tandem"), "x")
            .err()
            .unwrap();
        assert_eq!(error.to_string(), "failed to watch the directory /nonexistent/tandem");
    }
}
