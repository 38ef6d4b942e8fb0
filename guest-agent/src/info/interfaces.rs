//! Network interfaces with their addresses.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use if_addrs::IfAddr;
use node_shim_protocol::guest::{Address, Interface, LIST_MAX, TEXT_MAX_BYTES, printable};

/// `ARPHRD_LOOPBACK` of `if_arp.h`.
const LOOPBACK: &str = "772";

/// What sysfs says of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Link {
    name: String,
    mac: String,
    index: u64,
    /// A device is behind it: it is none that the guest has made for itself.
    backed: bool,
}

/// The first of them, and how many more there are.
pub(super) fn list(class_net: &Path) -> (Vec<Interface>, u32) {
    // Without addresses they are still there.
    let addresses = if_addrs::get_if_addrs().unwrap_or_default();
    let addresses = addresses.into_iter().map(|found| (found.name, address(&found.addr)));
    join(links(class_net), addresses)
}

const fn address(address: &IfAddr) -> Address {
    match address {
        IfAddr::V4(v4) => Address {
            address: std::net::IpAddr::V4(v4.ip),
            prefix_length: v4.prefixlen,
        },
        IfAddr::V6(v6) => Address {
            address: std::net::IpAddr::V6(v6.ip),
            prefix_length: v6.prefixlen,
        },
    }
}

fn links(class_net: &Path) -> Vec<Link> {
    let entries = fs::read_dir(class_net).into_iter().flatten().flatten();
    let link = |entry: fs::DirEntry| {
        let path = entry.path();
        let read = |name: &str| fs::read_to_string(path.join(name)).map(|text| text.trim().to_owned());
        if read("type").ok()? == LOOPBACK {
            return None;
        }
        let mac = read("address").unwrap_or_default();
        Some(Link {
            name: printable(&entry.file_name().to_string_lossy(), TEXT_MAX_BYTES),
            // Tunnels have one of zeros, or an IP address.
            mac: if mac.bytes().all(|byte| matches!(byte, b'0' | b':')) {
                String::new()
            } else {
                printable(&mac, TEXT_MAX_BYTES)
            },
            index: read("ifindex").ok()?.parse().ok()?,
            backed: path.join("device").exists(),
        })
    };
    entries.filter_map(link).collect()
}

fn join(mut links: Vec<Link>, addresses: impl Iterator<Item = (String, Address)>) -> (Vec<Interface>, u32) {
    links.sort_by_key(|link| (!link.backed, link.index));
    let omitted = u32::try_from(links.len().saturating_sub(LIST_MAX)).unwrap_or(u32::MAX);
    links.truncate(LIST_MAX);
    let mut by_name: BTreeMap<String, Vec<Address>> = BTreeMap::new();
    for (name, address) in addresses {
        by_name.entry(name).or_default().push(address);
    }
    let interface = |Link { name, mac, .. }| {
        let mut addresses = by_name.remove(&name).unwrap_or_default();
        addresses.truncate(LIST_MAX);
        Interface { name, mac, addresses }
    };
    (links.into_iter().map(interface).collect(), omitted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_come_first_and_the_rest_is_counted() {
        let link = |name: &str, index, backed| Link {
            name: name.into(),
            mac: String::new(),
            index,
            backed,
        };
        let mut links = vec![link("docker0", 2, false), link("eth1", 4, true), link("eth0", 3, true)];
        links.extend((10..100).map(|index| link(&format!("veth{index}"), index, false)));
        let of = |last| Address {
            address: std::net::IpAddr::from([10, 0, 0, last]),
            prefix_length: 24,
        };
        let addresses = [("eth1", 1), ("lo", 2), ("eth1", 3)].map(|(name, last)| (name.to_owned(), of(last)));
        let many = (0..200).map(|last| ("docker0".to_owned(), of(last)));
        let (interfaces, omitted) = join(links, addresses.into_iter().chain(many));
        let names: Vec<&str> = interfaces
            .iter()
            .take(4)
            .map(|interface| interface.name.as_str())
            .collect();
        assert_eq!(names, ["eth0", "eth1", "docker0", "veth10"]);
        assert_eq!((interfaces.len(), omitted), (LIST_MAX, 93 - 64));
        assert_eq!(interfaces[0].addresses, []);
        assert_eq!(interfaces[1].addresses, [of(1), of(3)]);
        assert_eq!(interfaces[2].addresses.len(), LIST_MAX);
    }

    #[test]
    fn what_sysfs_says_is_read() {
        let directory = tempfile::tempdir().unwrap();
        for (name, kind, mac, index) in [
            ("lo", "772", "00:00:00:00:00:00", "1"),
            ("eth0", "1", "02:00:00:00:00:42", "2"),
            ("tun0", "65534", "", "3"),
            ("sit0", "776", "0.0.0.0", "4"),
            ("dummy0", "1", "00:00:00:00:00:00", "5"),
        ] {
            let path = directory.path().join(name);
            fs::create_dir_all(&path).unwrap();
            for (file, text) in [("type", kind), ("address", mac), ("ifindex", index)] {
                fs::write(path.join(file), format!("{text}\n")).unwrap();
            }
        }
        // As `bonding_masters`, which is a file.
        fs::write(directory.path().join("bonding_masters"), "").unwrap();
        fs::create_dir(directory.path().join("eth0/device")).unwrap();
        let mut links = links(directory.path());
        links.sort_by_key(|link| link.index);
        let found: Vec<_> = links
            .iter()
            .map(|link| (link.name.as_str(), link.mac.as_str(), link.backed))
            .collect();
        assert_eq!(
            found,
            [
                ("eth0", "02:00:00:00:00:42", true),
                ("tun0", "", false),
                ("sit0", "0.0.0.0", false),
                ("dummy0", "", false)
            ]
        );
    }
}
