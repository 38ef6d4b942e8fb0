//! A hostile qcow2 image: refused, or a disk whose reads end.
#![no_main]

use libfuzzer_sys::fuzz_target;
use node_shim_fuzz::read_image;
use node_shim_virtio::block::Format;

fuzz_target!(|bytes: &[u8]| read_image(bytes, Format::Qcow2));
