//! Ubuntu 24.04: GPT, p1 root, p14 for GRUB's core, p15 EFI system partition, p16 `/boot`; all of them ext4 but for the third.

use super::image::{Workshop, assert_contents, noise, open};
use crate::testing::bz_image;

const ROOT: &str = "3f6b2a10-95a1-4a0c-8d0e-1f54b1c9a001";
const BOOT: &str = "9e2c7d44-0b1f-4b77-a3e2-6c5f0d8e9002";

const GRUB_CFG: &str = include_str!("../../../layouts/ubuntu-24.04.cfg");

#[test]
fn the_kernel_is_on_the_boot_partition() {
    let workshop = Workshop::new();
    let kernel = bz_image("6.8.0-79-generic", &noise(2, 2_000_000));
    let initrd = noise(3, 1_500_003);
    let boot = workshop
        .tree("boot")
        .file(
            "grub/grub.cfg",
            GRUB_CFG
                .replace("@ROOT@", ROOT)
                .replace("@BOOT@", BOOT)
                .replace("@RELEASE@", "6.8.0-79-generic"),
        )
        .file("grub/grubenv", "# GRUB Environment Block\nrecordfail=1\n####")
        .file("vmlinuz-6.8.0-79-generic", &kernel)
        .file("initrd.img-6.8.0-79-generic", &initrd)
        .file("vmlinuz-6.8.0-71-generic", bz_image("6.8.0-71-generic", b""))
        .link("vmlinuz", "vmlinuz-6.8.0-79-generic");
    let boot = workshop.ext4("boot.img", &boot, BOOT, "BOOT");
    let root = workshop
        .tree("root")
        .file("etc/fstab", "LABEL=cloudimg-rootfs / ext4 defaults 0 1");
    let root = workshop.ext4("root.img", &root, ROOT, "cloudimg-rootfs");
    let efi = workshop
        .tree("efi")
        .file("EFI/BOOT/BOOTX64.EFI", "shim")
        .file("EFI/ubuntu/shimx64.efi", "shim")
        .file(
            "EFI/ubuntu/grub.cfg",
            format!("search.fs_uuid {BOOT} root hd0,gpt16\nset prefix=($root)'/grub'\nconfigfile $prefix/grub.cfg\n"),
        );
    let efi = workshop.fat("efi.img", &efi, "5D6E7F80", "32");
    let bios = workshop.blank("bios.img", 4 << 20);
    let disk = workshop.gpt(
        "disk.img",
        &[
            (14, "ef02", &bios),
            (15, "ef00", &efi),
            (16, "ea00", &boot),
            (1, "8304", &root),
        ],
    );

    let image = open(&disk).unwrap();
    let entry = image.entry();
    assert_eq!(
        entry.to_string(),
        "Ubuntu, 6.8.0-79-generic, from partition 16 /grub/grub.cfg"
    );
    // `${vt_handoff}` is only set by a menu that was hidden, and then empty on a serial console.
    assert_eq!(
        entry.command_line,
        "BOOT_IMAGE=/vmlinuz-6.8.0-79-generic root=LABEL=cloudimg-rootfs ro console=tty1 console=ttyS0"
    );
    assert_contents(&image, &kernel, &[&initrd]);
}
