use serde_json::{Value, json};

use node_shim_protocol::config::{Cache, Discard, Io};

use super::*;

fn minimal() -> Value {
    json!({
        "version": 1,
        "name": "web",
        "uuid": "123e4567-e89b-12d3-a456-426614174000",
        "cpu": {"cores": 1},
        "memory": {"sizeBytes": 268_435_456},
        "boot": {"kernel": {"kernel": "/boot/vmlinuz"}},
        "disks": [{"name": "root", "source": {"image": {"path": "/disk"}}}],
        "interfaces": [{"name": "default", "mac": "02:00:00:00:00:01", "binding": {"tap": {"device": "tap0", "network": {
            "address": "10.0.2.2", "prefixLength": 24, "gateway": "10.0.2.1", "gatewayMac": "02:00:00:00:00:02", "mtu": 1500
        }}}}],
        "cloudInit": {"instanceId": "i-1", "hostname": "web"},
        "shutdown": {"gracePeriodSeconds": 30},
        "scratch": "/scratch",
    })
}

fn check_json(value: Value) -> Result<CheckedConfig, ConfigError> {
    check(serde_json::from_value(value).unwrap())
}

#[test]
fn a_complete_configuration_is_accepted() {
    let config = check_json(minimal()).unwrap();
    assert_eq!(config.vcpus, 1);
    assert_eq!(config.interfaces[0].mac.to_string(), "02:00:00:00:00:01");
}

#[test]
fn a_disk_says_its_serial_format_and_limits() {
    let mut value = minimal();
    value["disks"][0] = json!({
        "name": "a-name-that-is-longer-than-a-serial-number",
        "rateLimit": {"bytes": {"perSecond": 1000}, "operations": {"perSecond": 10, "burst": 3}},
        "source": {"image": {"path": "/disk", "format": "qcow2", "backing": [{"path": "/base", "format": "vhd"}]}}
    });
    let config = check_json(value.clone()).unwrap();
    let disk = &config.disks[0];
    assert_eq!(disk.serial, "a-name-that-is-longe");
    let rate = |per_second, burst| Some(rate_limit::Rate { per_second, burst });
    assert_eq!(
        (disk.limits.bytes, disk.limits.operations),
        (rate(1000, 1000), rate(10, 3))
    );
    value["disks"][0]["serial"] = json!("WD-1");
    assert_eq!(check_json(value).unwrap().disks[0].serial, "WD-1");
}

#[test]
fn memory_of_huge_pages_is_whole_ones() {
    let mut value = minimal();
    value["memory"]["hugePages"] = json!("2Mi");
    assert_eq!(
        check_json(value.clone()).unwrap().huge_pages,
        Some(HugePages::TwoMebibytes)
    );
    value["memory"]["maxSizeBytes"] = json!(268_435_456 + 4096);
    let error = check_json(value.clone()).unwrap_err().to_string();
    assert!(error.starts_with("memory.maxSizeBytes: is 268439552"), "{error}");
    value["memory"] = json!({"sizeBytes": 268_435_456, "hugePages": "1Gi"});
    let error = check_json(value).unwrap_err().to_string();
    assert!(
        error.contains("multiple of 1073741824 (memory.hugePages is 1Gi)"),
        "{error}"
    );
}

#[test]
fn memory_is_whole_pages() {
    let mut value = minimal();
    value["memory"]["sizeBytes"] = json!(100_000_000);
    assert_eq!(check_json(value).unwrap().memory_bytes, 99_999_744);
}

/// Sets one field after the other in a good configuration; the error must name the third.
fn assert_refused(cases: &[(&str, Value, &str)]) {
    for (pointer, value, field) in cases {
        let mut config = minimal();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let parent = config.pointer_mut(parent).unwrap();
        match key.parse::<usize>() {
            Ok(index) => parent[index] = value.clone(),
            Err(_) => parent[key] = value.clone(),
        }
        let error = check_json(config).expect_err(pointer).to_string();
        assert!(error.starts_with(&format!("{field}: ")), "{pointer} = {value}: {error}");
    }
}

#[test]
fn an_impossible_disk_is_refused_and_the_field_named() {
    assert_refused(&[
        ("/disks/0/serial", json!(""), "disks[0].serial"),
        ("/disks/0/serial", json!("a b"), "disks[0].serial"),
        ("/disks/0/serial", json!("x".repeat(21)), "disks[0].serial"),
        (
            "/disks/0/rateLimit",
            json!({"bytes": {"perSecond": 0}}),
            "disks[0].rateLimit.bytes.perSecond",
        ),
        (
            "/disks/0/rateLimit",
            json!({"operations": {"perSecond": 1, "burst": 0}}),
            "disks[0].rateLimit.operations.burst",
        ),
        (
            "/disks/0/source",
            json!({"image": {"path": "/disk", "format": "raw", "backing": [{"path": "/base"}]}}),
            "disks[0].source.image.backing",
        ),
        (
            "/disks/0/source",
            json!({"image": {"path": "/disk", "backing": vec![json!({"path": "/base"}); 9]}}),
            "disks[0].source.image.backing",
        ),
        (
            "/disks/0/source",
            json!({"image": {"path": "/disk", "backing": [{"path": "/base"}, {"path": ""}]}}),
            "disks[0].source.image.backing[1].path",
        ),
    ]);
}

#[test]
fn disks_of_claims_and_files_say_what_is_possible() {
    let mut value = minimal();
    value["disks"] = json!([
        {"name": "a", "cache": "none", "discard": "ignore", "io": "ioUring", "source": {"file": {"path": "/a/disk.img", "sizeBytes": 1024}}},
        {"name": "b", "readOnly": true, "io": "threads", "source": {"device": {"path": "/b"}}},
        {"name": "c", "readOnly": true, "source": {"files": {"path": "/c", "label": "c-1_X"}}},
    ]);
    let config = check_json(value).unwrap();
    let options: Vec<_> = config
        .disks
        .iter()
        .map(|disk| (disk.cache, disk.io, disk.discard))
        .collect();
    assert_eq!(
        options,
        [
            (Cache::None, Some(Io::IoUring), Discard::Ignore),
            (Cache::Writeback, Some(Io::Threads), Discard::Unmap),
            (Cache::Writeback, None, Discard::Unmap),
        ]
    );
    let with = |source: Value| json!({"name": "a", "source": source});
    let read_only = |source: Value| json!({"name": "a", "readOnly": true, "source": source});
    assert_refused(&[
        ("/disks/0/cache", json!("none"), "disks[0].cache"),
        (
            "/disks/0",
            with(json!({"file": {"path": ""}})),
            "disks[0].source.file.path",
        ),
        (
            "/disks/0",
            with(json!({"file": {"path": "/a", "sizeBytes": 513}})),
            "disks[0].source.file.sizeBytes",
        ),
        (
            "/disks/0",
            read_only(json!({"file": {"path": "/a", "sizeBytes": 512}})),
            "disks[0].source.file.sizeBytes",
        ),
        (
            "/disks/0",
            with(json!({"device": {"path": ""}})),
            "disks[0].source.device.path",
        ),
        (
            "/disks/0",
            read_only(json!({"files": {"path": "", "label": "a"}})),
            "disks[0].source.files.path",
        ),
        (
            "/disks/0",
            read_only(json!({"files": {"path": "/a", "label": "twelve-bytes"}})),
            "disks[0].source.files.label",
        ),
        (
            "/disks/0",
            read_only(json!({"files": {"path": "/a", "label": "a/b"}})),
            "disks[0].source.files.label",
        ),
        (
            "/disks/0",
            with(json!({"files": {"path": "/a", "label": "a"}})),
            "disks[0].readOnly",
        ),
    ]);
}

#[test]
fn what_is_impossible_is_refused_and_the_field_named() {
    let long = "x".repeat(2048);
    let cases = [
        ("/version", json!(2), "version"),
        ("/name", json!(""), "name"),
        ("/uuid", json!("not-a-uuid"), "uuid"),
        ("/cpu/cores", json!(0), "cpu.cores"),
        ("/cpu/cores", json!(129), "cpu.cores"),
        ("/cpu/cores", json!(257), "cpu.cores"),
        ("/memory/sizeBytes", json!(0), "memory.sizeBytes"),
        ("/memory/sizeBytes", json!(u64::MAX), "memory.sizeBytes"),
        ("/boot", json!({"disk": {"name": "none"}}), "boot.disk.name"),
        ("/boot/kernel/kernel", json!(""), "boot.kernel.kernel"),
        ("/boot/kernel/initrd", json!(""), "boot.kernel.initrd"),
        ("/boot/kernel/commandLine", json!(long), "boot.kernel.commandLine"),
        ("/boot/kernel/commandLine", json!("a\nb"), "boot.kernel.commandLine"),
        ("/disks/0/name", json!("../etc"), "disks[0].name"),
        ("/disks/0/name", json!(""), "disks[0].name"),
        (
            "/disks/0/source",
            json!({"image": {"path": ""}}),
            "disks[0].source.image.path",
        ),
        (
            "/disks/0/source",
            json!({"empty": {"sizeBytes": 513}}),
            "disks[0].source.empty.sizeBytes",
        ),
        (
            "/disks/0/source",
            json!({"empty": {"sizeBytes": 0}}),
            "disks[0].source.empty.sizeBytes",
        ),
        ("/interfaces/0/mac", json!("01:00:00:00:00:01"), "interfaces[0].mac"),
        ("/interfaces/0/mac", json!("00:00:00:00:00:01"), "interfaces[0].mac"),
        ("/interfaces/0/mac", json!("02:00:00:00:00"), "interfaces[0].mac"),
        ("/interfaces/0/mac", json!("02:00:00:00:00:+1"), "interfaces[0].mac"),
        (
            "/interfaces/0/binding/tap/device",
            json!("a/b"),
            "interfaces[0].binding.tap.device",
        ),
        (
            "/interfaces/0/binding/tap/network/prefixLength",
            json!(31),
            "interfaces[0].binding.tap.network.prefixLength",
        ),
        (
            "/interfaces/0/binding/tap/network/gateway",
            json!("10.0.3.1"),
            "interfaces[0].binding.tap.network.gateway",
        ),
        (
            "/interfaces/0/binding/tap/network/mtu",
            json!(100),
            "interfaces[0].binding.tap.network.mtu",
        ),
        ("/cloudInit/instanceId", json!("a\nb"), "cloudInit.instanceId"),
        ("/cloudInit/hostname", json!("a b"), "cloudInit.hostname"),
        ("/scratch", json!(""), "scratch"),
        (
            "/shutdown/gracePeriodSeconds",
            json!(u64::MAX),
            "shutdown.gracePeriodSeconds",
        ),
    ];
    assert_refused(&cases);
}

#[test]
fn an_impossible_interface_is_refused_and_the_field_named() {
    assert_refused(&[
        (
            "/interfaces/0/binding/tap/network/ipv6",
            json!({"address": "fd10:0:2::2", "prefixLength": 127, "gateway": "fd10:0:2::1"}),
            "interfaces[0].binding.tap.network.ipv6.prefixLength",
        ),
        (
            "/interfaces/0/binding/tap/network/ipv6",
            json!({"address": "fe80::2", "prefixLength": 64, "gateway": "fe80::1"}),
            "interfaces[0].binding.tap.network.ipv6.address",
        ),
        (
            "/interfaces/0/binding/tap/network/ipv6",
            json!({"address": "::ffff:10.0.2.2", "prefixLength": 64, "gateway": "fd10:0:2::1"}),
            "interfaces[0].binding.tap.network.ipv6.address",
        ),
        (
            "/interfaces/0/binding/tap/network/ipv6",
            json!({"address": "fd10:0:2::2", "prefixLength": 64, "gateway": "fd10:0:3::1"}),
            "interfaces[0].binding.tap.network.ipv6.gateway",
        ),
        (
            "/interfaces/0/binding/tap/network/ipv6",
            json!({"address": "fd10:0:2::2", "prefixLength": 64, "gateway": "fd10:0:2::2"}),
            "interfaces[0].binding.tap.network.ipv6.gateway",
        ),
        (
            "/interfaces/0/receiveLimit",
            json!({"bytes": {"perSecond": 0}}),
            "interfaces[0].receiveLimit.bytes.perSecond",
        ),
        (
            "/interfaces/0/transmitLimit",
            json!({"operations": {"perSecond": 1, "burst": 0}}),
            "interfaces[0].transmitLimit.operations.burst",
        ),
    ]);
}

#[test]
fn names_and_addresses_are_unique() {
    for list in ["disks", "interfaces"] {
        let mut config = minimal();
        let first = config[list][0].clone();
        config[list].as_array_mut().unwrap().push(first);
        assert!(
            check_json(config)
                .unwrap_err()
                .to_string()
                .starts_with(&format!("{list}[1].name"))
        );
    }
    let mut config = minimal();
    let mut second = config["interfaces"][0].clone();
    second["name"] = json!("second");
    config["interfaces"].as_array_mut().unwrap().push(second);
    assert!(
        check_json(config)
            .unwrap_err()
            .to_string()
            .starts_with("interfaces[1].mac")
    );
}

#[test]
fn lists_are_bounded() {
    for (list, count) in [("disks", 17), ("interfaces", 9)] {
        let mut config = minimal();
        let first = config[list][0].clone();
        config[list] = Value::Array(vec![first; count]);
        assert!(
            check_json(config)
                .unwrap_err()
                .to_string()
                .starts_with(&format!("{list}: "))
        );
    }
}

#[test]
fn an_unknown_field_is_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut config = minimal();
    config["cpus"] = json!(2);
    std::fs::write(file.path(), config.to_string()).unwrap();
    let error = load(file.path()).unwrap_err().to_string();
    assert!(error.contains("unknown field `cpus`"), "{error}");
}

#[test]
fn what_may_grow_is_at_least_what_there_is_at_the_start() {
    let config = check_json(minimal()).unwrap();
    assert_eq!((config.vcpus_max, config.memory_max_bytes), (1, config.memory_bytes));
    assert!(config.vsock.is_none());
    let mut value = minimal();
    value["cpu"] = json!({"cores": 2, "maxCores": 8});
    value["memory"]["maxSizeBytes"] = json!(536_870_912);
    value["vsock"] = json!({"socket": "/run/vm/vsock"});
    let config = check_json(value.clone()).unwrap();
    assert_eq!(
        (config.vcpus, config.vcpus_max, config.memory_max_bytes),
        (2, 8, 512 << 20)
    );
    assert_eq!(config.vsock.unwrap().guest_cid, 3);
    for (pointer, wrong, field) in [
        ("/cpu/maxCores", json!(1), "cpu.maxCores"),
        ("/cpu/maxCores", json!(129), "cpu.maxCores"),
        ("/cpu/maxCores", json!(258), "cpu.maxCores"),
        ("/memory/maxSizeBytes", json!(268_435_455), "memory.maxSizeBytes"),
        ("/memory/maxSizeBytes", json!(1_u64 << 40), "memory.maxSizeBytes"),
        ("/vsock/socket", json!(""), "vsock.socket"),
        ("/vsock/socket", json!("x".repeat(97)), "vsock.socket"),
        ("/vsock", json!({"socket": "/a", "guestCid": 2}), "vsock.guestCid"),
        (
            "/vsock",
            json!({"socket": "/a", "guestCid": u32::MAX}),
            "vsock.guestCid",
        ),
    ] {
        let mut value = value.clone();
        *value.pointer_mut(pointer).unwrap() = wrong;
        let error = check_json(value).unwrap_err().to_string();
        assert!(error.starts_with(field), "{error}");
    }
}
