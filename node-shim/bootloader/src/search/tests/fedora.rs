//! Fedora 44: GPT, an EFI system partition and btrfs with subvolumes; `/boot` is one of them, or a directory in `root`; entries of the
//! Boot Loader Specification.

use std::path::{Path, PathBuf};

use super::image::{Tree, Workshop, assert_contents, noise, open, prose};
use crate::testing::bz_image;

const MACHINE: &str = "0f1e2d3c4b5a69788796a5b4c3d2e1f0";
const NEW: &str = "6.19.1-300.fc44.x86_64";
const OLD: &str = "6.9.12-300.fc44.x86_64";

const GRUB_CFG: &str = include_str!("../../../layouts/fedora.cfg");

/// The kernel mounts no two btrfs with one UUID, so each test has its own.
fn uuid(number: u32) -> String {
    format!("a4cbdc1c-1f0e-4a53-bb0d-3f7ad1b0c{number:03}")
}

fn kernel() -> Vec<u8> {
    bz_image(NEW, &noise(4, 5_000_000))
}

fn initrd() -> Vec<u8> {
    [noise(5, 700_001), prose(9, 2_000_000)].concat()
}

fn entry(fs: &str, release: &str, prefix: &str) -> String {
    format!(
        "title Fedora Linux ({release}) 44 (Cloud Edition)\nversion {release}\nlinux {prefix}/vmlinuz-{release}\n\
         initrd {prefix}/initramfs-{release}.img $tuned_initrd\n\
         options root=UUID={fs} ro rootflags=subvol=root console=ttyS0,115200n8 $tuned_params\n\
         grub_users $grub_users\ngrub_arg --unrestricted\ngrub_class fedora\n"
    )
}

/// `/boot`, at `at` in the tree, whose paths start with `prefix` from the top of the file system.
fn boot(tree: Tree, fs: &str, at: &str, prefix: &str, environment: &str) -> Tree {
    let rescue = entry(fs, &format!("0-rescue-{MACHINE}"), prefix);
    tree.file(
        &format!("{at}/grub2/grub.cfg"),
        GRUB_CFG
            .replace("@ROOT@", fs)
            .replace("@BOOT@", fs)
            .replace("@MODULE@", "btrfs"),
    )
    .file(
        &format!("{at}/grub2/grubenv"),
        format!("# GRUB Environment Block\n{environment}####"),
    )
    .file(
        &format!("{at}/loader/entries/{MACHINE}-{NEW}.conf"),
        entry(fs, NEW, prefix),
    )
    .file(
        &format!("{at}/loader/entries/{MACHINE}-{OLD}.conf"),
        entry(fs, OLD, prefix),
    )
    .file(&format!("{at}/loader/entries/{MACHINE}-0-rescue.conf"), rescue)
    .file(&format!("{at}/vmlinuz-{NEW}"), kernel())
    .file(&format!("{at}/initramfs-{NEW}.img"), initrd())
    .file(&format!("{at}/vmlinuz-{OLD}"), bz_image(OLD, &prose(1, 300_000)))
    .file(&format!("{at}/initramfs-{OLD}.img"), "old initrd")
}

fn disk(workshop: &Workshop, fs: &str, btrfs: &Path, prefix: &str) -> PathBuf {
    let stub = format!(
        "search --no-floppy --root-dev-only --fs-uuid --set=dev {fs}\nset prefix=($dev){prefix}/grub2\nexport $prefix\n\
         configfile $prefix/grub.cfg\n"
    );
    let efi = workshop
        .tree("efi")
        .file("EFI/BOOT/BOOTX64.EFI", "shim")
        .file("EFI/BOOT/fbx64.efi", "fallback")
        .file("EFI/fedora/grubx64.efi", "grub")
        .file("EFI/fedora/grub.cfg", stub);
    let efi = workshop.fat("efi.img", &efi, "9ABC0123", "32");
    let bios = workshop.blank("bios.img", 2 << 20);
    workshop.gpt("disk.img", &[(1, "ef02", &bios), (2, "ef00", &efi), (3, "8304", btrfs)])
}

#[test]
fn boot_is_a_subvolume() {
    for (number, compression) in [(1, "zstd"), (2, "lzo"), (3, "zlib")] {
        let fs = &uuid(number);
        let workshop = Workshop::new();
        let tree = boot(workshop.tree("top"), fs, "boot", "/boot", "boot_success=1\n")
            .file("root/etc/fstab", "")
            .file("home/README", "");
        let btrfs = workshop.btrfs("fs.img", &tree, fs, compression, None);
        let image = open(&disk(&workshop, fs, &btrfs, "/boot")).unwrap();
        let entry = image.entry();
        assert_eq!(
            entry.to_string(),
            format!(
                "Fedora Linux ({NEW}) 44 (Cloud Edition), {NEW}, from partition 3 /boot/loader/entries/{MACHINE}-{NEW}.conf"
            )
        );
        assert_eq!(
            entry.command_line,
            format!(
                "BOOT_IMAGE=(hd0,gpt3)/boot/vmlinuz-{NEW} root=UUID={fs} ro rootflags=subvol=root console=ttyS0,115200n8"
            )
        );
        assert_contents(&image, &kernel(), &[&initrd()]);
    }
}

#[test]
fn the_saved_entry_is_what_boots() {
    let workshop = Workshop::new();
    let fs = &uuid(11);
    let environment = format!("saved_entry={MACHINE}-{OLD}\nmenu_auto_hide=1\nboot_success=1\n");
    let tree = boot(workshop.tree("top"), fs, "boot", "/boot", &environment).file("root/etc/fstab", "");
    let btrfs = workshop.btrfs("fs.img", &tree, fs, "zstd", None);
    let image = open(&disk(&workshop, fs, &btrfs, "/boot")).unwrap();
    assert_eq!(image.entry().kernel_release.as_deref(), Some(OLD));
    assert_contents(&image, &bz_image(OLD, &prose(1, 300_000)), &[b"old initrd"]);
}

#[test]
fn boot_is_a_directory_of_the_root_subvolume() {
    let workshop = Workshop::new();
    let fs = &uuid(12);
    let tree = boot(
        workshop.tree("top"),
        fs,
        "root/boot",
        "/root/boot",
        "blsdir=/root/boot/loader/entries\n",
    )
    .file("home/README", "");
    let btrfs = workshop.btrfs("fs.img", &tree, fs, "zstd", None);
    // Once as with EFI, and once as with a BIOS.
    for path in [disk(&workshop, fs, &btrfs, "/root/boot"), btrfs] {
        let image = open(&path).unwrap();
        assert_eq!(image.entry().kernel_release.as_deref(), Some(NEW));
        assert_contents(&image, &kernel(), &[&initrd()]);
    }
}

#[test]
fn paths_may_start_at_the_default_subvolume() {
    let workshop = Workshop::new();
    let fs = &uuid(13);
    let tree = boot(workshop.tree("top"), fs, "root/boot", "/boot", "");
    let btrfs = workshop.btrfs("fs.img", &tree, fs, "zstd", Some("root"));
    let image = open(&disk(&workshop, fs, &btrfs, "/boot")).unwrap();
    assert_eq!(image.entry().kernel_release.as_deref(), Some(NEW));
    assert_contents(&image, &kernel(), &[&initrd()]);
}
