//! Kernels: what they are, and taking the ELF file out of a bzImage.

mod cache;
mod header;
mod unpack;

pub use cache::{Cache, CacheError};
pub use header::{Compression, Format, Header, release};
pub use unpack::{UnpackError, unpack};
