use std::io::{Read, Write};
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::block::storage::{Access, Extent};
use crate::buffers::Buffers;

/// The images that `fixtures/make` makes.
macro_rules! fixture {
    ($name:literal) => {
        ($name, include_bytes!(concat!("fixtures/", $name, ".gz")) as &[u8])
    };
}

type Fixture = (&'static str, &'static [u8]);

const DISK: Fixture = fixture!("disk.raw");
const CHILD: Fixture = fixture!("child.qcow2");
const SNAPSHOT: Fixture = fixture!("snapshot.qcow2");
/// All of them hold [`DISK`].
const SAME_DISK: [(Fixture, Format); 11] = [
    (DISK, Format::Raw),
    (fixture!("v2.qcow2"), Format::Qcow2),
    (fixture!("v3.qcow2"), Format::Qcow2),
    (fixture!("default.qcow2"), Format::Qcow2),
    (fixture!("small-clusters.qcow2"), Format::Qcow2),
    (fixture!("packed-zlib.qcow2"), Format::Qcow2),
    (fixture!("packed-zstd.qcow2"), Format::Qcow2),
    (fixture!("fixed.vhd"), Format::Vhd),
    (fixture!("dynamic.vhd"), Format::Vhd),
    (fixture!("sparse.vmdk"), Format::Vmdk),
    (fixture!("stream.vmdk"), Format::Vmdk),
];

fn unpack(fixture: Fixture) -> Vec<u8> {
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(fixture.1).read_to_end(&mut bytes).unwrap();
    bytes
}

fn image(bytes: &[u8], stated: Option<Format>, backing: Option<Image>) -> Result<Image, StorageError> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    open(file, &PathBuf::from("/images/disk"), stated, backing)
}

fn open_fixture(fixture: Fixture, stated: Option<Format>) -> Result<Image, StorageError> {
    image(&unpack(fixture), stated, None)
}

fn read_all(storage: &dyn Storage) -> Vec<u8> {
    let mut bytes = vec![0xee; usize::try_from(storage.len()).unwrap()];
    storage.read_bytes_at(&mut bytes, 0).unwrap();
    bytes
}

/// What the extents of a range hold, if they are said.
fn read_extents(storage: &dyn Storage, offset: u64, length: u64) -> Option<Vec<u8>> {
    let mut extents: Vec<Extent<'_>> = Vec::new();
    if !storage.extents(offset, length, Access::Read, &mut extents) {
        return None;
    }
    let mut bytes = vec![0xee; usize::try_from(length).unwrap()];
    let mut buffers = Buffers::over(&mut bytes);
    for extent in &extents {
        let length = usize::try_from(extent.length).unwrap();
        buffers.read_exact_at(extent.file, length, extent.offset).unwrap();
    }
    assert!(buffers.is_empty(), "extents cover the range");
    Some(bytes)
}

#[test]
fn every_format_holds_the_same_disk() {
    let disk = unpack(DISK);
    for (fixture, format) in SAME_DISK {
        for stated in [None, Some(format)] {
            let found = open_fixture(fixture, stated).unwrap();
            assert_eq!(found.format, format, "{}", fixture.0);
            assert!(
                read_all(found.storage.as_ref()) == disk,
                "{} stated {stated:?}",
                fixture.0
            );
            assert!(found.storage.read_only());
        }
    }
}

#[test]
fn extents_are_what_is_read() {
    let disk = unpack(DISK);
    for (fixture, format) in SAME_DISK {
        let found = open_fixture(fixture, None).unwrap();
        let storage = found.storage.as_ref();
        // Tables that nobody has read yet are not waited for.
        let cold = read_extents(storage, 4096, 512);
        assert_eq!(
            cold.is_some(),
            format == Format::Raw || fixture.0 == "fixed.vhd",
            "{}",
            fixture.0
        );
        read_all(storage);
        let mut said = 0;
        for offset in (0..storage.len() - 8192).step_by(512) {
            let at = usize::try_from(offset).unwrap();
            if let Some(bytes) = read_extents(storage, offset, 1024) {
                said += 1;
                assert!(bytes == disk[at..at + 1024], "{} at {offset}", fixture.0);
            }
        }
        assert_eq!(
            said > 0,
            !fixture.0.starts_with("packed") && fixture.0 != "stream.vmdk",
            "{}",
            fixture.0
        );
        assert!(
            !storage.extents(0, 512, Access::Write, &mut Vec::new()),
            "nothing is overwritten"
        );
    }
}

#[test]
fn what_came_after_a_snapshot_is_the_disk() {
    let found = open_fixture(SNAPSHOT, None).unwrap();
    let mut expected = vec![0x55; 1 << 20];
    expected.extend([0; 512]);
    expected[8 << 10..20 << 10].fill(0x66);
    expected[64 << 10..72 << 10].fill(0);
    assert!(read_all(found.storage.as_ref()) == expected);
}

#[test]
fn a_backing_image_is_the_one_that_is_named() {
    let child = unpack(CHILD);
    let error = image(&child, None, None).map(drop).unwrap_err().to_string();
    assert!(error.contains("name that as its backing image"), "{error}");
    let base = open_fixture(DISK, None).unwrap();
    let found = image(&child, None, Some(base)).unwrap();
    let mut expected = unpack(DISK);
    expected[4 << 10..8 << 10].fill(0x77);
    expected[696 << 10..704 << 10].fill(0);
    assert!(read_all(found.storage.as_ref()) == expected);
    // A shorter one is zeros beyond its end.
    let short = image(&unpack(DISK)[..64 << 10], Some(Format::Raw), None).unwrap();
    let found = image(&child, None, Some(short)).unwrap();
    expected[64 << 10..].fill(0);
    assert!(read_all(found.storage.as_ref()) == expected);
    // And one that is named for nothing is a mistake.
    for (fixture, _) in [SAME_DISK[0], SAME_DISK[2], SAME_DISK[9]] {
        let base = open_fixture(DISK, None).unwrap();
        let error = image(&unpack(fixture), None, Some(base))
            .map(drop)
            .unwrap_err()
            .to_string();
        assert!(error.contains("leave it out"), "{}: {error}", fixture.0);
    }
}

#[test]
fn what_cannot_be_read_is_refused_with_a_reason() {
    let patched = |fixture: Fixture, at: usize, bytes: &[u8]| {
        let mut image = unpack(fixture);
        image[at..at + bytes.len()].copy_from_slice(bytes);
        image
    };
    let v3 = SAME_DISK[2].0;
    let (dynamic, sparse, stream) = (SAME_DISK[8].0, SAME_DISK[9].0, SAME_DISK[10].0);
    let cut = |fixture: Fixture, bytes: usize| unpack(fixture)[..bytes].to_vec();
    // 65 TiB, with clusters of 2 MiB and a table for all of them.
    let mut huge = vec![0; 4 << 20];
    huge[..104].copy_from_slice(&unpack(v3)[..104]);
    huge[20..24].copy_from_slice(&21_u32.to_be_bytes());
    huge[24..32].copy_from_slice(&(65_u64 << 40).to_be_bytes());
    huge[36..40].copy_from_slice(&130_u32.to_be_bytes());
    huge[40..48].copy_from_slice(&(2_u64 << 20).to_be_bytes());
    let mut odd_packing = patched(v3, 72, &[0, 0, 0, 0, 0, 0, 0, 8]);
    odd_packing[104] = 9;
    let dynamic_end = unpack(dynamic).len() - 512;
    let cases: [(&str, Vec<u8>, Option<Format>, &str); 20] = [
        (
            "subclusters",
            unpack(fixture!("subclusters.qcow2")),
            None,
            "has subclusters",
        ),
        (
            "descriptor",
            unpack(fixture!("two-extents.vmdk")),
            None,
            "the descriptor of a VMDK image",
        ),
        (
            "extent",
            unpack(fixture!("two-extents-s001.vmdk")),
            None,
            "one of several extents",
        ),
        ("gzip", DISK.1.to_vec(), None, "packed with gzip"),
        ("raw as qcow2", unpack(DISK), Some(Format::Qcow2), "is not one"),
        ("raw as VHD", unpack(DISK), Some(Format::Vhd), "has no footer"),
        ("raw as VMDK", unpack(DISK), Some(Format::Vmdk), "is not one"),
        ("no header", b"QFI\xfb".to_vec(), None, "is cut off"),
        ("huge", huge, None, "use a smaller disk image"),
        ("size 0", patched(v3, 24, &[0; 8]), None, "it is empty"),
        (
            "half a sector",
            patched(v3, 24, &700_u64.to_be_bytes()),
            None,
            "not a whole number of 512-byte sectors",
        ),
        (
            "a packing",
            odd_packing,
            None,
            "packed in a way that this build does not know (9)",
        ),
        ("no end", cut(dynamic, dynamic_end), Some(Format::Vhd), ""),
        (
            "checksum",
            patched(dynamic, dynamic_end + 50, &[0xff]),
            Some(Format::Vhd),
            "",
        ),
        ("table", patched(dynamic, 512 + 28, &[0; 4]), None, "checksum is wrong"),
        (
            "grains",
            patched(sparse, 20, &3_u64.to_le_bytes()),
            None,
            "grains of 3 sectors",
        ),
        (
            "directory",
            patched(sparse, 56, &u64::MAX.to_le_bytes()),
            None,
            "no footer",
        ),
        ("text", patched(sparse, 73, b"\n \n\n"), None, "transferred as text"),
        (
            "descriptor size",
            patched(sparse, 36, &u64::MAX.to_le_bytes()),
            None,
            "its descriptor is not in the file",
        ),
        ("cut off", cut(stream, 1000), None, "its descriptor is not in the file"),
    ];
    for (what, bytes, stated, expected) in cases {
        let result = image(&bytes, stated, None).map(drop);
        if expected.is_empty() {
            // The copy of a dynamic VHD's footer at its start.
            assert!(result.is_ok(), "{what}: {result:?}");
        } else {
            let error = result.expect_err(what).to_string();
            assert!(error.contains(expected), "{what}: {error}");
        }
    }
}

#[test]
fn a_stream_says_at_its_end_where_its_directory_is() {
    let whole = unpack(SAME_DISK[10].0);
    let mut stream = whole.clone();
    stream[56..64].fill(0xff);
    let error = image(&stream, None, None).map(drop).unwrap_err().to_string();
    assert!(error.contains("it has no footer"), "{error}");
    // The footer's marker, the header as it should be, the end-of-stream marker.
    stream.extend([0; 512]);
    stream.extend(&whole[..512]);
    stream.extend([0; 512]);
    let found = image(&stream, None, None).unwrap();
    assert!(read_all(found.storage.as_ref()) == unpack(DISK));
}

#[test]
fn descriptors() {
    let good =
        "# Disk DescriptorFile\nCID=1\nparentCID=ffffffff\ncreateType=\"monolithicSparse\"\nRW 20 SPARSE \"a.vmdk\"\n";
    assert_eq!(vmdk::check_descriptor(good), Ok(()));
    for (from, to, expected) in [
        ("monolithicSparse", "vmfs", "of the kind vmfs"),
        ("createType", "Type", "does not say"),
        ("ffffffff", "12345678", "based on another image"),
        ("RW 20", "RW 10 SPARSE \"b\"\nRW 20", "has 2 extents"),
        ("RW 20", "#", "has 0 extents"),
    ] {
        let error = vmdk::check_descriptor(&good.replace(from, to)).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn tables_that_lead_out_of_the_file_are_errors_of_the_request() {
    let mut bytes = unpack(SAME_DISK[2].0);
    // The first table's first entry.
    let at = usize::try_from(u64::from_be_bytes(bytes[40..48].try_into().unwrap())).unwrap();
    for entry in [1_u64 << 40, 0x1001, 1 << 62, 0x00ff_ffff_ffff_f000] {
        bytes[at..at + 8].copy_from_slice(&entry.to_be_bytes());
        let found = image(&bytes, None, None).unwrap();
        let error = found.storage.read_bytes_at(&mut [0; 512], 0).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidData, "{entry:#x}");
        assert!(!found.storage.extents(0, 512, Access::Read, &mut Vec::new()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    /// Whatever a damaged image is, it is refused, or it is a disk whose reads end.
    #[test]
    fn damage_is_harmless(which in 0..SAME_DISK.len() + 1, changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 1..6), cut in prop::option::of(any::<prop::sample::Index>())) {
        let fixture = SAME_DISK.get(which).map_or(SNAPSHOT, |(fixture, _)| *fixture);
        let mut bytes = unpack(fixture);
        for (at, byte, early) in changes {
            // Half of them where headers and tables are.
            let range = if early { bytes.len().min(4096) } else { bytes.len() };
            bytes[at.index(range)] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let format = SAME_DISK.get(which).map_or(Format::Qcow2, |(_, format)| *format);
        if let Ok(found) = image(&bytes, Some(format), None) {
            let storage = found.storage.as_ref();
            let mut buffer = vec![0; 32 << 10];
            for offset in (0..storage.len().min(2 << 20)).step_by(buffer.len()) {
                let length = buffer.len().min(usize::try_from(storage.len() - offset).unwrap());
                let _ = storage.read_bytes_at(&mut buffer[..length], offset);
                storage.extents(offset, length as u64, Access::Read, &mut Vec::new());
            }
        }
    }
}
