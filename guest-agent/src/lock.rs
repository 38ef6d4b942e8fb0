//! Locks that a thread which panicked does not take from the others.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Every value behind a lock here is whole whenever it can be seen, also when its holder panics.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
