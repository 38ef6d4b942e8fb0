//! Block devices for tests.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A loop device over a sparse file.
#[derive(Debug)]
pub struct LoopDevice {
    /// Its node.
    pub path: PathBuf,
    /// The file, which has no name any more.
    pub backing: File,
    /// The kernel takes the device away with its last user: whatever becomes of this process.
    _user: File,
}

impl LoopDevice {
    /// Makes one; `None`, loudly, where this machine lets this process have none. The file is in `directory`.
    ///
    /// # Panics
    /// When there is something wrong with the device.
    pub fn new(directory: &Path, sector_bytes: u32, bytes: u64) -> Option<Self> {
        match Self::make(directory, sector_bytes, bytes) {
            Ok(device) => Some(device),
            Err(error) => {
                eprintln!("\n*** SKIPPED: loop devices cannot be made here: {error} ***\n");
                None
            }
        }
    }

    fn make(directory: &Path, sector_bytes: u32, bytes: u64) -> io::Result<Self> {
        let backing_path = directory.join("backing-of-a-loop-device");
        let backing = File::create_new(&backing_path)?;
        backing.set_len(bytes)?;
        let size = sector_bytes.to_string();
        let mut attach = Command::new("losetup");
        attach
            .args(["--find", "--show", "--sector-size", &size])
            .arg(&backing_path);
        let attached = run(&mut attach);
        fs::remove_file(&backing_path)?;
        let path = PathBuf::from(attached?.trim());
        let user = File::open(&path);
        // While somebody uses it this only says that it goes afterwards.
        run(Command::new("losetup").arg("--detach").arg(&path))?;
        Ok(Self {
            path,
            backing,
            _user: user?,
        })
    }
}

fn run(command: &mut Command) -> io::Result<String> {
    let output = command.output()?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()))
    }
}
