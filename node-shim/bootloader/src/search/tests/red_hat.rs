//! RHEL and its rebuilds: GPT, an EFI system partition, `/boot` and root on XFS, entries of the Boot Loader Specification.

use std::path::PathBuf;

use super::image::{Tree, Workshop, assert_contents, noise, open};
use crate::testing::bz_image;

const ROOT: &str = "c7f0a1b2-44d5-4e2b-8f66-7a8b9c0d1004";
const BOOT: &str = "d8a1b2c3-55e6-4f3c-9a77-8b9c0d1e2005";
const MACHINE: &str = "ffeeddccbbaa99887766554433221100";
const NEW: &str = "5.14.0-570.12.1.el9_6.x86_64";
const OLD: &str = "5.14.0-70.13.1.el9_0.x86_64";

const GRUB_CFG: &str = include_str!("../../../layouts/fedora.cfg");

fn kernel() -> Vec<u8> {
    bz_image(NEW, &noise(6, 4_000_000))
}

fn entry(release: &str, options: &str) -> String {
    format!(
        "title Red Hat Enterprise Linux ({release}) 9.6 (Plow)\nversion {release}\nlinux /vmlinuz-{release}\n\
         initrd /initramfs-{release}.img $tuned_initrd\noptions {options}\ngrub_users $grub_users\ngrub_class rhel\n"
    )
}

fn boot(workshop: &Workshop, options: &str, environment: &str) -> Tree {
    let mut tree = workshop
        .tree("boot")
        .file(
            "grub2/grub.cfg",
            GRUB_CFG
                .replace("@ROOT@", ROOT)
                .replace("@BOOT@", BOOT)
                .replace("@MODULE@", "xfs"),
        )
        .file("grub2/grubenv", format!("# GRUB Environment Block\n{environment}####"))
        .file(&format!("loader/entries/{MACHINE}-{NEW}.conf"), entry(NEW, options))
        .file(&format!("loader/entries/{MACHINE}-{OLD}.conf"), entry(OLD, options))
        .file(&format!("vmlinuz-{NEW}"), kernel())
        .file(&format!("initramfs-{NEW}.img"), noise(7, 900_002))
        .file(&format!("vmlinuz-{OLD}"), bz_image(OLD, b""))
        .file(&format!("initramfs-{OLD}.img"), "old");
    // Enough names for a directory of more than one block.
    for number in 0..300 {
        tree = tree.file(&format!("grub2/i386-pc/module-with-a-long-name-{number}.mod"), "");
    }
    tree
}

fn disk(workshop: &Workshop, boot: &Tree, crashed: bool) -> PathBuf {
    let boot = workshop.xfs("boot.img", boot, BOOT, crashed);
    let root = workshop.xfs("root.img", &workshop.tree("root").file("etc/fstab", ""), ROOT, false);
    let stub = format!(
        "search --no-floppy --set prefix --file /grub2/grub.cfg\nset prefix=($prefix)/grub2\n\
         search --no-floppy --fs-uuid --set=dev {BOOT}\nset prefix=($dev)/grub2\nexport $prefix\nconfigfile $prefix/grub.cfg\n"
    );
    let efi = workshop
        .tree("efi")
        .file("EFI/BOOT/BOOTX64.EFI", "shim")
        .file("EFI/redhat/grub.cfg", stub);
    let efi = workshop.fat("efi.img", &efi, "7B77CAF3", "32");
    let bios = workshop.blank("bios.img", 1 << 20);
    workshop.gpt(
        "disk.img",
        &[
            (1, "ef02", &bios),
            (2, "ef00", &efi),
            (3, "ea00", &boot),
            (4, "8304", &root),
        ],
    )
}

#[test]
fn the_newest_entry_boots() {
    let workshop = Workshop::new();
    let options = format!("root=UUID={ROOT} console=ttyS0,115200n8 no_timer_check $tuned_params");
    let boot = boot(&workshop, &options, "boot_success=0\n");
    let image = open(&disk(&workshop, &boot, false)).unwrap();
    let entry = image.entry();
    assert_eq!(
        entry.to_string(),
        format!(
            "Red Hat Enterprise Linux ({NEW}) 9.6 (Plow), {NEW}, from partition 3 /loader/entries/{MACHINE}-{NEW}.conf"
        )
    );
    assert_eq!(
        entry.command_line,
        format!("BOOT_IMAGE=(hd0,gpt3)/vmlinuz-{NEW} root=UUID={ROOT} console=ttyS0,115200n8 no_timer_check")
    );
    assert_contents(&image, &kernel(), &[&noise(7, 900_002)]);
}

#[test]
fn options_may_be_in_the_environment_block() {
    let workshop = Workshop::new();
    let environment = format!("saved_entry={MACHINE}-{NEW}\nkernelopts=root=UUID={ROOT} ro crashkernel=auto \n");
    let boot = boot(&workshop, "$kernelopts $tuned_params", &environment);
    let image = open(&disk(&workshop, &boot, false)).unwrap();
    assert_eq!(
        image.entry().command_line,
        format!("BOOT_IMAGE=(hd0,gpt3)/vmlinuz-{NEW} root=UUID={ROOT} ro crashkernel=auto")
    );
}

#[test]
fn what_the_log_still_holds_counts() {
    let workshop = Workshop::new();
    let boot = boot(&workshop, "root=/dev/vda4", "");
    let image = open(&disk(&workshop, &boot, true)).unwrap();
    assert_contents(&image, &kernel(), &[&noise(7, 900_002)]);
}
