//! Locking without poisoning: a panic in any thread ends the process (`node-shim`'s `termination`), so no lock is ever seen poisoned by
//! anybody who goes on.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
