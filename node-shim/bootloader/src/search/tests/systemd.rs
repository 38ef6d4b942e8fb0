//! Disks with systemd-boot, unified kernels or EXTLINUX.

use super::image::{Workshop, assert_contents, noise, open};
use crate::Loader;
use crate::testing::bz_image;
use crate::unified::tests::image as pe;

const ROOT: &str = "e9b2c3d4-66f7-4a4d-8b88-9c0d1e2f3006";

#[test]
fn entries_on_the_extended_boot_partition_boot() {
    let workshop = Workshop::new();
    let kernel = bz_image("6.12.1-arch1-1", &noise(8, 100_000));
    let efi = workshop
        .tree("efi")
        .file(
            "EFI/BOOT/BOOTX64.EFI",
            pe(&[(".sdmagic", b"#### LoaderInfo: systemd-boot 257 ####\0")]),
        )
        .file("loader/loader.conf", "timeout 3\n");
    let efi = workshop.fat("efi.img", &efi, "11112222", "32");
    let entry = |version: &str| {
        format!(
            "title Arch Linux\nversion {version}\nsort-key arch\nlinux /vmlinuz-{version}\ninitrd /ucode.img\ninitrd /initramfs.img\noptions root=UUID={ROOT} rw\n"
        )
    };
    let boot = workshop
        .tree("boot")
        .file("loader/entries/a+0-3.conf", entry("6.13.0-arch1-1"))
        .file("loader/entries/b+2-1.conf", entry("6.12.1-arch1-1"))
        .file("loader/entries/c.conf", entry("6.9.0-arch1-1"))
        .file("vmlinuz-6.12.1-arch1-1", &kernel)
        .file("ucode.img", "microcode")
        .file("initramfs.img", "initramfs");
    let boot = workshop.fat("boot.img", &boot, "33334444", "16");
    let disk = workshop.gpt("disk.img", &[(1, "ef00", &efi), (2, "ea00", &boot)]);
    let image = open(&disk).unwrap();
    assert_eq!(
        image.entry().to_string(),
        "Arch Linux, 6.12.1-arch1-1, from partition 2 /loader/entries/b+2-1.conf"
    );
    assert_eq!(image.entry().loader, Loader::SystemdBoot);
    assert_eq!(image.entry().command_line, format!("root=UUID={ROOT} rw"));
    assert_contents(&image, &kernel, &[b"microcode", b"initramfs"]);
}

#[test]
fn a_unified_kernel_boots() {
    let kernel = bz_image("6.16.0-1.fc43.x86_64", &noise(9, 200_000));
    let initrd = noise(10, 300_001);
    let unified = pe(&[
        (".osrel", b"ID=fedora\nPRETTY_NAME=\"Fedora Linux 43\"\nVERSION_ID=43\n"),
        (".cmdline", b"root=LABEL=root ro quiet\n\0"),
        (".linux", &kernel),
        (".initrd", &initrd),
    ]);
    // As the firmware's own default, and as an entry of systemd-boot.
    for path in ["EFI/BOOT/BOOTX64.EFI", "EFI/Linux/fedora-6.16.efi"] {
        let workshop = Workshop::new();
        let efi = workshop
            .tree("efi")
            .file(path, &unified)
            .file("EFI/systemd/systemd-bootx64.efi", "");
        let efi = workshop.fat("efi.img", &efi, "55556666", "32");
        let image = open(&workshop.gpt("disk.img", &[(1, "ef00", &efi)])).unwrap();
        assert_eq!(
            image.entry().to_string(),
            format!("Fedora Linux 43, 6.16.0-1.fc43.x86_64, from partition 1 /{path}")
        );
        assert_eq!(image.entry().command_line, "root=LABEL=root ro quiet");
        assert_contents(&image, &kernel, &[&initrd]);
    }
}

#[test]
fn extlinux_boots() {
    let workshop = Workshop::new();
    let kernel = bz_image("6.12.13-0-virt", &noise(11, 50_000));
    let root = workshop
        .tree("root")
        .file(
            "boot/extlinux/extlinux.conf",
            "DEFAULT menu.c32\nPROMPT 0\nMENU TITLE Alpine\nTIMEOUT 10\nLABEL virt\n  MENU DEFAULT\n  MENU LABEL Linux virt\n  \
             LINUX ../vmlinuz-virt\n  INITRD ../initramfs-virt\n  APPEND root=UUID=1 modules=ext4 console=ttyS0\n",
        )
        .file("boot/vmlinuz-virt", &kernel)
        .file("boot/initramfs-virt", "initramfs");
    let root = workshop.ext4("root.img", &root, ROOT, "");
    let image = open(&workshop.mbr(
        "disk.img",
        "label: dos\nstart=2048, type=83, bootable\n",
        &[(1 << 20, &root)],
    ))
    .unwrap();
    assert_eq!(
        image.entry().to_string(),
        "Linux virt, 6.12.13-0-virt, from partition 1 /boot/extlinux/extlinux.conf"
    );
    assert_eq!(
        image.entry().command_line,
        "BOOT_IMAGE=../vmlinuz-virt root=UUID=1 modules=ext4 console=ttyS0"
    );
    assert_contents(&image, &kernel, &[b"initramfs"]);
}
