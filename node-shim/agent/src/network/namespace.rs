//! The network namespace of a pod, by the descriptor that its shim sent.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::thread::LinkNameSpaceType;
use tokio::sync::oneshot;

/// `_IO(0xb7, 0x3)`: the `CLONE_NEW*` flag of a namespace descriptor (linux/nsfs.h).
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
/// Longest time for all the work in a namespace.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Why a namespace cannot be worked in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NamespaceError {
    /// Something else was sent.
    #[error("the descriptor that came with the request is no network namespace: send /proc/self/ns/net")]
    NotANetworkNamespace,
    /// A pod with `hostNetwork`.
    #[error("the pod has the node's own network (hostNetwork), which is never given to a guest: use the pod network")]
    HostNamespace,
    /// The agent cannot see its own namespace.
    #[error("failed to look at a namespace through /proc")]
    Inspect(#[source] io::Error),
    /// No thread.
    #[error("failed to start a thread")]
    Thread(#[source] io::Error),
    /// Not let in.
    #[error("failed to enter the pod's network namespace: the agent needs CAP_SYS_ADMIN")]
    Enter(#[source] io::Error),
    /// The kernel takes too long.
    #[error("the kernel took more than {} s to set up the pod's network", TIMEOUT.as_secs())]
    Timeout,
    /// A defect.
    #[error("the thread in the pod's network namespace ended early: this is a defect of the agent")]
    Ended,
}

impl NamespaceError {
    /// Whether the same request may succeed later.
    pub(crate) fn is_retryable(&self) -> bool {
        match self {
            Self::NotANetworkNamespace | Self::HostNamespace => false,
            Self::Inspect(_) | Self::Thread(_) | Self::Enter(_) | Self::Timeout | Self::Ended => true,
        }
    }
}

/// A network namespace that is not the node's.
#[derive(Debug)]
pub(crate) struct PodNamespace(OwnedFd);

impl PodNamespace {
    /// Checks a descriptor that a pod sent.
    pub(crate) fn check(descriptor: OwnedFd) -> Result<Self, NamespaceError> {
        // The link's text comes from the kernel's name cache, so that a file on a file system of the sender's is refused here, before
        // anything is asked that such a file system could answer late or never.
        let link = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
        let target = std::fs::read_link(&link).map_err(NamespaceError::Inspect)?;
        if !target.to_str().is_some_and(|target| target.starts_with("net:[")) {
            return Err(NamespaceError::NotANetworkNamespace);
        }
        // SAFETY: the descriptor is open, and this request takes no argument.
        let kind = unsafe { libc::ioctl(descriptor.as_raw_fd(), NS_GET_NSTYPE) };
        if kind != libc::CLONE_NEWNET {
            return Err(NamespaceError::NotANetworkNamespace);
        }
        let theirs = rustix::fs::fstat(&descriptor).map_err(|error| NamespaceError::Inspect(error.into()))?;
        let own =
            rustix::fs::stat(Path::new("/proc/self/ns/net")).map_err(|error| NamespaceError::Inspect(error.into()))?;
        if (theirs.st_dev, theirs.st_ino) == (own.st_dev, own.st_ino) {
            return Err(NamespaceError::HostNamespace);
        }
        Ok(Self(descriptor))
    }

    /// Another descriptor of the same.
    pub(crate) fn try_clone(&self) -> Result<Self, NamespaceError> {
        self.0.try_clone().map(Self).map_err(NamespaceError::Inspect)
    }

    /// Runs `work` in the namespace, on a thread that is used for nothing else and ends there: no thread ever comes back.
    pub(crate) async fn run<T: Send + 'static>(
        self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NamespaceError> {
        let (sender, result) = oneshot::channel();
        let body = move || {
            let entered = rustix::thread::move_into_link_name_space(
                std::os::fd::AsFd::as_fd(&self.0),
                Some(LinkNameSpaceType::Network),
            );
            let result = entered
                .map_err(|error| NamespaceError::Enter(error.into()))
                .map(|()| work());
            // The receiver is gone when it has waited too long.
            let _ = sender.send(result);
        };
        std::thread::Builder::new()
            .name("pod-netns".into())
            .spawn(body)
            .map_err(NamespaceError::Thread)?;
        match tokio::time::timeout(TIMEOUT, result).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(NamespaceError::Ended),
            Err(_) => Err(NamespaceError::Timeout),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn other_descriptors_are_refused() {
        for path in ["/dev/null", "/proc/self/ns/mnt", "/proc/self/ns/user", "/"] {
            let error = PodNamespace::check(File::open(path).unwrap().into()).unwrap_err();
            assert!(matches!(error, NamespaceError::NotANetworkNamespace), "{path}: {error}");
        }
    }

    #[test]
    fn the_nodes_own_namespace_is_refused() {
        let error = PodNamespace::check(File::open("/proc/self/ns/net").unwrap().into()).unwrap_err();
        assert!(matches!(error, NamespaceError::HostNamespace));
        assert!(!error.is_retryable());
    }
}
