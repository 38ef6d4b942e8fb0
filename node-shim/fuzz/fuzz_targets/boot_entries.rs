//! Hostile configurations of systemd-boot and EXTLINUX.
#![no_main]

use libfuzzer_sys::fuzz_target;
use node_shim_bootloader::files::VolumeId;
use node_shim_bootloader::testing::MemoryFiles;
use node_shim_bootloader::{extlinux, systemd_boot};
use node_shim_fuzz::disk::limits;

fuzz_target!(|input: &[u8]| {
    // Texts with zeros between them: so seeds are easy to write.
    let text = String::from_utf8_lossy(input);
    let mut parts = text.splitn(6, '\0').map(str::to_owned);
    let [loader, one, two, three, main, more] = std::array::from_fn(|_| parts.next().unwrap_or_default());
    let (entries, extlinux) = ([one, two, three], [main, more]);
    let mut files = MemoryFiles::default()
        .volume(1, "1111-1111")
        .file("/loader/loader.conf", loader)
        .file("/extlinux/extlinux.conf", &extlinux[0])
        .file("/extlinux/more.conf", &extlinux[1]);
    for (name, entry) in ["a-1.conf", "b-10+3-1.conf", "c+0.conf"].into_iter().zip(&entries) {
        files = files.file(&format!("/loader/entries/{name}"), entry);
    }
    if let Ok(candidates) = systemd_boot::select(&files, &[VolumeId(0)], "/loader", &limits()) {
        assert!(!candidates.is_empty() && candidates.len() <= 3);
    }
    let _ = extlinux::select(&files, VolumeId(0), "/extlinux/extlinux.conf", &limits());
});
