//! Shows what a raw disk image would boot, and unpacks its kernel: `cargo run -p node-shim-bootloader --example show -- IMAGE`.

use std::error::Error;
use std::fs::File;
use std::io::{self, Read};
use std::rc::Rc;
use std::time::Instant;

use node_shim_bootloader::{Limits, RawDisk, find, kernel};

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: show IMAGE")?;
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    let began = Instant::now();
    let limits = Limits::default();
    let image = find(Rc::new(RawDisk::new(file, size)), &limits)?;
    println!("{} ({:?}, by {})", image.entry(), began.elapsed(), image.entry().loader);
    println!("{:#?}", image.entry());
    let mut packed = Vec::new();
    image.kernel()?.read_to_end(&mut packed)?;
    let initrd = io::copy(&mut image.initrd()?, &mut io::sink())?;
    println!(
        "read {} bytes of kernel and {initrd} of initrd ({:?})",
        packed.len(),
        began.elapsed()
    );
    match kernel::unpack(&packed, limits.unpacked_kernel_bytes) {
        Ok(unpacked) => println!("unpacked to {} bytes ({:?})", unpacked.len(), began.elapsed()),
        Err(error) => println!("{error}"),
    }
    Ok(())
}
