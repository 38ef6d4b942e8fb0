//! The nftables tables of a pod with a guest. Pure.
//!
//! What is routed is in one of the family `inet`: rules for IPv6 are in the same chains. What is bridged is in one of the family `netdev`,
//! see [`super::wire`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::plan::{Plan, Tap};

/// Name of the tables of a pod that begins.
pub(super) const TABLE: &str = "tandem";

/// What kind of packets a table is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// Frames, as they come in by a device.
    Netdev,
}

/// A table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    /// Its name.
    pub(super) name: String,
    /// Its family.
    pub(super) family: Family,
    /// Its base chains.
    pub(super) chains: Vec<Chain>,
}

/// A base chain with the policy `accept`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    /// Its name.
    pub(super) name: String,
    /// What it may do.
    pub(super) kind: ChainKind,
    /// Where it is called.
    pub(super) hook: Hook,
    /// When, among the others at the hook (`linux/netfilter_ipv4.h`).
    pub(super) priority: i32,
    /// Its rules, in order.
    pub(super) rules: Vec<Rule>,
}

/// What a chain may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChainKind {
    /// Accept and drop.
    Filter,
    /// Translate the first packet of a connection.
    Nat,
}

/// Where a chain is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    /// As soon as it came in by this device.
    Ingress(String),
    /// Before routing what came in.
    Prerouting,
    /// Before delivering to a local socket.
    Input,
    /// Before it goes on to another interface.
    Forward,
    /// After a local socket sent it.
    Output,
    /// Before it goes out.
    Postrouting,
}

/// Matches, and what is done with a packet that they all hold for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    /// Every one must hold.
    pub(super) matches: Vec<Match>,
    /// What is done then.
    pub(super) action: Action,
}

/// Something that a packet has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Match {
    /// It came in by this interface.
    In(String),
    /// It came in by another interface.
    NotIn(String),
    /// It goes out by this interface.
    Out(String),
    /// It goes out by another interface.
    NotOut(String),
    /// It is IPv6.
    Ipv6,
    /// Its source is in the prefix.
    From(Prefix),
    /// Its source is not in the prefix.
    NotFrom(Prefix),
    /// Its destination is in the prefix.
    To(Prefix),
    /// Its protocol above IP (IANA's number).
    Protocol(u8),
    /// It belongs to, or is an error about, a connection that was made before.
    Established,
    /// Its Ethernet header has these bytes there.
    Frame(Bytes),
    /// Its Ethernet header has others there.
    NotFrame(Bytes),
    /// Its network header has these bytes there.
    Packet(Bytes),
    /// Its network header has others there.
    NotPacket(Bytes),
}

/// Bytes of a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bytes {
    /// Where they begin.
    pub(super) offset: u32,
    /// What they are.
    pub(super) value: Vec<u8>,
}

/// Addresses that begin with the same whole bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Prefix {
    /// One of them.
    pub(super) address: IpAddr,
    /// How many bytes are the same.
    pub(super) bytes: u8,
}

/// What is done with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// It goes on to the next chain.
    Accept,
    /// It is gone.
    Drop,
    /// Its destination becomes this.
    DestinationNat(IpAddr),
    /// Its source becomes this.
    SourceNat(IpAddr),
    /// Its source becomes the address of the interface by which it leaves.
    Masquerade,
    /// It leaves as it is by the interface with this index.
    PassTo(u32),
}

/// `NF_IP_PRI_RAW`: before connection tracking.
const PRIORITY_RAW: i32 = -300;
/// `NF_IP_PRI_NAT_DST`.
const PRIORITY_DESTINATION_NAT: i32 = -100;
/// `NF_IP_PRI_FILTER`.
pub(super) const PRIORITY_FILTER: i32 = 0;
/// `NF_IP_PRI_NAT_SRC`.
const PRIORITY_SOURCE_NAT: i32 = 100;

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const TCP: u8 = 6;
const UDP: u8 = 17;

const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;
const LOOPBACK_NETWORK: Prefix = Prefix {
    address: IpAddr::V4(LOOPBACK),
    bytes: 1,
};

impl Prefix {
    fn host(address: Ipv4Addr) -> Self {
        Self {
            address: address.into(),
            bytes: 4,
        }
    }

    fn host6(address: Ipv6Addr) -> Self {
        Self {
            address: address.into(),
            bytes: 16,
        }
    }

    fn network_64(address: Ipv6Addr) -> Self {
        Self {
            address: address.into(),
            bytes: 8,
        }
    }

    fn network_24(address: Ipv4Addr) -> Self {
        Self {
            address: address.into(),
            bytes: 3,
        }
    }
}

impl Rule {
    pub(super) fn new(matches: impl IntoIterator<Item = Match>, action: Action) -> Self {
        Self {
            matches: matches.into_iter().collect(),
            action,
        }
    }
}

/// The table for `plan`.
pub(super) fn table(plan: &Plan) -> Table {
    build(TABLE.to_owned(), plan, inbound(plan), local(plan))
}

/// The table of a tap that is made beside others: what comes to the pod goes where it went before. It leaves theirs alone, and every chain of both is passed.
pub(super) fn table_beside(plan: &Plan, device: &str) -> Table {
    build(format!("{TABLE}-{device}"), plan, Vec::new(), Vec::new())
}

fn build(name: String, plan: &Plan, inbound: Vec<Rule>, local: Vec<Rule>) -> Table {
    let chain = |name: &str, kind, hook, priority, rules| Chain {
        name: name.to_owned(),
        kind,
        hook,
        priority,
        rules,
    };
    Table {
        name,
        family: Family::Inet,
        chains: vec![
            chain(
                "from-guest",
                ChainKind::Filter,
                Hook::Prerouting,
                PRIORITY_RAW,
                anti_spoofing(plan),
            ),
            chain(
                "to-guest",
                ChainKind::Nat,
                Hook::Prerouting,
                PRIORITY_DESTINATION_NAT,
                inbound,
            ),
            chain(
                "local-to-guest",
                ChainKind::Nat,
                Hook::Output,
                PRIORITY_DESTINATION_NAT,
                local,
            ),
            chain(
                "guest-to-pod",
                ChainKind::Filter,
                Hook::Input,
                PRIORITY_FILTER,
                input(plan),
            ),
            chain(
                "between-networks",
                ChainKind::Filter,
                Hook::Forward,
                PRIORITY_FILTER,
                apart(plan),
            ),
            chain(
                "outbound",
                ChainKind::Nat,
                Hook::Postrouting,
                PRIORITY_SOURCE_NAT,
                outbound(plan),
            ),
        ],
    }
}

/// A guest sends from its own address only, and nothing to the pod's loopback, which `route_localnet` would otherwise let in.
fn anti_spoofing(plan: &Plan) -> Vec<Rule> {
    let rules = |tap: &Tap| {
        let from_tap = || Match::In(tap.device.clone());
        let ipv6 = match &tap.ipv6 {
            // Neighbour discovery is the shim's, so no link-local address has to pass.
            Some(ipv6) => Match::NotFrom(Prefix::host6(ipv6.guest)),
            None => Match::Ipv6,
        };
        [
            Rule::new([from_tap(), ipv6], Action::Drop),
            Rule::new([from_tap(), Match::NotFrom(Prefix::host(tap.guest))], Action::Drop),
            Rule::new([from_tap(), Match::To(LOOPBACK_NETWORK)], Action::Drop),
        ]
    };
    plan.taps().flat_map(rules).collect()
}

/// What comes to the pod is for the guest: every protocol, every port.
fn inbound(plan: &Plan) -> Vec<Rule> {
    let rules = |tap: &Tap| {
        let from_uplink = Match::In(tap.uplink.name.clone());
        let rule = |to, guest| Rule::new([from_uplink.clone(), Match::To(to)], Action::DestinationNat(guest));
        let ipv4 = tap.uplink.addresses.iter();
        let ipv4 = ipv4.map(|address| rule(Prefix::host(*address), tap.guest.into()));
        let ipv6 = tap.ipv6.iter().flat_map(|ipv6| {
            let addresses = tap.uplink.addresses6.iter();
            addresses.map(|address| rule(Prefix::host6(*address), ipv6.guest.into()))
        });
        ipv4.chain(ipv6).collect::<Vec<_>>()
    };
    plan.first_taps().flat_map(rules).collect()
}

/// What the runtime sends to 127.0.0.1 in the pod's namespace, as for `kubectl port-forward`, is for the guest too: by the pod's own network.
fn local(plan: &Plan) -> Vec<Rule> {
    let Some(tap) = plan.taps().find(|tap| tap.on_pod_network) else {
        return Vec::new();
    };
    let rule = |protocol| {
        let matches = [Match::To(Prefix::host(LOOPBACK)), Match::Protocol(protocol)];
        Rule::new(matches, Action::DestinationNat(tap.guest.into()))
    };
    [TCP, UDP].map(rule).to_vec()
}

/// A guest's interface reaches, and is reached by, the network that it is on and no other of the pod's.
fn apart(plan: &Plan) -> Vec<Rule> {
    let rules = |tap: &Tap| {
        let (device, uplink) = (|| tap.device.clone(), || tap.uplink.name.clone());
        [
            Rule::new([Match::In(device()), Match::NotOut(uplink())], Action::Drop),
            Rule::new([Match::Out(device()), Match::NotIn(uplink())], Action::Drop),
        ]
    };
    plan.taps().flat_map(rules).collect()
}

/// A guest reaches no socket in the pod's namespace; it may ping its gateway, and its answers come back to local connections.
fn input(plan: &Plan) -> Vec<Rule> {
    let rules = |tap: &Tap| {
        let from_tap = || Match::In(tap.device.clone());
        let accept_ping6 = tap
            .ipv6
            .map(|_| Rule::new([from_tap(), Match::Protocol(ICMPV6)], Action::Accept));
        [
            Rule::new([from_tap(), Match::Established], Action::Accept),
            Rule::new([from_tap(), Match::Protocol(ICMP)], Action::Accept),
        ]
        .into_iter()
        .chain(accept_ping6)
        .chain([Rule::new([from_tap()], Action::Drop)])
    };
    plan.taps().flat_map(rules).collect()
}

/// Guests go out with the pod's address; local connections reach the guest from the gateway's.
fn outbound(plan: &Plan) -> Vec<Rule> {
    let rules = |tap: &Tap| {
        let from_guest = Match::From(Prefix::network_24(tap.network));
        let local = [Match::Out(tap.device.clone()), Match::From(LOOPBACK_NETWORK)];
        let to_uplink = || Match::Out(tap.uplink.name.clone());
        let ipv6 = tap.ipv6.map(|ipv6| {
            let from_guest = Match::From(Prefix::network_64(ipv6.network));
            Rule::new([to_uplink(), from_guest], Action::Masquerade)
        });
        [
            Rule::new([to_uplink(), from_guest], Action::Masquerade),
            Rule::new(local, Action::SourceNat(tap.gateway.into())),
        ]
        .into_iter()
        .chain(ipv6)
    };
    plan.taps().flat_map(rules).collect()
}

#[cfg(test)]
mod tests {
    use super::super::plan::tests::{plan, uplink};
    use super::*;

    fn rules<'a>(table: &'a Table, chain: &str) -> &'a [Rule] {
        &table
            .chains
            .iter()
            .find(|candidate| candidate.name == chain)
            .unwrap()
            .rules
    }

    #[test]
    fn every_address_of_the_pod_leads_to_the_first_guest_interface() {
        let mut uplink = uplink();
        uplink.addresses.push(Ipv4Addr::new(10, 244, 1, 8));
        let table = table(&plan(2, uplink).unwrap());
        let guest = Action::DestinationNat(Ipv4Addr::new(10, 0, 2, 2).into());
        assert_eq!(rules(&table, "to-guest").len(), 2);
        assert!(
            rules(&table, "to-guest")
                .iter()
                .chain(rules(&table, "local-to-guest"))
                .all(|rule| rule.action == guest)
        );
    }

    #[test]
    fn every_tap_is_guarded_by_its_own_address() {
        let table = table(&plan(2, uplink()).unwrap());
        for (device, guest) in [
            ("tap0", Ipv4Addr::new(10, 0, 2, 2)),
            ("tap1", Ipv4Addr::new(10, 0, 3, 2)),
        ] {
            let spoofed = Rule::new(
                [Match::In(device.into()), Match::NotFrom(Prefix::host(guest))],
                Action::Drop,
            );
            assert!(rules(&table, "from-guest").contains(&spoofed));
            let last = rules(&table, "guest-to-pod")
                .iter()
                .rfind(|rule| rule.matches[0] == Match::In(device.into()))
                .unwrap();
            assert_eq!(*last, Rule::new([Match::In(device.into())], Action::Drop));
        }
    }

    #[test]
    fn a_tap_beside_others_is_guarded_and_takes_nothing_from_them() {
        let plan = Plan::beside(1, &super::super::plan::tests::interfaces(1)[0], uplink()).unwrap();
        let table = table_beside(&plan, "tap1");
        assert_eq!(table.name, "tandem-tap1");
        assert!(rules(&table, "to-guest").is_empty() && rules(&table, "local-to-guest").is_empty());
        for chain in ["from-guest", "guest-to-pod", "between-networks", "outbound"] {
            assert!(!rules(&table, chain).is_empty(), "{chain}");
        }
        let guest = Prefix::host(Ipv4Addr::new(10, 0, 3, 2));
        let spoofed = Rule::new([Match::In("tap1".into()), Match::NotFrom(guest)], Action::Drop);
        assert!(rules(&table, "from-guest").contains(&spoofed));
    }
}
