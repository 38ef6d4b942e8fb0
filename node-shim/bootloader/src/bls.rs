//! Entries of the Boot Loader Specification (UAPI.1), type 1: one small text file for each.

use crate::limits::Limits;

/// The name that such an entry gives x86-64.
const ARCHITECTURE: &str = "x64";

/// One entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// The file's name without `.conf` and without the boot counter.
    pub id: String,
    /// The file's name without `.conf`.
    pub name: String,
    /// What a menu shows.
    pub title: Option<String>,
    /// Version of the kernel.
    pub version: Option<String>,
    /// `/etc/machine-id` of the system.
    pub machine_id: Option<String>,
    /// What entries are sorted by first.
    pub sort_key: Option<String>,
    /// The kernel.
    pub linux: Option<String>,
    /// A unified kernel, from the key `uki` or `efi`.
    pub efi: Option<String>,
    /// Initial RAM disks.
    pub initrds: Vec<String>,
    /// The command line: all `options` in order.
    pub options: String,
    /// Attempts that are left, where the name counts them.
    pub tries_left: Option<u32>,
    /// Whether it is for another architecture.
    pub foreign: bool,
}

/// Reads an entry; `None` where it is longer than allowed.
pub fn parse(file_name: &str, text: &str, limits: &Limits) -> Option<Entry> {
    let name = file_name.strip_suffix(".conf").unwrap_or(file_name);
    let (id, tries_left) = boot_counter(name);
    let mut entry = Entry {
        id: id.to_owned(),
        name: name.to_owned(),
        tries_left,
        ..Entry::default()
    };
    for line in text.lines().map(str::trim) {
        let Some((key, value)) = line.split_once([' ', '\t']) else {
            continue;
        };
        let value = value.trim();
        if value.is_empty() || key.starts_with('#') {
            continue;
        }
        let owned = || Some(value.to_owned());
        match key {
            "title" => entry.title = owned(),
            "version" => entry.version = owned(),
            "machine-id" => entry.machine_id = owned(),
            "sort-key" => entry.sort_key = owned(),
            "linux" => entry.linux = owned(),
            "efi" | "uki" => entry.efi = owned(),
            "architecture" => entry.foreign = !value.eq_ignore_ascii_case(ARCHITECTURE),
            "initrd" => {
                // Fedora writes several into one line.
                for path in value.split_whitespace() {
                    if entry.initrds.len() == limits.initrds {
                        return None;
                    }
                    entry.initrds.push(path.to_owned());
                }
            }
            "options" => {
                if entry.options.len() + value.len() >= limits.command_line_bytes {
                    return None;
                }
                if !entry.options.is_empty() {
                    entry.options.push(' ');
                }
                entry.options.push_str(value);
            }
            _ => {}
        }
    }
    Some(entry)
}

/// Takes `+LEFT` or `+LEFT-DONE` off a name ("Automatic Boot Assessment").
pub fn boot_counter(name: &str) -> (&str, Option<u32>) {
    let counter = name.rsplit_once('+').and_then(|(id, counter)| {
        let (left, done) = counter.split_once('-').unwrap_or((counter, "0"));
        let number = |text: &str| {
            text.bytes()
                .all(|byte| byte.is_ascii_digit())
                .then(|| text.parse::<u32>().ok())
                .flatten()
        };
        number(done)?;
        Some((id, number(left)?))
    });
    match counter {
        Some((id, left)) => (id, Some(left)),
        None => (name, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_as_kernel_install_writes_it() {
        let text = "\
# a comment
title      Fedora Linux 44 (Cloud Edition)
version    6.19.1-300.fc44.x86_64
linux\t/boot/vmlinuz-6.19.1-300.fc44.x86_64
initrd /boot/initramfs-6.19.1-300.fc44.x86_64.img $tuned_initrd
options root=UUID=5c1ab1e5 ro
options   rootflags=subvol=root console=ttyS0
grub_users $grub_users
nonsense
";
        let entry = parse("0123-6.19.1-300.fc44.x86_64+3-1.conf", text, &Limits::default()).unwrap();
        assert_eq!(entry.id, "0123-6.19.1-300.fc44.x86_64");
        assert_eq!(entry.name, "0123-6.19.1-300.fc44.x86_64+3-1");
        assert_eq!(entry.tries_left, Some(3));
        assert_eq!(entry.title.as_deref(), Some("Fedora Linux 44 (Cloud Edition)"));
        assert_eq!(entry.linux.as_deref(), Some("/boot/vmlinuz-6.19.1-300.fc44.x86_64"));
        assert_eq!(
            entry.initrds,
            ["/boot/initramfs-6.19.1-300.fc44.x86_64.img", "$tuned_initrd"]
        );
        assert_eq!(
            entry.options,
            "root=UUID=5c1ab1e5 ro rootflags=subvol=root console=ttyS0"
        );
        assert!(!entry.foreign);
        assert!(
            parse("a.conf", "architecture aa64", &Limits::default())
                .unwrap()
                .foreign
        );
    }

    #[test]
    fn attempts_are_counted_in_names() {
        for (name, expected) in [
            ("arch+3", ("arch", Some(3))),
            ("arch+0-3", ("arch", Some(0))),
            ("arch", ("arch", None)),
            ("5.4+deb", ("5.4+deb", None)),
            ("5.4+deb+2", ("5.4+deb", Some(2))),
            ("a+", ("a+", None)),
            ("a+-1", ("a+-1", None)),
            ("a+99999999999", ("a+99999999999", None)),
        ] {
            assert_eq!(boot_counter(name), expected, "{name}");
        }
    }

    #[test]
    fn too_much_is_refused() {
        let limits = Limits::default();
        let long = format!("options {}\n", "x".repeat(limits.command_line_bytes));
        assert!(parse("a.conf", &long, &limits).is_none());
        let many = "initrd /a\n".repeat(limits.initrds + 1);
        assert!(parse("a.conf", &many, &limits).is_none());
    }
}
