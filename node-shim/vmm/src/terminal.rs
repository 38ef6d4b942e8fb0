//! The terminal on stdin, where there is one: raw while the guest runs, as it was afterwards, whatever way the process ends.

use std::sync::Mutex;

use node_shim_virtio::console::Size;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use node_shim_virtio::lock::lock;

/// What the terminal was like before.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// Makes a terminal on stdin raw, so that every key reaches the guest.
pub(crate) fn make_raw() {
    let stdin = rustix::stdio::stdin();
    let Ok(before) = tcgetattr(stdin) else {
        return;
    };
    let mut raw = before.clone();
    raw.make_raw();
    if tcsetattr(stdin, OptionalActions::Now, &raw).is_ok() {
        *lock(&SAVED) = Some(before);
    }
}

/// Its size.
pub(crate) fn size() -> Option<Size> {
    let size = tcgetwinsize(rustix::stdio::stdin()).ok()?;
    Some(Size {
        columns: size.ws_col,
        rows: size.ws_row,
    })
}

/// Makes it what it was.
pub(crate) fn restore() {
    if let Some(before) = lock(&SAVED).take() {
        // The process ends: nobody is left to tell.
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &before);
    }
}
