use super::*;
use crate::testing::MemoryFiles;

fn files() -> MemoryFiles {
    MemoryFiles::default()
        .volume(1, "11111111-aaaa")
        .file("/vmlinuz-1", "kernel")
        .file("/initrd-1", "initrd")
        .file("/early", "initrd")
        .file("/boot/grub/extra.cfg", "set extra=yes\n")
        .file(
            "/boot/grub/other.cfg",
            "menuentry Other { linux /vmlinuz-1 other=$shared }\n",
        )
        .file("/boot/grub/self.cfg", "source $prefix/self.cfg\n")
        .file("/boot/grub/again.cfg", "configfile $prefix/again.cfg\n")
        .file(
            "/boot/grub/grubenv",
            "# GRUB Environment Block\nsaved_entry=two\nodd=a\\\\b\\\nc\n#####",
        )
        .volume(16, "22222222-bbbb")
        .file("/vmlinuz-2", "kernel")
        .file("/program.efi", "EFI")
}

fn boot_with(files: MemoryFiles, script: &str, limits: &Limits) -> Result<Selection, String> {
    let volumes = files.volumes().len();
    let files = files.volume(99, "99").file("/boot/grub/grub.cfg", script);
    let configuration = FileRef {
        volume: VolumeId(volumes),
        path: "/boot/grub/grub.cfg".to_owned(),
    };
    select(&files, &configuration, "/boot/grub", Platform::Pc, limits).map(|(_, selection)| selection)
}

/// Runs a script whose `$root` and `$prefix` are on the first volume.
fn boot(script: &str) -> Result<Selection, String> {
    let script = format!("set root=hd0,gpt1\nset prefix=(hd0,gpt1)/boot/grub\n{script}");
    boot_with(files(), &script, &Limits::default())
}

/// What words a script hands to the kernel.
fn line(script: &str) -> String {
    let selection = boot(script).unwrap_or_else(|why| panic!("{script}: {why}"));
    let line = selection.command_line.unwrap();
    line.strip_prefix("BOOT_IMAGE=/vmlinuz-1")
        .unwrap()
        .trim_start()
        .to_owned()
}

#[test]
fn words_are_quoted_and_split_as_grub_does() {
    for (words, expected) in [
        ("a  b\tc", "a b c"),
        ("a\\ b", "\"a b\""),
        ("'a b' \"c d\"", "\"a b\" \"c d\""),
        ("'it'\\''s'", "it\\'s"),
        ("'$x' \"$x\" $x", "$x \"1 2\" 1 2"),
        ("a$x", "a1 2"),
        ("a${x}b", "a1 2b"),
        ("\"a${x}b\"", "\"a1 2b\""),
        ("$empty a \"$empty\" b", "a  b"),
        ("a'' ''", "a "),
        ("\"a\\\"b\\$x\\n\"", "a\\\"b$x\\\\n"),
        ("a#b # a comment", "a#b"),
        ("a \\\n b", "a b"),
        ("$unknown${unknown}x", "x"),
        ("$", "$"),
        ("x=$y,z", "x=2,z"),
        ("a;true", "a"),
    ] {
        let script = format!("set x='1 2'\ny=2\nlinux /vmlinuz-1 {words}\nboot\n");
        assert_eq!(line(&script), expected, "{words}");
    }
}

#[test]
fn the_language_has_its_statements() {
    for (script, expected) in [
        ("if true; then x=1; elif true; then x=2; else x=3; fi", "1"),
        ("if false; then x=1; elif true; then x=2; else x=3; fi", "2"),
        ("if false; then x=1\nelif false\nthen x=2\nelse\nx=3\nfi", "3"),
        ("if [ a = b -o -n \"$prefix\" ]; then x=1; fi", "1"),
        ("if test a = b; then x=1; else x=2; fi", "2"),
        ("if ! false; then x=1; fi", "1"),
        ("if no_such_command; then x=1; else x=2; fi", "2"),
        ("if keystatus --shift; then x=1; else x=2; fi", "2"),
        (
            "if [ -f /vmlinuz-1 -a -d (hd0,gpt16)/ -a ! -e /nothing ]; then x=1; fi",
            "1",
        ),
        ("for i in a b c; do x=$x$i; done", "abc"),
        (
            "for i in a b c; do if [ $i = b ]; then continue; fi; x=$x$i; done",
            "ac",
        ),
        ("for i in a b c; do if [ $i = b ]; then break; fi; x=$x$i; done", "a"),
        (
            "for i in a b; do for j in 1 2; do if [ $j = 2 ]; then break 2; fi; x=$x$i$j; done; done",
            "a1",
        ),
        ("while [ \"$x\" != aaa ]; do x=a$x; done", "aaa"),
        ("until [ \"$x\" = aa ]; do x=a$x; done", "aa"),
        ("function f { x=\"$1-$2-$#\"; }\nf one 'two three'", "one-two three-2"),
        ("function f\n{\nreturn 1\n}\nif f; then x=1; else x=2; fi", "2"),
        ("function f { g $@; }\nfunction g { x=$2; }\nf a b", "b"),
        ("false; x=$?", "1"),
        ("true; x=$?", "0"),
        ("source $prefix/extra.cfg; x=$extra", "yes"),
        (". (hd0,gpt1)/boot/grub/extra.cfg; x=$extra", "yes"),
        ("source /missing.cfg; x=$?", "1"),
        ("set x=a; unset x; x=$x.", "."),
        ("set y='a b'; x=$y", "a"),
        ("x=\"a b\"", "a b"),
        ("load_env; x=$saved_entry", "two"),
        ("load_env -f /boot/grub/grubenv odd; x=\"$saved_entry$odd\"", "a\\b\nc"),
        ("x=$grub_platform-$grub_cpu", "pc-i386"),
        ("search --no-floppy --fs-uuid --set=x 22222222-BBBB", "hd0,gpt16"),
        (
            "search --no-floppy --set x --fs-uuid --hint hd0,gpt1 22222222-bbbb",
            "hd0,gpt16",
        ),
        ("search --label label16 --set=x", "hd0,gpt16"),
        ("search --file /vmlinuz-2 --set=x", "hd0,gpt16"),
        ("search.fs_uuid 22222222-bbbb x hd0,gpt1", "hd0,gpt16"),
        ("if search --fs-uuid --set=x 3333; then x=1; else x=2; fi", "2"),
        ("probe --set=x --fs-uuid (hd0,gpt16)", "22222222-bbbb"),
        ("probe --set x -l hd0,gpt1", "label1"),
    ] {
        let script = format!("x=\n{script}\nset root=hd0,gpt1\nlinux /vmlinuz-1 \"$x\"\nboot\n");
        let expected = if expected.contains(' ') {
            format!("\"{expected}\"")
        } else {
            expected.replace('\\', "\\\\")
        };
        assert_eq!(line(&script), expected, "{script}");
    }
}

const MENU: &str = "\
menuentry One --class a --id one { linux /vmlinuz-1 entry=one }
menuentry 'Number Two' --id=two $args { linux /vmlinuz-1 entry=two; initrd /early /initrd-1 }
submenu 'More' --id more {
  menuentry Three --id three { linux /vmlinuz-1 entry=three }
  submenu Deeper { menuentry Four { linux /vmlinuz-1 \"entry=$1\" } }
}
menuentry Five { search --fs-uuid --set=root 22222222-bbbb; linux /vmlinuz-2 }
menuentry Broken { linux /missing }
menuentry Chain { chainloader (hd0,gpt16)/program.efi }
menuentry Firmware { fwsetup }
";

#[test]
fn the_default_is_found_by_number_title_and_id() {
    for (default, expected) in [
        ("", "entry=one"),
        ("0", "entry=one"),
        ("1", "entry=two"),
        ("two", "entry=two"),
        ("Number Two", "entry=two"),
        ("more", "entry=three"),
        ("2>0", "entry=three"),
        ("more>three", "entry=three"),
        ("2>1>0", "entry=Four"),
        ("More>Deeper>Four", "entry=Four"),
        ("99", "entry=one"),
        ("nonsense", "entry=one"),
    ] {
        assert_eq!(line(&format!("set default='{default}'\n{MENU}")), expected, "{default}");
    }
    assert_eq!(
        line(&format!("load_env\nset default=$saved_entry\n{MENU}")),
        "entry=two"
    );
    let two = boot(&format!("default=1\n{MENU}")).unwrap();
    assert_eq!(two.title.as_deref(), Some("Number Two"));
    let initrds: Vec<_> = two
        .initrds
        .iter()
        .map(|file| (file.volume.0, file.path.as_str()))
        .collect();
    assert_eq!(initrds, [(0, "/early"), (0, "/initrd-1")]);
    let five = boot(&format!("default=Five\n{MENU}")).unwrap();
    assert_eq!(
        (five.kernel.volume, five.kernel.path.as_str()),
        (VolumeId(1), "/vmlinuz-2")
    );
    assert_eq!(five.command_line.as_deref(), Some("BOOT_IMAGE=/vmlinuz-2"));
    let chain = boot(&format!("default=Chain\n{MENU}")).unwrap();
    assert_eq!((chain.kernel.path.as_str(), chain.command_line), ("/program.efi", None));
}

#[test]
fn an_entry_that_fails_has_a_reason_and_may_have_a_substitute() {
    let why = boot(&format!("default=Broken\n{MENU}")).unwrap_err();
    assert_eq!(why, "its entry \"Broken\": file /missing not found (root is hd0,gpt1)");
    let why = boot(&format!("default=Firmware\n{MENU}")).unwrap_err();
    assert_eq!(why, "its entry \"Firmware\": it loads no kernel");
    assert_eq!(line(&format!("default=Broken\nfallback='4 two'\n{MENU}")), "entry=two");
    assert!(boot("true").unwrap_err().contains("menu is empty"));
    assert!(boot("menuentry Halt { halt }").unwrap_err().contains("halt"));
}

#[test]
fn one_configuration_leads_to_another() {
    assert_eq!(
        line("shared=x\nmenuentry One { linux /vmlinuz-1 }\nconfigfile $prefix/other.cfg\n"),
        "other=x"
    );
    assert_eq!(
        line("shared=y\nmenuentry One { configfile $prefix/other.cfg }\n"),
        "other=y"
    );
    assert_eq!(
        line("configfile /missing\nmenuentry One { linux /vmlinuz-1 fine }\n"),
        "fine"
    );
}

#[test]
fn entries_of_the_boot_loader_specification_are_a_menu() {
    let entry = |version: &str| {
        format!(
            "title Fedora {version}\nlinux /vmlinuz-{version}\ninitrd /early $tuned_initrd\ninitrd /initrd-1\noptions $kernelopts quiet $tuned_params\n"
        )
    };
    let with_entries = || {
        MemoryFiles::default()
            .volume(1, "1")
            .file("/early", "")
            .file("/initrd-1", "")
            .file("/vmlinuz-1", "")
            .file("/vmlinuz-10", "")
            .file("/loader/entries/id-1-1.x86_64.conf", entry("1"))
            .file("/loader/entries/id-10-1.x86_64.conf", entry("10"))
            .file(
                "/loader/entries/id-9-1.x86_64.conf",
                entry("9").replace("quiet", "\"unclosed"),
            )
            .file("/loader/entries/id-0-rescue.conf", entry("rescue"))
    };
    let boot = |script: &str| {
        let script = format!("set root=hd0,gpt1\nkernelopts='root=/dev/vda1 ro'\n{script}\nblscfg\n");
        boot_with(with_entries(), &script, &Limits::default())
    };
    let newest = boot("").unwrap();
    assert_eq!(
        newest.command_line.as_deref(),
        Some("BOOT_IMAGE=(hd0,gpt1)/vmlinuz-10 root=/dev/vda1 ro quiet")
    );
    assert_eq!(newest.title.as_deref(), Some("Fedora 10"));
    let initrds: Vec<_> = newest.initrds.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(initrds, ["/early", "/initrd-1"]);
    for (default, kernel) in [
        ("1", "/vmlinuz-1"),
        ("id-1-1.x86_64", "/vmlinuz-1"),
        ("Fedora 1", "/vmlinuz-1"),
        ("gone", "/vmlinuz-10"),
    ] {
        assert_eq!(
            boot(&format!("default='{default}'")).unwrap().kernel.path,
            kernel,
            "{default}"
        );
    }
    assert!(boot("default=2").unwrap_err().contains("/vmlinuz-rescue"));
}

#[test]
fn what_is_not_in_the_language_is_an_error_with_its_line() {
    for (script, why) in [
        ("}", "line 3: a closing brace without an opening one"),
        ("\nmenuentry a {", "line 4: a block without its closing brace"),
        ("if true; then", "line 3: `if` without `fi`"),
        ("if true\nx=1\nfi", "line 5: a keyword out of place"),
        ("fi", "line 3: a keyword out of place"),
        ("for x; do true; done", "line 3: `for` without `in`"),
        ("function", "line 3: `function` without a name"),
        ("'unclosed", "line 3: a quote that is not closed"),
        ("${unclosed", "line 3: a variable without its closing brace"),
        ("{ a }", "line 3: a block without a command"),
        ("while true; done", "line 3: a keyword out of place"),
    ] {
        let error = boot(script).unwrap_err();
        assert!(error.ends_with(why), "{script}: {error}");
    }
}

#[test]
fn everything_has_an_end() {
    let large = "x".repeat(1000);
    for (script, why) in [
        ("while true; do true; done".to_owned(), "more than 100000 commands"),
        // Few commands, but with long words.
        (
            format!("x={large}\nfor i in 1 2 3 4 5 6 7; do x=$x$x; done\nwhile true; do y=$x; done"),
            "more than 100000 commands",
        ),
        ("function f { f; }\nf".to_owned(), "nested"),
        ("source $prefix/self.cfg".to_owned(), "nested"),
        ("configfile $prefix/again.cfg".to_owned(), "nested"),
        (
            format!("x={large}\nwhile true; do x=$x$x; done"),
            "too many or too long",
        ),
        (
            format!("x={large}\nwhile true; do y=y$y; eval; set v$y=$x; done"),
            "too many or too long",
        ),
        ("while true; do menuentry a { true }; done".to_owned(), "menu entries"),
        ("if ".repeat(1000), "nested"),
        ("a { ".repeat(1000), "nested"),
        ("! ".repeat(100_000), "nested"),
        ("a ".repeat(100_000), "words"),
        ("submenu a { ".repeat(30) + &"}".repeat(30), "menu is empty"),
    ] {
        let error = boot(&script).unwrap_err();
        let shown: String = script.chars().take(60).collect();
        assert!(error.contains(why), "{shown}: {error}");
    }
}

#[test]
fn environment_blocks_have_their_form() {
    let block = "# GRUB Environment Block\nsaved_entry=a b=c\nempty=\n#comment=1\nnext_entry=2>1\n##########";
    let pairs = [("saved_entry", "a b=c"), ("empty", ""), ("next_entry", "2>1")];
    let expected: Vec<_> = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    assert_eq!(parse_block(block), Some(expected));
    assert_eq!(parse_block("saved_entry=1\n"), None);
    assert_eq!(parse_block(""), None);
}
