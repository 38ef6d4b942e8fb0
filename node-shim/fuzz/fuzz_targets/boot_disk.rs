//! A hostile disk of any bytes: partition tables, and what looks like a file system.
#![no_main]

use libfuzzer_sys::fuzz_target;
use node_shim_fuzz::disk::boot;

fuzz_target!(|disk: &[u8]| boot(disk.to_vec()));
