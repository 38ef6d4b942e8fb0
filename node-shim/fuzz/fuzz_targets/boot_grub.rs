//! A hostile GRUB configuration, environment block and entry of the Boot Loader Specification.
#![no_main]

use libfuzzer_sys::fuzz_target;
use node_shim_bootloader::files::{FileRef, VolumeId};
use node_shim_bootloader::grub::{Platform, parse_block, select};
use node_shim_bootloader::testing::MemoryFiles;
use node_shim_fuzz::disk::limits;

fuzz_target!(|input: &[u8]| {
    // Three texts with zeros between them: so seeds are easy to write.
    let text = String::from_utf8_lossy(input);
    let mut parts = text.splitn(3, '\0').map(str::to_owned);
    let [script, block, entry] = std::array::from_fn(|_| parts.next().unwrap_or_default());
    let _ = parse_block(&block);
    let files = MemoryFiles::default()
        .volume(1, "1111-1111")
        .file("/boot/grub/grub.cfg", &script)
        .file("/boot/grub/grubenv", format!("# GRUB Environment Block\n{block}"))
        .file("/loader/entries/a-1-1.conf", &entry)
        .file("/vmlinuz", "kernel")
        .file("/initrd.img", "initrd");
    let configuration = FileRef {
        volume: VolumeId(0),
        path: "/boot/grub/grub.cfg".to_owned(),
    };
    if let Ok((_, selection)) = select(&files, &configuration, "/boot/grub", Platform::Pc, &limits()) {
        let line = selection.command_line.unwrap_or_default();
        assert!(line.len() <= limits().command_line_bytes && selection.initrds.len() <= limits().initrds);
    }
});
