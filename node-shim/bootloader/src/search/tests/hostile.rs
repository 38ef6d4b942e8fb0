//! Disks without anything to boot, and disks that are out to do harm.

use std::rc::Rc;

use super::image::{Workshop, open, open_within};
use crate::testing::bz_image;
use crate::{Limits, find};

const ROOT: &str = "f0c3d4e5-7708-4b5e-9c99-0d1e2f3a4007";

#[test]
fn a_disk_with_data_alone_says_where_was_looked() {
    let workshop = Workshop::new();
    let data = workshop.ext4("data.img", &workshop.tree("data").file("README", ""), ROOT, "data");
    let blank = workshop.blank("blank.img", 1 << 20);
    let disk = workshop.gpt("disk.img", &[(1, "8300", &data), (2, "8300", &blank)]);
    let error = open(&disk).err().unwrap().to_string();
    assert_eq!(
        error,
        "no kernel to boot was found on the disk: no boot loader's configuration is on it. Looked at partition 1: ext4 \"data\"; \
         partition 2: no file system that is known; name a kernel in spec.boot.kernel, or use an image with a boot loader (GRUB, \
         systemd-boot, EXTLINUX or a unified kernel image)"
    );
}

#[test]
fn an_empty_disk_is_no_disk_with_a_table() {
    let error = find(Rc::new(vec![0; 1 << 20]), &Limits::default())
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("no partition table and no file system"), "{error}");
    assert!(find(Rc::new(Vec::new()), &Limits::default()).is_err());
}

#[test]
fn each_place_says_what_is_wrong_there() {
    let workshop = Workshop::new();
    let root = workshop
        .tree("root")
        .file(
            "boot/grub/grub.cfg",
            "menuentry 'Gone' {\n linux /boot/vmlinuz-gone root=/dev/vda1\n}\n",
        )
        .file("boot/extlinux/extlinux.conf", "LABEL text\n LINUX /etc/motd\n")
        .file("etc/motd", "hello");
    let root = workshop.ext4("root.img", &root, ROOT, "root");
    let error = open(&root).err().unwrap();
    assert_eq!(
        error.places,
        [
            "the whole disk: ext4 \"root\"",
            "the whole disk /boot/grub/grub.cfg: its entry \"Gone\": file /boot/vmlinuz-gone not found (root is hd0)",
            "the whole disk /boot/extlinux/extlinux.conf: /etc/motd: it starts like neither a bzImage nor an ELF file",
        ]
    );
}

#[test]
fn links_in_circles_and_out_of_the_volume_lead_nowhere() {
    let workshop = Workshop::new();
    let tree = workshop
        .tree("root")
        .file(
            "boot/grub/grub.cfg",
            "linux /loop/a\nlinux /out/etc/hostname\nlinux /outside root=/dev/vda\nboot\n",
        )
        .file("vmlinuz", bz_image("1.0", b""))
        .link("a", "b")
        .link("b", "a")
        .link("outside", "../../../../../vmlinuz");
    let root = workshop.ext4("root.img", &tree, ROOT, "");
    let image = open(&root).unwrap();
    assert_eq!(
        image.entry().kernel_release.as_deref(),
        Some("1.0"),
        "the top's parent is the top"
    );
    assert_eq!(image.entry().command_line, "BOOT_IMAGE=/outside root=/dev/vda");
}

#[test]
fn a_small_allowance_is_an_error_and_not_a_wait() {
    let workshop = Workshop::new();
    let root = workshop.ext4(
        "root.img",
        &workshop.tree("root").file("boot/grub/grub.cfg", "true"),
        ROOT,
        "",
    );
    let limits = Limits {
        search_bytes: 64 << 10,
        ..Limits::default()
    };
    let error = open_within(&root, &limits).err().unwrap().to_string();
    assert!(error.contains("more reading than is allowed"), "{error}");
    let limits = Limits {
        kernel_bytes: 100,
        ..Limits::default()
    };
    let tree = workshop
        .tree("large")
        .file("boot/grub/grub.cfg", "linux /vmlinuz\nboot\n")
        .file("vmlinuz", bz_image("1.0", b""));
    let large = workshop.ext4("large.img", &tree, ROOT, "");
    let error = open_within(&large, &limits).err().unwrap().to_string();
    assert!(error.contains("at most 100 can be loaded"), "{error}");
}

#[test]
fn damaged_bytes_never_panic() {
    let workshop = Workshop::new();
    let tree = workshop
        .tree("root")
        .file("boot/grub/grub.cfg", "linux /vmlinuz\nboot\n")
        .file("vmlinuz", bz_image("1.0", b"payload"));
    let root = workshop.ext4("root.img", &tree, ROOT, "");
    let bytes = std::fs::read(root).unwrap();
    for seed in 0..16_usize {
        let mut damaged = bytes.clone();
        for step in 0..64 {
            let at = 1024 + (seed * 7919 + step * step * 104_729) % (256 << 10);
            damaged[at] ^= u8::try_from(1 << (step % 8)).unwrap();
        }
        // Whatever it is, it is an answer.
        let _ = find(Rc::new(damaged), &Limits::default());
    }
}
