use std::process::Command;
use std::sync::mpsc;

use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::*;

/// A file system of this test's own: an ext4 in a file, mounted in a mount namespace that ends with the test's thread. Nothing else of
/// this machine is ever frozen.
struct Lab {
    directory: tempfile::TempDir,
    file_systems: Vec<FileSystem>,
}

impl Drop for Lab {
    fn drop(&mut self) {
        // One that stays frozen would outlive its mount.
        recover_all(&self.file_systems);
        let _ = Command::new("umount").arg(self.directory.path().join("mnt")).status();
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    output
        .status
        .success()
        .then_some(())
        .ok_or(format!("{program}: {complaint}"))
}

fn lab() -> Result<Lab, String> {
    // SAFETY: only this thread gets other mounts, and no descriptor is touched.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.map_err(|error| error.to_string())?;
    run("mount", &["--make-rprivate", "/"])?;
    let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
    let (image, mnt) = (directory.path().join("image"), directory.path().join("mnt"));
    let (image, mnt) = (image.to_str().unwrap(), mnt.to_str().unwrap());
    fs::create_dir(mnt).unwrap();
    fs::File::create(image).and_then(|file| file.set_len(8 << 20)).unwrap();
    run("mke2fs", &["-q", "-t", "ext4", image])?;
    run("mount", &["-o", "loop", image, mnt])?;
    // Of this thread's namespace, and of that only the one.
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let ours: Vec<&str> = mounts.lines().filter(|line| line.contains(mnt)).collect();
    let file_systems = plan(&ours.join("\n"));
    assert_eq!(file_systems.len(), 1, "{mounts}");
    assert_eq!(file_systems[0].name(), mnt);
    Ok(Lab {
        directory,
        file_systems,
    })
}

/// Runs a test in a thread whose mounts are its own; says so where that cannot be.
fn in_lab(test: impl FnOnce(&Lab) + Send + 'static) {
    let thread = thread::spawn(move || match lab() {
        Ok(lab) => test(&lab),
        Err(why) => eprintln!("SKIPPED: no file system to freeze can be mounted here: {why}"),
    });
    thread.join().unwrap();
}

impl Lab {
    fn freezer(&self) -> Arc<Freezer> {
        Freezer::new(self.directory.path().join("marker"))
    }

    /// Writes to the file system in another thread, which says when it is done.
    fn write(&self) -> mpsc::Receiver<()> {
        let file = self.directory.path().join("mnt/file");
        let (said, done) = mpsc::channel();
        thread::spawn(move || {
            fs::write(file, b"data").unwrap();
            said.send(()).unwrap();
        });
        done
    }
}

/// Far longer than anything here takes.
const LONG: Duration = Duration::from_mins(1);
/// How long a write is seen not to end.
const WHILE: Duration = Duration::from_millis(300);

#[test]
fn writes_wait_until_the_thaw() {
    in_lab(|lab| {
        let freezer = lab.freezer();
        assert!(matches!(freezer.thaw(), Err(FreezeError::NotFrozen)));
        let frozen = freezer.freeze(&lab.file_systems, LONG).unwrap();
        assert_eq!((frozen.file_systems, frozen.skipped.len()), (1, 0));
        assert!(freezer.is_frozen() && freezer.marker.exists());
        assert!(matches!(
            freezer.freeze(&lab.file_systems, LONG),
            Err(FreezeError::Already)
        ));
        let done = lab.write();
        assert!(done.recv_timeout(WHILE).is_err(), "it was written to");
        assert_eq!(freezer.thaw().unwrap(), Thawed { file_systems: 1 });
        done.recv_timeout(LONG).unwrap();
        assert!(!freezer.is_frozen() && !freezer.marker.exists());
        // And again: nothing is left of the first time.
        freezer.freeze(&lab.file_systems, LONG).unwrap();
        assert_eq!(freezer.thaw().unwrap(), Thawed { file_systems: 1 });
    });
}

#[test]
fn a_host_that_is_lost_leaves_nothing_frozen() {
    in_lab(|lab| {
        let freezer = lab.freezer();
        let (began, timeout) = (Instant::now(), Duration::from_secs(3));
        freezer.freeze(&lab.file_systems, timeout).unwrap();
        let done = lab.write();
        done.recv_timeout(LONG).unwrap();
        assert!(began.elapsed() >= timeout, "it was written to");
        assert!(!freezer.is_frozen());
        // The thaw that comes too late is told so, once.
        assert!(matches!(freezer.thaw(), Err(FreezeError::Expired)));
        assert!(matches!(freezer.thaw(), Err(FreezeError::NotFrozen)));
    });
}

#[test]
fn an_agent_that_was_killed_leaves_it_to_the_next() {
    in_lab(|lab| {
        let freezer = lab.freezer();
        freezer.freeze(&lab.file_systems, LONG).unwrap();
        // As if the process had ended: nothing of it is left but the marker, and its descriptors are closed.
        let files = std::mem::replace(&mut lock(&freezer.state).0, State::Idle { expired: false });
        drop(files);
        let done = lab.write();
        assert!(done.recv_timeout(WHILE).is_err(), "it was written to");
        assert!(freezer.marker.exists());
        assert_eq!(recover_all(&lab.file_systems), 1);
        done.recv_timeout(LONG).unwrap();
        assert_eq!(recover_all(&lab.file_systems), 0, "nothing is frozen any more");
    });
}

#[test]
fn one_that_somebody_else_has_frozen_is_an_error_and_stays_theirs() {
    in_lab(|lab| {
        let (freezer, other) = (lab.freezer(), lab.freezer());
        other.freeze(&lab.file_systems, LONG).unwrap();
        let error = freezer.freeze(&lab.file_systems, LONG).unwrap_err();
        assert!(
            matches!(&error, FreezeError::Freeze { source, .. } if source.kind() == io::ErrorKind::ResourceBusy),
            "{error}"
        );
        assert!(!freezer.is_frozen());
        assert_eq!(other.thaw().unwrap(), Thawed { file_systems: 1 });
    });
}

#[test]
fn what_is_hidden_is_skipped_and_not_what_hides_it() {
    in_lab(|lab| {
        let mnt = lab.directory.path().join("mnt");
        let other = lab.directory.path().join("other");
        fs::File::create(&other).and_then(|file| file.set_len(8 << 20)).unwrap();
        run("mke2fs", &["-q", "-t", "ext4", other.to_str().unwrap()]).unwrap();
        // It could be frozen too, but nobody asked for that.
        run("mount", &["-o", "loop", other.to_str().unwrap(), mnt.to_str().unwrap()]).unwrap();
        let freezer = lab.freezer();
        let frozen = freezer.freeze(&lab.file_systems, LONG).unwrap();
        // Whatever it was, it does not outlive its mount.
        freezer.thaw().unwrap();
        run("umount", &[mnt.to_str().unwrap()]).unwrap();
        assert_eq!(
            (frozen.file_systems, frozen.skipped),
            (0, vec![mnt.to_str().unwrap().to_owned()])
        );
    });
}

#[test]
fn without_a_marker_nothing_is_frozen_and_nothing_thawed() {
    let directory = tempfile::tempdir().unwrap();
    let freezer = Freezer::new(directory.path().join("none/marker"));
    assert!(matches!(freezer.freeze(&[], LONG), Err(FreezeError::Marker { .. })));
    assert!(!freezer.is_frozen());
    assert!(matches!(recover(&directory.path().join("marker")), Ok(None)));
}
