//! What of the file system the process may still use by its name, with Landlock (Linux Documentation/userspace-api/landlock.rst).
//!
//! Disks, kernels, sockets and taps are open by then. Named afterwards are only the files of snapshots, those without a name that a disk's
//! kernel is unpacked to at a reset, the control socket at the end, and sockets that are connected to.

use std::fmt;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, Scope, make_bitflags,
};

/// The newest version whose rights are asked for; of an older kernel, as many as it has.
const NEWEST: ABI = ABI::V9;

/// Why the rules cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PathsError {
    /// A directory is not there.
    #[error("failed to open {path}, which the VM is to use: {source}; make it, or name another one")]
    Open {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: landlock::PathFdError,
    },
    /// The kernel has Landlock and refuses.
    #[error("failed to restrict the process with Landlock: {0}")]
    Refused(Box<RulesetError>),
}

/// What may be used.
#[derive(Clone, Debug, Default)]
pub(crate) struct Paths {
    /// Directories whose files are read, written, made and removed: scratch space, and where snapshots go.
    pub(crate) writable: Vec<PathBuf>,
    /// Directories whose files are read: those of disks that are made anew at a reset.
    pub(crate) readable: Vec<PathBuf>,
    /// Directories from which a file is removed: the control socket's.
    pub(crate) removable: Vec<PathBuf>,
    /// Directories with sockets that are connected to.
    pub(crate) sockets: Vec<PathBuf>,
}

const READABLE: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | ReadDir});

const WRITABLE: BitFlags<AccessFs> = make_bitflags!(AccessFs::{
    ReadFile | ReadDir | WriteFile | Truncate | MakeReg | MakeDir | RemoveFile | RemoveDir
});

impl Paths {
    /// Takes everything else away from the calling thread and from those that it starts. Returns the version of Landlock, 0 where the
    /// kernel has none.
    pub(crate) fn restrict(&self) -> Result<u32, PathsError> {
        let refused = |error| PathsError::Refused(Box::new(error));
        let mut rules = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(NEWEST))
            .and_then(|rules| rules.handle_access(AccessNet::from_all(NEWEST)))
            .and_then(|rules| rules.scope(Scope::from_all(NEWEST)))
            .and_then(Ruleset::create)
            .map_err(refused)?;
        let lists = [
            (&self.writable, WRITABLE),
            (&self.readable, READABLE),
            (&self.removable, AccessFs::RemoveFile.into()),
            (&self.sockets, AccessFs::ResolveUnix.into()),
        ];
        for (paths, access) in lists {
            for path in paths {
                let directory = open(path)?;
                rules = rules.add_rule(PathBeneath::new(directory, access)).map_err(refused)?;
            }
        }
        let status = rules.restrict_self().map_err(refused)?;
        Ok(match status.landlock {
            LandlockStatus::Available { effective_abi, .. } => effective_abi as u32,
            LandlockStatus::NotEnabled | LandlockStatus::NotImplemented => 0,
        })
    }

    /// Whether a file below `path` may be made.
    pub(crate) fn may_write(&self, path: &Path) -> bool {
        self.writable.iter().any(|directory| path.starts_with(directory))
    }
}

impl fmt::Display for Paths {
    /// Where files may be made.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, path) in self.writable.iter().enumerate() {
            let between = if index == 0 { "" } else { " or " };
            write!(f, "{between}{}", path.display())?;
        }
        Ok(())
    }
}

/// The directory that a path's file is in.
pub(crate) fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        Some(_) | None => PathBuf::from("."),
    }
}

fn open(path: &Path) -> Result<PathFd, PathsError> {
    PathFd::new(path).map_err(|source| PathsError::Open {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::ErrorKind;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// What a confined thread finds. Others go on as before.
    fn confined<T: Send>(paths: &Paths, act: impl FnOnce() -> T + Send) -> Option<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| (paths.restrict().unwrap() > 0).then(act));
            let result = thread.join().unwrap();
            if result.is_none() {
                eprintln!("\n*** SKIPPED: this kernel has no Landlock ***\n");
            }
            result
        })
    }

    fn denied<T>(result: std::io::Result<T>) -> bool {
        result.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
    }

    #[test]
    fn what_is_not_allowed_cannot_be_named() {
        let directory = tempfile::tempdir().unwrap();
        let [scratch, files, control, outside] =
            ["scratch", "files", "control", "outside"].map(|name| directory.path().join(name));
        for path in [&scratch, &files, &control, &outside] {
            fs::create_dir(path).unwrap();
            fs::write(path.join("file"), "x").unwrap();
        }
        let open = File::open(outside.join("file")).unwrap();
        let paths = Paths {
            writable: vec![scratch.clone()],
            readable: vec![files.clone()],
            removable: vec![control.clone()],
            sockets: Vec::new(),
        };
        confined(&paths, || {
            assert_eq!(fs::read(files.join("file")).unwrap(), b"x");
            assert_eq!(fs::read_dir(&files).unwrap().count(), 1);
            assert!(denied(File::create(files.join("new"))));
            assert!(denied(fs::write(files.join("file"), "y")));
            assert!(denied(fs::remove_file(files.join("file"))));
            assert!(denied(File::open("/etc/passwd")));
            assert!(denied(File::open("/proc/self/mem")));
            assert!(denied(File::open(outside.join("file"))));
            assert!(denied(File::create(outside.join("new"))));
            assert!(denied(fs::remove_file(outside.join("file"))));
            assert!(denied(fs::read_dir(&outside)));
            assert!(denied(File::open(control.join("file"))));
            assert!(denied(File::create(control.join("new"))));
            assert!(denied(std::os::unix::fs::symlink("/etc", scratch.join("link"))));
            // A way out by a name inside.
            assert!(denied(File::open(scratch.join("../outside/file"))));
            assert!(denied(std::process::Command::new("/bin/true").status()));
            assert!(denied(std::net::TcpStream::connect("127.0.0.1:1")));
            // What a snapshot does, and what a control socket needs at its end.
            fs::create_dir(scratch.join(".partial")).unwrap();
            fs::write(scratch.join(".partial/state"), "x").unwrap();
            fs::rename(scratch.join(".partial"), scratch.join("snapshot")).unwrap();
            assert_eq!(fs::read(scratch.join("snapshot/state")).unwrap(), b"x");
            fs::remove_dir_all(scratch.join("snapshot")).unwrap();
            tempfile::tempfile_in(&scratch).unwrap();
            fs::remove_file(control.join("file")).unwrap();
            // What is open stays so.
            std::io::Read::read(&mut &open, &mut [0; 1]).unwrap();
        });
        assert!(
            File::open(outside.join("file")).is_ok(),
            "other threads are as they were"
        );
    }

    #[test]
    fn sockets_in_a_directory_can_be_connected_to() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let paths = Paths {
            sockets: vec![directory.path().to_owned()],
            ..Paths::default()
        };
        confined(&paths, || {
            UnixStream::connect(&path).unwrap();
            assert!(denied(fs::read_dir(directory.path())));
        });
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let paths = Paths {
            writable: vec!["/nowhere/at/all".into()],
            ..Paths::default()
        };
        let error = std::thread::scope(|scope| scope.spawn(|| paths.restrict().unwrap_err()).join().unwrap());
        assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
    }

    #[test]
    fn snapshots_go_below_writable_directories() {
        let paths = Paths {
            writable: vec!["/scratch".into(), "/snapshots".into()],
            ..Paths::default()
        };
        assert!(paths.may_write(Path::new("/snapshots/one")));
        assert!(!paths.may_write(Path::new("/scratches/one")));
        assert!(!paths.may_write(Path::new("relative")));
        assert_eq!(paths.to_string(), "/scratch or /snapshots");
        assert_eq!(directory_of(Path::new("control.sock")), Path::new("."));
        assert_eq!(directory_of(Path::new("/run/a.sock")), Path::new("/run"));
    }
}
