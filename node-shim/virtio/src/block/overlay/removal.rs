//! Throwing an overlay away.

use std::io;
use std::path::Path;

use super::super::file::{failed, open_locked};
use super::super::storage::StorageError;
use super::{map_path, sync_directory};

/// Removes the overlay whose data is in `path`, so that the next one starts from the image again. The map goes first: without it the data
/// is nobody's, so a crash in between leaves a whole overlay or none.
///
/// # Errors
/// When it is in use, or the host does not remove it. One that is not there is gone already.
pub fn throw_away(path: &Path) -> Result<(), StorageError> {
    // Locked until the end: nobody opens it meanwhile.
    let _data = open_locked(path)?;
    for file in [&map_path(path), path] {
        match std::fs::remove_file(file) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(failed("remove", file, source)),
        }
        sync_directory(file).map_err(|source| failed("remove", file, source))?;
    }
    Ok(())
}
