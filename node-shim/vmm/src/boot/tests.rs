use super::*;

const PAGE: u64 = layout::PAGE_SIZE;

#[test]
fn formats_are_told_apart_by_their_magic() {
    let mut bzimage = vec![0; 1024];
    bzimage[0x202..0x206].copy_from_slice(b"HdrS");
    assert_eq!(format_of(&bzimage), Ok(Format::BzImage));
    assert_eq!(format_of(b"\x7fELF\x02"), Ok(Format::Elf));
    for (head, why) in [
        (&b""[..], "empty"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"MZ", "EFI"),
        (b"#!/bin/sh", "neither"),
        (&[0; 0x204], "neither"),
    ] {
        assert!(format_of(head).unwrap_err().contains(why));
    }
}

#[test]
fn the_initrd_goes_as_high_as_everything_allows() {
    let placement = |kernel_end, initrd_max| Placement { kernel_end, initrd_max };
    let anywhere = u64::from(u32::MAX);
    let cases = [
        (256 * MIB, 10 * MIB, placement(64 * MIB, anywhere), 246 * MIB),
        (256 * MIB, 10 * MIB - 1, placement(64 * MIB, anywhere), 246 * MIB),
        (
            8192 * MIB,
            10 * MIB,
            placement(64 * MIB, anywhere),
            layout::HOLE_START - 10 * MIB,
        ),
        (
            8192 * MIB,
            10 * MIB,
            placement(64 * MIB, 0x7fff_ffff),
            0x8000_0000 - 10 * MIB,
        ),
        (256 * MIB, 0, placement(64 * MIB, anywhere), 256 * MIB),
    ];
    for (memory, initrd, placement, expected) in cases {
        assert_eq!(initrd_start(memory, initrd, &placement).unwrap(), expected);
    }
}

#[test]
fn too_little_memory_says_how_much_is_needed() {
    let placement = Placement {
        kernel_end: 64 * MIB,
        initrd_max: u64::from(u32::MAX),
    };
    for (memory, initrd) in [
        (63 * MIB, 0),
        (64 * MIB, 1),
        (72 * MIB, 9 * MIB),
        (64 * MIB, u64::from(u32::MAX)),
    ] {
        let error = initrd_start(memory, initrd, &placement).unwrap_err();
        let BootError::TooLittleMemory { need_bytes, .. } = error else {
            panic!("{error}");
        };
        assert_eq!(need_bytes, 64 * MIB + initrd.next_multiple_of(PAGE));
    }
}

fn source(kernel: &[u8]) -> Result<KernelFiles, BootError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kernel");
    std::fs::write(&path, kernel).unwrap();
    KernelFiles::open(&KernelBoot {
        kernel: path,
        initrd: None,
        command_line: "console=ttyS0".to_owned(),
    })
}

#[test]
fn what_is_no_kernel_is_refused_with_its_name() {
    let error = source(b"#!/bin/sh").err().unwrap().to_string();
    assert!(error.contains("kernel is not a kernel"), "{error}");
}

#[test]
fn hostile_headers_are_errors_and_never_panics() {
    let memory = crate::memory::map(&crate::memory::Plan::fixed(64 * MIB), None).unwrap();
    let mut bzimage = vec![0xff; 4096];
    bzimage[0x202..0x206].copy_from_slice(b"HdrS");
    let mut elf = vec![0xff; 4096];
    elf[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\x00");
    let cut_off = bzimage[..0x206].to_vec();
    for kernel in [bzimage, elf, cut_off, b"\x7fELF".to_vec()] {
        let source = source(&kernel).unwrap();
        assert!(source.load(&memory, 64 * MIB, layout::ACPI_TABLES).is_err());
    }
}

/// A 64-bit ELF file with one segment at 1 MiB and, if wanted, a PVH note.
fn elf(with_note: bool) -> Vec<u8> {
    let mut file = vec![0_u8; 0x1000];
    file[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\x00");
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x10, &2_u16.to_le_bytes());
    put(0x12, &62_u16.to_le_bytes());
    put(0x18, &layout::HIGH_RAM_START.to_le_bytes());
    put(0x20, &64_u64.to_le_bytes());
    put(0x36, &56_u16.to_le_bytes());
    put(0x38, &2_u16.to_le_bytes());
    let mut header = |at: usize, kind: u32, offset: u64, address: u64, size: u64| {
        put(at, &kind.to_le_bytes());
        put(at + 8, &offset.to_le_bytes());
        put(at + 24, &address.to_le_bytes());
        put(at + 32, &size.to_le_bytes());
        put(at + 40, &size.to_le_bytes());
        put(at + 48, &4_u64.to_le_bytes());
    };
    header(64, 1, 0x800, layout::HIGH_RAM_START, 16);
    header(120, 4, 0x400, 0, if with_note { 20 } else { 0 });
    if with_note {
        let note: Vec<u8> = [4_u32, 4, 18].iter().flat_map(|word| word.to_le_bytes()).collect();
        put(0x400, &note);
        put(0x40c, b"Xen\0");
        put(0x410, &0x10_0008_u32.to_le_bytes());
    }
    file
}

#[test]
fn a_pvh_kernel_starts_where_its_note_says_and_finds_its_start_info() {
    let memory = crate::memory::map(&crate::memory::Plan::fixed(64 * MIB), None).unwrap();
    let entry = source(&elf(true)).unwrap().load(&memory, 64 * MIB, 0xe_0000).unwrap();
    assert_eq!(entry, Entry::Pvh { address: 0x10_0008 });
    let read = |offset| {
        memory
            .read_obj::<u32>(GuestAddress(layout::PVH_START_INFO + offset))
            .unwrap()
    };
    assert_eq!((read(0), read(4), read(12)), (0x336e_c578, 1, 0));
    assert_eq!(u64::from(read(24)), layout::COMMAND_LINE);
    assert_eq!(read(32), 0xe_0000);
    let mut line = [0; 14];
    memory
        .read_slice(&mut line, GuestAddress(layout::COMMAND_LINE))
        .unwrap();
    assert_eq!(&line, b"console=ttyS0\0");
}

#[test]
fn an_elf_file_without_the_note_is_refused() {
    let memory = crate::memory::map(&crate::memory::Plan::fixed(64 * MIB), None).unwrap();
    let error = source(&elf(false))
        .unwrap()
        .load(&memory, 64 * MIB, 0xe_0000)
        .unwrap_err()
        .to_string();
    assert!(error.contains("PVH"), "{error}");
}
