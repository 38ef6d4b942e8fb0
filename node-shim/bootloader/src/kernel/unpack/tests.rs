use std::io::Write;
use std::process::{Command, Stdio};

use super::*;
use crate::kernel::header::release;
use crate::testing::bz_image;

const MOST: u64 = 64 << 20;

/// An ELF file as far as it matters, with calls as x86 code has them: xz has a filter for these.
fn elf() -> Vec<u8> {
    let mut elf = b"\x7fELF".to_vec();
    for number in 0..40_000_u32 {
        elf.extend_from_slice(&[0xe8]);
        elf.extend_from_slice(&(number.wrapping_mul(2_654_435_761) >> 8).to_le_bytes());
        elf.extend_from_slice(b"\x48\x89\xc7 text ");
    }
    elf
}

/// Packs as Linux scripts/Makefile.lib does: through a pipe, and then the size.
fn pack(command: &str, contents: &[u8], append_size: bool) -> Vec<u8> {
    let mut child = Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let contents_too = contents.to_vec();
    let writer = std::thread::spawn(move || input.write_all(&contents_too));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(
        output.status.success(),
        "{command}: install gzip, xz-utils, zstd and lz4"
    );
    let mut packed = output.stdout;
    if append_size {
        packed.extend_from_slice(&u32::try_from(contents.len()).unwrap().to_le_bytes());
    }
    packed
}

fn every_way(contents: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    [
        ("gzip -n -f -9", false),
        ("xz --check=crc32 --x86 --lzma2=preset=9,dict=128MiB", true),
        ("xz --check=crc32", true),
        ("xz --format=lzma -9", true),
        // A frame of unknown size with the largest window, as `zstd -22 --ultra` makes one.
        ("zstd -q -3 --long=27", true),
        ("zstd -q -19", true),
        ("lz4 -q -l -9", true),
    ]
    .map(|(command, append_size)| (command, pack(command, contents, append_size)))
    .to_vec()
}

#[test]
fn kernels_are_unpacked_whatever_they_are_packed_with() {
    let elf = elf();
    for (command, packed) in every_way(&elf) {
        let unpacked = unpack(&bz_image("6.1.0", &packed), MOST).unwrap_or_else(|error| panic!("{command}: {error}"));
        assert!(unpacked == elf, "{command}");
    }
    assert!(
        unpack(&bz_image("6.1.0", &elf), MOST).unwrap() == elf,
        "not packed at all"
    );
}

#[test]
fn damage_and_lies_are_noticed() {
    let elf = elf();
    for (command, packed) in every_way(&elf) {
        let mut short = packed.clone();
        short.truncate(packed.len() / 2);
        short.extend_from_slice(&u32::try_from(elf.len()).unwrap().to_le_bytes());
        assert!(unpack(&bz_image("6", &short), MOST).is_err(), "{command}, cut short");

        let last = packed.len() - 4;
        for size in [0, 100, 1 << 20, u32::try_from(MOST).unwrap(), u32::MAX] {
            let mut lie = packed.clone();
            lie[last..].copy_from_slice(&size.to_le_bytes());
            assert!(unpack(&bz_image("6", &lie), MOST).is_err(), "{command}, {size} bytes");
        }
        assert!(
            matches!(unpack(&bz_image("6", &packed), 1000), Err(UnpackError::TooLarge { .. })),
            "{command}"
        );
    }
    let other = pack("gzip -n", b"no ELF file", false);
    assert!(matches!(
        unpack(&bz_image("6", &other), MOST),
        Err(UnpackError::Damaged { .. })
    ));
}

#[test]
fn what_is_no_kernel_is_told_apart() {
    assert!(matches!(unpack(b"", MOST), Err(UnpackError::NotPacked)));
    assert!(matches!(unpack(&elf(), MOST), Err(UnpackError::NotPacked)));
    assert!(matches!(
        unpack(&bz_image("6", b"BZh91AY"), MOST),
        Err(UnpackError::Unsupported(_))
    ));
    assert!(matches!(
        unpack(&bz_image("6", b"what"), MOST),
        Err(UnpackError::Unsupported(_))
    ));
    let mut image = bz_image("6", b"payload");
    image.truncate(image.len() - 1);
    assert!(matches!(unpack(&image, MOST), Err(UnpackError::CutShort { .. })));
}

#[test]
fn a_kernel_says_its_release() {
    assert_eq!(
        release(&bz_image("6.1.0-40-cloud-amd64", b"x")).as_deref(),
        Some("6.1.0-40-cloud-amd64")
    );
    assert_eq!(release(&elf()), None);
    let mut image = bz_image("6.1.0", b"x");
    image[0x20e..0x210].fill(0);
    assert_eq!(release(&image), None);
    image[0x20e..0x210].fill(0xff);
    assert_eq!(release(&image), None, "beyond the end");
}

/// Debian's own kernel, where `hack/guest/kernel` has fetched it.
#[test]
fn debians_own_kernel_is_unpacked() {
    let cache =
        std::env::var("TANDEM_CACHE").unwrap_or_else(|_| format!("{}/.cache/tandem", std::env::var("HOME").unwrap()));
    let Ok(image) = std::fs::read(format!("{cache}/kernel/current/vmlinuz")) else {
        eprintln!("no kernel in {cache}/kernel: run hack/guest/kernel");
        return;
    };
    let release = release(&image).unwrap();
    assert!(release.ends_with("-cloud-amd64"), "{release}");
    let kernel = unpack(&image, 512 << 20).unwrap();
    let banner = format!("Linux version {release} ");
    assert!(kernel.windows(banner.len()).any(|window| window == banner.as_bytes()));
}
