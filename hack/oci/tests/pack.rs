//! Packs with the program itself and reads the archive back.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use sha2::{Digest, Sha256};
use tar::EntryType;
use tempfile::TempDir;

const NAME: &str = "registry.tandem.local/guests/test:12";

fn pack(directory: &Path, output: &str, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_oci-image"))
        .current_dir(directory)
        .args(["--name", NAME, "--output", output])
        .args(arguments)
        .output()
        .expect("oci-image starts")
}

fn packed(directory: &Path, output: &str, arguments: &[&str]) -> Vec<u8> {
    let result = pack(directory, output, arguments);
    assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
    fs::read(directory.join(output)).unwrap()
}

/// A tree with every kind of entry, and names longer than a tar header holds.
fn tree(directory: &Path) -> String {
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(130));
    fs::create_dir_all(directory.join("tree").join("d".repeat(120))).unwrap();
    fs::create_dir(directory.join("tree/empty")).unwrap();
    fs::write(directory.join("tree").join(&long), "long").unwrap();
    fs::write(directory.join("tree/script"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(directory.join("tree/script"), Permissions::from_mode(0o4750)).unwrap();
    fs::set_permissions(directory.join("tree/empty"), Permissions::from_mode(0o1777)).unwrap();
    fs::hard_link(directory.join("tree/script"), directory.join("tree/same")).unwrap();
    symlink("../nowhere", directory.join("tree/link")).unwrap();
    long
}

/// The members of a tar by their path: type, mode, owner, link target, content.
type Members = BTreeMap<String, (EntryType, u32, (u64, u64), Option<String>, Vec<u8>)>;

fn members(tar: &[u8]) -> Members {
    let mut members = Members::new();
    let mut archive = tar::Archive::new(tar);
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        let header = entry.header();
        assert_eq!(header.mtime().unwrap(), 0);
        let link = entry.link_name().unwrap().map(|path| path.to_str().unwrap().to_owned());
        let owner = (header.uid().unwrap(), header.gid().unwrap());
        let path = entry.path().unwrap().to_str().unwrap().trim_end_matches('/').to_owned();
        let member = (header.entry_type(), header.mode().unwrap(), owner, link, content);
        assert!(members.insert(path, member).is_none());
    }
    members
}

/// Follows index, manifest and config as a runtime does, checking each digest and size, and returns config and layer.
fn read(archive: &[u8]) -> (Value, Value, Vec<u8>) {
    let members = members(archive);
    let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
    let blob = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        let content = members[&format!("blobs/sha256/{digest}")].4.clone();
        assert_eq!(hex(&content), digest);
        assert_eq!(descriptor["size"], content.len());
        content
    };
    assert_eq!(json(&members["oci-layout"].4)["imageLayoutVersion"], "1.0.0");
    let index = json(&members["index.json"].4);
    let manifest = json(&blob(&index["manifests"][0]));
    let config = json(&blob(&manifest["config"]));
    let layer = blob(&manifest["layers"][0]);
    (index, config, layer)
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| char::from_digit(digit.into(), 16).unwrap())
        .collect()
}

#[test]
fn a_tree_is_packed_with_modes_links_and_long_names() {
    let directory = TempDir::new().unwrap();
    let long = tree(directory.path());
    let archive = packed(
        directory.path(),
        "a.tar",
        &["--owner", "7:8", "--symlink", "/bin/sh=/script", "tree=/"],
    );
    let (index, config, layer) = read(&archive);
    assert_eq!(index["manifests"][0]["annotations"]["io.containerd.image.name"], NAME);
    assert_eq!(
        index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"],
        "12"
    );
    assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", hex(&layer)));

    let layer = members(&layer);
    let (fixed, root, none) = ((7, 8), (0, 0), Vec::new);
    let link = |target: &str| Some(target.to_owned());
    // "same" sorts before "script", so it is the file and "script" the link to it.
    let expected = Members::from([
        ("bin".to_owned(), (EntryType::Directory, 0o755, root, None, none())),
        (
            "bin/sh".to_owned(),
            (EntryType::Symlink, 0o777, fixed, link("/script"), none()),
        ),
        (
            "d".repeat(120),
            (EntryType::Directory, layer[&"d".repeat(120)].1, fixed, None, none()),
        ),
        (
            long.clone(),
            (EntryType::Regular, layer[&long].1, fixed, None, b"long".to_vec()),
        ),
        ("empty".to_owned(), (EntryType::Directory, 0o1777, fixed, None, none())),
        (
            "link".to_owned(),
            (EntryType::Symlink, 0o777, fixed, link("../nowhere"), none()),
        ),
        (
            "same".to_owned(),
            (EntryType::Regular, 0o4750, fixed, None, b"#!/bin/sh\n".to_vec()),
        ),
        (
            "script".to_owned(),
            (EntryType::Link, 0o4750, fixed, link("same"), none()),
        ),
    ]);
    assert_eq!(layer, expected);
}

#[test]
fn owners_on_disk_are_kept_where_asked() {
    let directory = TempDir::new().unwrap();
    fs::write(directory.path().join("file"), "x").unwrap();
    let metadata = fs::metadata(directory.path().join("file")).unwrap();
    let (_, _, layer) = read(&packed(
        directory.path(),
        "a.tar",
        &["--owner", "keep", "file=/file:0640"],
    ));
    let (_, mode, owner, ..) = &members(&layer)["file"];
    assert_eq!((*mode, *owner), (0o640, (metadata.uid().into(), metadata.gid().into())));
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let directory = TempDir::new().unwrap();
    tree(directory.path());
    for gzip in [&["tree=/"][..], &["--gzip", "tree=/"]] {
        let first = packed(directory.path(), "a.tar", gzip);
        // Another order of the directory, and other times.
        fs::rename(directory.path().join("tree/link"), directory.path().join("tree/other")).unwrap();
        symlink("../nowhere", directory.path().join("tree/link")).unwrap();
        fs::remove_file(directory.path().join("tree/other")).unwrap();
        assert_eq!(first, packed(directory.path(), "b.tar", gzip));
    }
}

#[test]
fn a_compressed_layer_has_its_own_digest_and_that_of_the_tar() {
    let directory = TempDir::new().unwrap();
    fs::write(directory.path().join("file"), vec![1; 100_000]).unwrap();
    let (_, config, layer) = read(&packed(directory.path(), "a.tar", &["--gzip", "file=/file"]));
    assert!(layer.len() < 10_000);
    let mut tar = Vec::new();
    flate2::read::GzDecoder::new(&layer[..]).read_to_end(&mut tar).unwrap();
    assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", hex(&tar)));
    assert_eq!(members(&tar)["file"].4, vec![1; 100_000]);
}

#[test]
fn the_config_says_how_a_container_starts() {
    let directory = TempDir::new().unwrap();
    fs::write(directory.path().join("file"), "x").unwrap();
    let start = [
        "--entrypoint",
        "/file",
        "--entrypoint",
        "--flag",
        "--cmd",
        "x",
        "--user",
        "65532:65532",
    ];
    let more = ["--env", "PATH=/bin", "--label", "a=b=c", "file=/file"];
    let (_, config, _) = read(&packed(directory.path(), "a.tar", &[&start[..], &more[..]].concat()));
    let expected = serde_json::json!({
        "Entrypoint": ["/file", "--flag"], "Cmd": ["x"], "User": "65532:65532", "Env": ["PATH=/bin"], "Labels": {"a": "b=c"},
    });
    assert_eq!(config["config"], expected);
    assert_eq!(
        (&config["os"], &config["architecture"]),
        (&"linux".into(), &"amd64".into())
    );
}

#[test]
fn holes_of_a_disk_image_stay_holes() {
    let directory = TempDir::new().unwrap();
    let mut disk = File::create(directory.path().join("disk")).unwrap();
    disk.write_all(b"start").unwrap();
    disk.seek(SeekFrom::Start(8 << 20)).unwrap();
    disk.write_all(b"end").unwrap();
    disk.set_len(16 << 20).unwrap();
    let archive = packed(directory.path(), "a.tar", &["disk=/disk/disk.img"]);
    let stored = fs::metadata(directory.path().join("a.tar")).unwrap().blocks() * 512;
    assert!(stored < 1 << 20, "{stored} bytes on disk");
    let (_, _, layer) = read(&archive);
    let content = &members(&layer)["disk/disk.img"].4;
    assert!(*content == fs::read(directory.path().join("disk")).unwrap());
}

#[test]
fn wrong_input_is_refused_and_leaves_no_file() {
    let directory = TempDir::new().unwrap();
    fs::create_dir(directory.path().join("sockets")).unwrap();
    std::os::unix::net::UnixListener::bind(directory.path().join("sockets/s")).unwrap();
    fs::write(directory.path().join("file"), "x").unwrap();
    let cases: [(&[&str], &str); 6] = [
        (&[], "nothing to pack"),
        (&["absent=/file"], "absent"),
        (&["file=relative"], "SOURCE=DEST"),
        (&["file=/a", "file=/a"], "two sources give /a"),
        (&["file=/a", "file=/a/b"], "two sources give /a"),
        (&["sockets=/"], "device, socket or pipe"),
    ];
    for (arguments, message) in cases {
        let result = pack(directory.path(), "a.tar", arguments);
        let error = String::from_utf8(result.stderr).unwrap();
        assert!(
            !result.status.success() && error.contains(message),
            "{arguments:?}: {error}"
        );
        assert_eq!(
            fs::read_dir(directory.path()).unwrap().count(),
            2,
            "{arguments:?} left a file"
        );
    }
}
