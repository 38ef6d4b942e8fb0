//! Writes a table to the kernel by nfnetlink, whole and at once, in the calling thread's network namespace.

use std::ffi::CString;
use std::net::IpAddr;

use netlink_bindings::nftables::{
    Chained, CmpOps, CtKeys, MetaKeys, Nfgenmsg, PayloadBase, PushExprAttrs, PushExprListAttrs, Registers, VerdictCode,
};
use netlink_bindings::traits::{NetlinkChained, Pusher};
use netlink_bindings::utils::{finalize_nested_header, push_header, push_nested_header};
use netlink_socket2::{NetlinkSocket, ReplyError};

use super::ruleset::{Action, Bytes, Chain, ChainKind, Family, Hook, Match, Prefix, Rule, TABLE, Table};

/// `NFPROTO_INET` (linux/netfilter.h).
const FAMILY_INET: u8 = 1;
/// `NFPROTO_NETDEV`.
const FAMILY_NETDEV: u8 = 5;
/// `NFPROTO_IPV4`.
const FAMILY_IPV4: u8 = 2;
/// `NFPROTO_IPV6`.
const FAMILY_IPV6: u8 = 10;
/// `NFNL_SUBSYS_NFTABLES`: which subsystem a batch is for.
const SUBSYSTEM_NFTABLES: u16 = 10;
/// `NFT_NAT_SNAT`.
const NAT_SOURCE: u32 = 0;
/// `NFT_NAT_DNAT`.
const NAT_DESTINATION: u32 = 1;
/// `NF_CT_STATE_BIT(IP_CT_ESTABLISHED) | NF_CT_STATE_BIT(IP_CT_RELATED)`, in the byte order of the machine.
const STATE_ESTABLISHED_OR_RELATED: u32 = 0x2 | 0x4;
/// `NFTA_EXPR_DATA` and `NFTA_FWD_SREG_DEV` (`linux/netfilter/nf_tables.h`).
const EXPRESSION_DATA: u16 = 2;
const FORWARD_DEVICE: u16 = 1;
/// Bytes of an interface name in the kernel, padded with zeroes.
const INTERFACE_NAME_BYTES: usize = 16;

/// Failure to write the table.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NftablesError {
    /// A defect.
    #[error("a name of the table has a NUL")]
    Name(#[source] std::ffi::NulError),
    /// Refused by the kernel.
    #[error("the kernel refused the table: {0}")]
    Kernel(Box<ReplyError>),
}

/// Puts `table` in the place of an older one, in one transaction: no packet sees half of it.
pub(super) fn replace_table(table: &Table) -> Result<(), NftablesError> {
    let mut socket = NetlinkSocket::new();
    let batch = encode(table).map_err(NftablesError::Name)?;
    let kernel = |error: ReplyError| NftablesError::Kernel(Box::new(error));
    socket
        .request_chained(&batch)
        .map_err(|error| kernel(error.into()))?
        .recv_all()
        .map_err(kernel)
}

fn encode(table: &Table) -> Result<impl NetlinkChained + Send + Sync + use<>, std::ffi::NulError> {
    let name = CString::new(TABLE)?;
    let header = Nfgenmsg {
        nfgen_family: match table.family {
            Family::Inet => FAMILY_INET,
            Family::Netdev => FAMILY_NETDEV,
        },
        ..Default::default()
    };
    let mut batch_header = Nfgenmsg::new();
    batch_header.set_res_id(SUBSYSTEM_NFTABLES);

    let mut batch = Chained::new(1);
    batch.request().op_batch_begin_do(&batch_header);
    // A table that is made, deleted and made again is new, whether or not it was there before.
    batch
        .request()
        .set_create()
        .op_newtable_do(&header)
        .encode()
        .push_name(&name);
    batch.request().op_deltable_do(&header).encode().push_name(&name);
    batch
        .request()
        .set_create()
        .op_newtable_do(&header)
        .encode()
        .push_name(&name);
    for chain in &table.chains {
        encode_chain(&mut batch, &header, &name, chain)?;
    }
    let rules: usize = table.chains.iter().map(|chain| chain.rules.len()).sum();
    if (5 + table.chains.len() + rules).is_multiple_of(64) {
        // netlink-socket2 0.3.5 waits for no answer to a batch of exactly 64 messages. A chain that is there already changes nothing.
        batch
            .request()
            .set_create()
            .op_newtable_do(&header)
            .encode()
            .push_name(&name);
    }
    batch.request().op_batch_end_do(&batch_header);
    Ok(batch.finalize())
}

fn encode_chain(
    batch: &mut Chained<'_>,
    header: &Nfgenmsg,
    table: &CString,
    chain: &Chain,
) -> Result<(), std::ffi::NulError> {
    let name = CString::new(chain.name.as_str())?;
    let kind = match chain.kind {
        ChainKind::Filter => c"filter",
        ChainKind::Nat => c"nat",
    };
    // `NF_NETDEV_INGRESS`, and `NF_INET_*` (linux/netfilter.h).
    let (hook, device) = match &chain.hook {
        Hook::Ingress(device) => (0, Some(CString::new(device.as_str())?)),
        Hook::Prerouting => (0, None),
        Hook::Input => (1, None),
        Hook::Forward => (2, None),
        Hook::Output => (3, None),
        Hook::Postrouting => (4, None),
    };
    let mut request = batch.request().set_create().op_newchain_do(header);
    let attributes = request.encode().push_table(table).push_name(&name);
    let placed = attributes.nested_hook().push_num(hook).push_priority(chain.priority);
    let placed = match &device {
        Some(device) => placed.push_dev(device),
        None => placed,
    };
    let attributes = placed.end_nested();
    attributes.push_policy(VerdictCode::Accept as u32).push_type(kind);
    drop(request);
    for rule in &chain.rules {
        let mut request = batch.request().set_create().set_append().op_newrule_do(header);
        let expressions = request
            .encode()
            .push_table(table)
            .push_chain(&name)
            .nested_expressions();
        encode_rule(expressions, rule).end_nested();
    }
    Ok(())
}

fn encode_rule<P: Pusher>(expressions: PushExprListAttrs<P>, rule: &Rule) -> PushExprListAttrs<P> {
    let matched = rule.matches.iter().fold(expressions, encode_match);
    encode_action(matched, rule.action)
}

fn encode_match<P: Pusher>(expressions: PushExprListAttrs<P>, matching: &Match) -> PushExprListAttrs<P> {
    match matching {
        Match::In(name) => compare_interface(expressions, MetaKeys::Iifname, CmpOps::Eq, name),
        Match::NotIn(name) => compare_interface(expressions, MetaKeys::Iifname, CmpOps::Neq, name),
        Match::Out(name) => compare_interface(expressions, MetaKeys::Oifname, CmpOps::Eq, name),
        Match::NotOut(name) => compare_interface(expressions, MetaKeys::Oifname, CmpOps::Neq, name),
        Match::Ipv6 => compare(load_meta(expressions, MetaKeys::Nfproto), CmpOps::Eq, &[FAMILY_IPV6]),
        Match::From(prefix) => compare_address(expressions, Side::Source, CmpOps::Eq, *prefix),
        Match::NotFrom(prefix) => compare_address(expressions, Side::Source, CmpOps::Neq, *prefix),
        Match::To(prefix) => compare_address(expressions, Side::Destination, CmpOps::Eq, *prefix),
        Match::Protocol(number) => compare(load_meta(expressions, MetaKeys::L4Proto), CmpOps::Eq, &[*number]),
        Match::Established => encode_established(expressions),
        Match::Frame(bytes) => compare_bytes(expressions, PayloadBase::LinkLayerHeader, CmpOps::Eq, bytes),
        Match::NotFrame(bytes) => compare_bytes(expressions, PayloadBase::LinkLayerHeader, CmpOps::Neq, bytes),
        Match::Packet(bytes) => compare_bytes(expressions, PayloadBase::NetworkHeader, CmpOps::Eq, bytes),
        Match::NotPacket(bytes) => compare_bytes(expressions, PayloadBase::NetworkHeader, CmpOps::Neq, bytes),
    }
}

fn encode_established<P: Pusher>(expressions: PushExprListAttrs<P>) -> PushExprListAttrs<P> {
    let register = Registers::Reg1 as u32;
    let load = expressions.nested_elem().nested_data_ct();
    let loaded = load
        .push_dreg(register)
        .push_key(CtKeys::State as u32)
        .end_nested()
        .end_nested();
    let mask = loaded
        .nested_elem()
        .nested_data_bitwise()
        .push_sreg(register)
        .push_dreg(register)
        .push_len(4);
    let mask = mask
        .nested_mask()
        .push_value(&STATE_ESTABLISHED_OR_RELATED.to_ne_bytes())
        .end_nested();
    let masked = mask
        .nested_xor()
        .push_value(&[0; 4])
        .end_nested()
        .end_nested()
        .end_nested();
    compare(masked, CmpOps::Neq, &[0; 4])
}

fn encode_action<P: Pusher>(expressions: PushExprListAttrs<P>, action: Action) -> PushExprListAttrs<P> {
    match action {
        Action::Accept => verdict(expressions, VerdictCode::Accept),
        Action::Drop => verdict(expressions, VerdictCode::Drop),
        Action::DestinationNat(address) => translate(expressions, NAT_DESTINATION, address),
        Action::SourceNat(address) => translate(expressions, NAT_SOURCE, address),
        Action::Masquerade => expressions.nested_elem().push_name(c"masq").end_nested(),
        Action::PassTo(index) => pass_to(expressions, index),
    }
}

/// `fwd`, which the bindings do not know: the device's index is loaded into a register, in the byte order of the machine.
fn pass_to<P: Pusher>(expressions: PushExprListAttrs<P>, index: u32) -> PushExprListAttrs<P> {
    let register = Registers::Reg1 as u32;
    let immediate = expressions.nested_elem().nested_data_immediate().push_dreg(register);
    let value = immediate.nested_data().push_value(&index.to_ne_bytes());
    let loaded = value.end_nested().end_nested().end_nested();
    let mut forward = loaded.nested_elem().push_name(c"fwd");
    let buffer = forward.as_vec_mut();
    let data = push_nested_header(buffer, EXPRESSION_DATA);
    push_header(buffer, FORWARD_DEVICE, 4);
    buffer.extend(register.to_be_bytes());
    finalize_nested_header(buffer, data);
    forward.end_nested()
}

fn verdict<P: Pusher>(expressions: PushExprListAttrs<P>, code: VerdictCode) -> PushExprListAttrs<P> {
    let immediate = expressions
        .nested_elem()
        .nested_data_immediate()
        .push_dreg(Registers::RegVerdict as u32);
    let data = immediate
        .nested_data()
        .nested_verdict()
        .push_code(code as u32)
        .end_nested()
        .end_nested();
    data.end_nested().end_nested()
}

fn translate<P: Pusher>(expressions: PushExprListAttrs<P>, direction: u32, to: IpAddr) -> PushExprListAttrs<P> {
    let register = Registers::Reg1 as u32;
    let (bytes, family) = octets(to);
    let address: PushExprAttrs<_> = expressions.nested_elem();
    let immediate = address
        .nested_data_immediate()
        .push_dreg(register)
        .nested_data()
        .push_value(&bytes);
    let loaded = immediate.end_nested().end_nested().end_nested();
    let nat = loaded
        .nested_elem()
        .nested_data_nat()
        .push_type(direction)
        .push_family(family.into());
    nat.push_reg_addr_min(register).end_nested().end_nested()
}

fn load_meta<P: Pusher>(expressions: PushExprListAttrs<P>, key: MetaKeys) -> PushExprListAttrs<P> {
    let meta = expressions.nested_elem().nested_data_meta();
    meta.push_key(key as u32)
        .push_dreg(Registers::Reg1 as u32)
        .end_nested()
        .end_nested()
}

fn compare<P: Pusher>(expressions: PushExprListAttrs<P>, operator: CmpOps, value: &[u8]) -> PushExprListAttrs<P> {
    let compare = expressions.nested_elem().nested_data_cmp();
    let compare = compare.push_sreg(Registers::Reg1 as u32).push_op(operator as u32);
    compare
        .nested_data()
        .push_value(value)
        .end_nested()
        .end_nested()
        .end_nested()
}

fn compare_interface<P: Pusher>(
    expressions: PushExprListAttrs<P>,
    key: MetaKeys,
    operator: CmpOps,
    name: &str,
) -> PushExprListAttrs<P> {
    compare(load_meta(expressions, key), operator, &interface_name(name))
}

/// Compares bytes of a header.
fn compare_bytes<P: Pusher>(
    expressions: PushExprListAttrs<P>,
    base: PayloadBase,
    operator: CmpOps,
    bytes: &Bytes,
) -> PushExprListAttrs<P> {
    let payload = expressions
        .nested_elem()
        .nested_data_payload()
        .push_dreg(Registers::Reg1 as u32);
    let payload = payload
        .push_base(base as u32)
        .push_offset(bytes.offset)
        .push_len(u32::try_from(bytes.value.len()).unwrap_or(u32::MAX));
    compare(payload.end_nested().end_nested(), operator, &bytes.value)
}

/// Which address of an IP header.
#[derive(Clone, Copy)]
enum Side {
    Source,
    Destination,
}

fn compare_address<P: Pusher>(
    expressions: PushExprListAttrs<P>,
    side: Side,
    operator: CmpOps,
    prefix: Prefix,
) -> PushExprListAttrs<P> {
    let (bytes, family) = octets(prefix.address);
    // Offsets in the header: RFC 791 section 3.1, RFC 8200 section 3.
    let offset = match (prefix.address, side) {
        (IpAddr::V4(_), Side::Source) => 12,
        (IpAddr::V4(_), Side::Destination) => 16,
        (IpAddr::V6(_), Side::Source) => 8,
        (IpAddr::V6(_), Side::Destination) => 24,
    };
    let value = bytes.get(..usize::from(prefix.bytes)).unwrap_or(&bytes);
    let of_family = compare(load_meta(expressions, MetaKeys::Nfproto), CmpOps::Eq, &[family]);
    let bytes = Bytes {
        offset,
        value: value.to_vec(),
    };
    compare_bytes(of_family, PayloadBase::NetworkHeader, operator, &bytes)
}

fn octets(address: IpAddr) -> (Vec<u8>, u8) {
    match address {
        IpAddr::V4(address) => (address.octets().to_vec(), FAMILY_IPV4),
        IpAddr::V6(address) => (address.octets().to_vec(), FAMILY_IPV6),
    }
}

fn interface_name(name: &str) -> [u8; INTERFACE_NAME_BYTES] {
    let mut padded = [0; INTERFACE_NAME_BYTES];
    for (to, from) in padded.iter_mut().zip(name.bytes().take(INTERFACE_NAME_BYTES - 1)) {
        *to = from;
    }
    padded
}
