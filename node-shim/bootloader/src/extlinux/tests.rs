use super::*;
use crate::testing::MemoryFiles;

fn boot(text: &str) -> Result<Selection, String> {
    let files = MemoryFiles::default()
        .volume(1, "1")
        .file("/boot/extlinux/extlinux.conf", text)
        .file("/boot/extlinux/more.conf", "LABEL more\nKERNEL /vmlinuz-more\n")
        .file("/boot/extlinux/self.conf", "INCLUDE self.conf\n");
    select(&files, VolumeId(0), "/boot/extlinux/extlinux.conf", &Limits::default())
}

#[test]
fn the_default_label_boots() {
    let labels = "LABEL one\n KERNEL one\nLABEL two\n MENU LABEL ^Two\n LINUX /two\n INITRD /a.img,../b.img\n APPEND root=/dev/vda1 ro\n";
    for (start, kernel) in [
        ("", "/boot/extlinux/one"),
        ("DEFAULT two\n", "/two"),
        ("default TWO extra arguments\n", "/two"),
        ("DEFAULT one\nONTIMEOUT two\n", "/two"),
        ("DEFAULT menu.c32\n", "/boot/extlinux/one"),
        ("INCLUDE more.conf\nDEFAULT more\n", "/vmlinuz-more"),
        ("MENU INCLUDE more.conf\nDEFAULT more\n", "/vmlinuz-more"),
        ("INCLUDE missing.conf\n", "/boot/extlinux/one"),
    ] {
        assert_eq!(
            boot(&format!("{start}{labels}")).unwrap().kernel.path,
            kernel,
            "{start}"
        );
    }
    let two = boot(&format!("DEFAULT two\n{labels}")).unwrap();
    assert_eq!(two.title.as_deref(), Some("Two"));
    assert_eq!(two.command_line.as_deref(), Some("BOOT_IMAGE=/two root=/dev/vda1 ro"));
    let initrds: Vec<_> = two.initrds.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(initrds, ["/a.img", "/boot/b.img"]);
}

#[test]
fn arguments_may_name_the_initrd_and_come_from_above() {
    let selection = boot("APPEND quiet initrd=/i1,/i2 ro\nLABEL a\nKERNEL /a\n").unwrap();
    assert_eq!(selection.command_line.as_deref(), Some("BOOT_IMAGE=/a quiet ro"));
    assert_eq!(selection.initrds.len(), 2);
    let selection = boot("APPEND quiet\nLABEL a\nKERNEL /a\nAPPEND -\n").unwrap();
    assert_eq!(selection.command_line.as_deref(), Some("BOOT_IMAGE=/a"));
}

#[test]
fn what_leads_nowhere_is_an_error() {
    for text in ["", "DEFAULT a\n", "LABEL a\nMENU DEFAULT\n", "INCLUDE self.conf\n"] {
        assert!(boot(text).is_err(), "{text}");
    }
    let many = "LABEL a\n".repeat(Limits::default().entries + 1);
    assert!(boot(&many).unwrap_err().contains("too many"));
    let many = format!("LABEL a\nKERNEL /a\nINITRD {}\n", "/i,".repeat(100));
    assert!(boot(&many).unwrap_err().contains("too many"));
}
