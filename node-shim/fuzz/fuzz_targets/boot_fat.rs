//! A hostile disk with a damaged fat file system.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use node_shim_fuzz::disk::{Change, Image, boot};

static IMAGE: LazyLock<Image> = LazyLock::new(|| Image::load(include_bytes!("../images/fat.gz")));

fuzz_target!(|changes: Vec<Change>| boot(IMAGE.changed(&changes)));
