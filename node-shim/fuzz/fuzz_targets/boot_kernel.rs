//! A hostile kernel: a bzImage whose payload is to be unpacked, and a unified kernel image.
#![no_main]

use libfuzzer_sys::fuzz_target;
use node_shim_bootloader::kernel::{release, unpack};
use node_shim_bootloader::testing::bz_image;
use node_shim_bootloader::unified::{Program, identify};
use node_shim_fuzz::disk::limits;

fuzz_target!(|file: &[u8]| {
    let most = limits().unpacked_kernel_bytes;
    // As a payload: there the fuzzer need not find the header. As a whole file: there the header is its own.
    for image in [bz_image("6.1.0", file), file.to_vec()] {
        let _ = release(&image);
        if let Ok(kernel) = unpack(&image, most) {
            assert!(kernel.len() as u64 <= most);
        }
    }
    if let Ok(Program::UnifiedKernel(kernel)) = identify(file) {
        assert!(kernel.linux.start <= kernel.linux.end);
    }
});
