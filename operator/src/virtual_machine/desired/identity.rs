//! Identities that follow from a VM's UID, so that they stay the same for its whole life and differ from every other VM's.

use uuid::Uuid;

/// Namespace of every name that is hashed here, a random constant (RFC 9562 section 5.5).
const NAMESPACE: Uuid = Uuid::from_u128(0x5d0c_94d6_6fb4_4f5c_9a0f_3c2b_7e18_a1d2);

/// The UUID that the guest sees as its own.
pub(crate) fn uuid(vm_uid: &str) -> Uuid {
    Uuid::new_v5(&NAMESPACE, vm_uid.as_bytes())
}

/// The MAC address of an interface: locally administered and unicast (IEEE 802-2014 section 8.4).
pub(crate) fn mac(vm_uid: &str, interface: &str) -> String {
    let hash = Uuid::new_v5(&uuid(vm_uid), interface.as_bytes());
    let [first, second, third, fourth, fifth, sixth, ..] = *hash.as_bytes();
    let first = (first & 0b1111_1100) | 0b0000_0010;
    format!("{first:02x}:{second:02x}:{third:02x}:{fourth:02x}:{fifth:02x}:{sixth:02x}")
}

/// Name of the pod's interface on the network of a VM's interface. It says nothing of the order, so that it stays when others come or go.
pub(crate) fn pod_interface(interface: &str) -> String {
    let hash = Uuid::new_v5(&NAMESPACE, interface.as_bytes());
    let [first, second, third, fourth, fifth, ..] = *hash.as_bytes();
    format!("net{first:02x}{second:02x}{third:02x}{fourth:02x}{fifth:02x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0a1b2c3d-0000-4000-8000-000000000001";

    #[test]
    fn identities_are_stable() {
        assert_eq!(uuid(UID), uuid(UID));
        assert_eq!(mac(UID, "default"), mac(UID, "default"));
        assert_ne!(mac(UID, "default"), mac(UID, "other"));
        assert_ne!(mac(UID, "default"), mac("another", "default"));
    }

    #[test]
    fn a_pods_interface_has_a_name_that_the_kernel_takes() {
        let long = pod_interface(&"n".repeat(63));
        assert_eq!((long.len(), pod_interface("a") == pod_interface("b")), (13, false));
    }

    #[test]
    fn a_mac_is_locally_administered_and_unicast() {
        for interface in 0..64 {
            let mac = mac(UID, &interface.to_string());
            let first = u8::from_str_radix(&mac[..2], 16).expect("hex");
            assert_eq!(first & 0b11, 0b10, "{mac}");
        }
    }
}
