use super::*;
use crate::testing::{MemoryFiles, bz_image};
use crate::unified::tests::image as pe;

fn entry(lines: &str) -> String {
    format!("linux /linux\noptions quiet\n{lines}")
}

fn ids(files: &MemoryFiles, volumes: &[usize]) -> Vec<String> {
    let volumes: Vec<VolumeId> = volumes.iter().copied().map(VolumeId).collect();
    select(files, &volumes, "/loader", &Limits::default())
        .unwrap()
        .into_iter()
        .map(|(file, _)| file.path.rsplit('/').next().unwrap().to_owned())
        .collect()
}

fn entries() -> MemoryFiles {
    MemoryFiles::default()
        .volume(1, "AAAA-0001")
        .file("/loader/entries/old.conf", entry("sort-key debian\nversion 6.1.0-37\n"))
        .file("/loader/entries/new.conf", entry("sort-key debian\nversion 6.1.0-40\n"))
        .file("/loader/entries/arch.conf", entry("sort-key arch\nversion 1\n"))
        .file("/loader/entries/plain-9.conf", entry(""))
        .file("/loader/entries/plain-10.conf", entry(""))
        .file("/loader/entries/failed+0-3.conf", entry("sort-key a\nversion 99\n"))
        .file("/loader/entries/foreign.conf", entry("sort-key a\narchitecture aa64\n"))
        .file("/loader/entries/nothing.conf", "title nothing to start\n")
        .file("/loader/entries/README", "no entry")
}

#[test]
fn the_menu_is_sorted_as_systemd_boot_does() {
    assert_eq!(
        ids(&entries(), &[0]),
        [
            "arch.conf",
            "new.conf",
            "old.conf",
            "plain-10.conf",
            "plain-9.conf",
            "failed+0-3.conf"
        ]
    );
}

#[test]
fn the_default_is_a_pattern() {
    for (configuration, first) in [
        ("default old.conf\n", "old.conf"),
        ("timeout 3\ndefault   plain-*\n", "plain-10.conf"),
        ("default OLD\n", "old.conf"),
        ("default failed", "failed+0-3.conf"),
        ("default ???.conf", "new.conf"),
        ("default nothing-like-it", "arch.conf"),
        ("default @saved", "arch.conf"),
        ("#default old.conf", "arch.conf"),
    ] {
        let files = entries().file("/loader/loader.conf", configuration);
        assert_eq!(ids(&files, &[0])[0], first, "{configuration}");
    }
}

#[test]
fn unified_kernels_are_entries_too() {
    let unified = |version: &str| {
        let release = format!("ID=debian\nVERSION_ID={version}\nPRETTY_NAME='Debian {version}'\n");
        pe(&[(".osrel", release.as_bytes()), (".linux", &bz_image("6", b""))])
    };
    let files = entries()
        .volume(2, "AAAA-0002")
        .file("/EFI/Linux/debian-12.efi", unified("12"))
        .file("/EFI/Linux/debian-13+3.EFI", unified("13"))
        .file("/EFI/Linux/shell.efi", pe(&[(".text", b"shell")]));
    let all = ids(&files, &[0, 1]);
    assert_eq!(all[..4], ["arch.conf", "debian-13+3.EFI", "debian-12.efi", "new.conf"]);
    let (file, selection) = select(&files, &[VolumeId(1)], "/loader", &Limits::default())
        .unwrap()
        .remove(0);
    assert_eq!(file, selection.kernel);
    assert_eq!(
        (selection.title.as_deref(), selection.command_line),
        (Some("Debian 13"), None)
    );
}

#[test]
fn patterns_take_no_time_that_grows_without_bounds() {
    let pattern = "*a".repeat(500);
    assert!(!matches(&pattern, &"a".repeat(499)));
    assert!(matches(&pattern, &"a".repeat(500)));
    assert!(matches("**", ""));
    assert!(!matches("?", ""));
}

#[test]
fn nothing_to_choose_from_is_an_error() {
    let files = MemoryFiles::default().volume(1, "AAAA-0001");
    assert!(
        select(&files, &[VolumeId(0)], "/loader", &Limits::default())
            .unwrap_err()
            .contains("no entries")
    );
}
