//! Debian 12: GPT, p1 root on ext4 with `/boot` in it, p14 for GRUB's core, p15 EFI system partition.

use std::path::PathBuf;

use super::image::{Tree, Workshop, assert_contents, noise, open, prose};
use crate::Loader;
use crate::testing::bz_image;

const ROOT: &str = "7b1c0f1e-6f5a-4b9c-9d57-0a6e3d2f4c11";

/// As grub-mkconfig of Debian 12 writes it, with two kernels.
const GRUB_CFG: &str = include_str!("../../../layouts/debian-12.cfg");

fn kernel() -> Vec<u8> {
    bz_image("6.1.0-40-cloud-amd64", &noise(1, 3_000_000))
}

fn root(workshop: &Workshop, configuration: &str) -> Tree {
    workshop
        .tree("root")
        .file(
            "boot/grub/grub.cfg",
            configuration
                .replace("@ROOT@", ROOT)
                .replace("@RELEASE@", "6.1.0-40-cloud-amd64"),
        )
        .file("boot/grub/grubenv", "# GRUB Environment Block\n####")
        .file("boot/grub/unicode.pf2", "font")
        .file("boot/vmlinuz-6.1.0-40-cloud-amd64", kernel())
        .file("boot/initrd.img-6.1.0-40-cloud-amd64", prose(1, 1_000_001))
        .file(
            "boot/vmlinuz-6.1.0-37-cloud-amd64",
            bz_image("6.1.0-37-cloud-amd64", b"old"),
        )
        .file("boot/initrd.img-6.1.0-37-cloud-amd64", "old initrd")
        .link("vmlinuz", "boot/vmlinuz-6.1.0-40-cloud-amd64")
}

fn system(workshop: &Workshop) -> Tree {
    workshop
        .tree("efi")
        .file("EFI/BOOT/BOOTX64.EFI", "shim")
        .file("EFI/debian/grubx64.efi", "grub")
        .file(
            "EFI/debian/grub.cfg",
            format!("search.fs_uuid {ROOT} root \nset prefix=($root)'/boot/grub'\nconfigfile $prefix/grub.cfg\n"),
        )
}

fn disk(workshop: &Workshop, configuration: &str) -> PathBuf {
    let root = workshop.ext4("root.img", &root(workshop, configuration), ROOT, "root");
    let bios = workshop.blank("bios.img", 3 << 20);
    let efi = workshop.fat("efi.img", &system(workshop), "1A2B3C4D", "16");
    workshop.gpt(
        "disk.img",
        &[(14, "ef02", &bios), (15, "ef00", &efi), (1, "8304", &root)],
    )
}

#[test]
fn the_newest_kernel_boots() {
    let workshop = Workshop::new();
    let image = open(&disk(&workshop, GRUB_CFG)).unwrap();
    let entry = image.entry();
    assert_eq!(
        entry.to_string(),
        "Debian GNU/Linux, 6.1.0-40-cloud-amd64, from partition 1 /boot/grub/grub.cfg"
    );
    assert_eq!(entry.loader, Loader::Grub);
    assert_eq!(
        entry.command_line,
        format!(
            "BOOT_IMAGE=/boot/vmlinuz-6.1.0-40-cloud-amd64 root=UUID={ROOT} ro console=tty0 console=ttyS0,115200 earlyprintk=ttyS0,115200"
        )
    );
    assert_eq!(
        entry.kernel.to_string(),
        "partition 1 /boot/vmlinuz-6.1.0-40-cloud-amd64"
    );
    assert_eq!(
        (entry.kernel.uuid.as_str(), entry.kernel.label.as_deref()),
        (ROOT, Some("root"))
    );
    assert_contents(&image, &kernel(), &[&prose(1, 1_000_001)]);
}

#[test]
fn an_entry_of_the_submenu_can_be_the_default() {
    let id = format!("gnulinux-advanced-{ROOT}>gnulinux-6.1.0-37-cloud-amd64-advanced-{ROOT}");
    for default in ["1>2", id.as_str()] {
        let workshop = Workshop::new();
        let configuration = GRUB_CFG.replace("set default=\"0\"", &format!("set default=\"{default}\""));
        let image = open(&disk(&workshop, &configuration)).unwrap();
        assert_eq!(
            image.entry().kernel_release.as_deref(),
            Some("6.1.0-37-cloud-amd64"),
            "{default}"
        );
        assert_contents(&image, &bz_image("6.1.0-37-cloud-amd64", b"old"), &[b"old initrd"]);
    }
}

#[test]
fn a_disk_without_an_efi_partition_boots_as_with_a_bios() {
    let workshop = Workshop::new();
    let root = workshop.ext4("root.img", &root(&workshop, GRUB_CFG), ROOT, "root");
    // One primary partition, and one that is logical: root is number 5.
    let script = "label: dos\nstart=2048, size=8192, type=83\nstart=12288, type=5\nstart=16384, size=131072, type=83\n";
    let disk = workshop.mbr("disk.img", script, &[(16384 * 512, &root)]);
    let image = open(&disk).unwrap();
    assert_eq!(image.entry().configuration.partition, 5);
    assert_contents(&image, &kernel(), &[&prose(1, 1_000_001)]);
}

#[test]
fn a_file_system_on_the_whole_disk_boots() {
    let workshop = Workshop::new();
    let root = workshop.ext4("root.img", &root(&workshop, GRUB_CFG), ROOT, "root");
    let image = open(&root).unwrap();
    assert_eq!(
        image.entry().to_string(),
        "Debian GNU/Linux, 6.1.0-40-cloud-amd64, from /boot/grub/grub.cfg on the whole disk"
    );
    assert_contents(&image, &kernel(), &[&prose(1, 1_000_001)]);
}

#[test]
fn what_the_journal_still_holds_counts() {
    let workshop = Workshop::new();
    let root = workshop.ext4_crashed("root.img", &root(&workshop, GRUB_CFG), ROOT);
    let image = open(&root).unwrap();
    assert_contents(&image, &kernel(), &[&prose(1, 1_000_001)]);
}

#[test]
fn a_damaged_table_is_replaced_by_its_backup() {
    let workshop = Workshop::new();
    let path = disk(&workshop, GRUB_CFG);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[512 + 40] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let image = open(&path).unwrap();
    assert_contents(&image, &kernel(), &[&prose(1, 1_000_001)]);
}
