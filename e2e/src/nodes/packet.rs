//! The four packets that the lab knows: echo requests and replies, the SYN that opens a TCP connection and the SYN that
//! answers it, over IPv4 and IPv6. Reads and builds them. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Protocol numbers of IP (IANA): ICMP, TCP, ICMPv6.
const ICMP: u8 = 1;
const TCP: u8 = 6;
const ICMPV6: u8 = 58;

/// Flags of TCP (RFC 9293 section 3.1).
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Octets of the headers without options.
const IPV4: usize = 20;
const IPV6: usize = 40;

/// What a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// ICMP (RFC 792) or ICMPv6 (RFC 4443) echo request.
    EchoRequest,
    /// The answer to it.
    EchoReply,
    /// The first packet of a TCP connection.
    Syn,
    /// The answer to it, SYN and ACK.
    SynAck,
}

/// A packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// What it is.
    pub kind: Kind,
    /// Source.
    pub source: IpAddr,
    /// Destination.
    pub target: IpAddr,
    /// What joins question and answer: the identifier of ICMP, the client's port of TCP.
    pub id: u16,
    /// The server's port of TCP.
    pub port: u16,
    /// Number of the question, also in its answer: the sequence number of ICMP; of TCP the client's first one.
    pub number: u32,
}

/// Reads a packet from its IP header on; `None` for every other packet.
pub fn read(octets: &[u8]) -> Option<Packet> {
    let (source, target, protocol, body) = match octets.first()? >> 4 {
        4 => {
            let header = usize::from(octets[0] & 0x0f) * 4;
            // A fragment but the first has no header of the next protocol.
            let fragment = u16::from_be_bytes([*octets.get(6)?, *octets.get(7)?]) & 0x1fff;
            if fragment != 0 {
                return None;
            }
            let address = |at: usize| -> Option<[u8; 4]> { octets.get(at..at + 4)?.try_into().ok() };
            let (source, target) = (Ipv4Addr::from(address(12)?), Ipv4Addr::from(address(16)?));
            (source.into(), target.into(), octets[9], octets.get(header..)?)
        }
        6 => {
            let address = |at: usize| -> Option<[u8; 16]> { octets.get(at..at + 16)?.try_into().ok() };
            let (source, target) = (Ipv6Addr::from(address(8)?), Ipv6Addr::from(address(24)?));
            (IpAddr::from(source), IpAddr::from(target), octets[6], octets.get(IPV6..)?)
        }
        _ => return None,
    };
    let short = |at: usize| Some(u16::from_be_bytes(body.get(at..at + 2)?.try_into().ok()?));
    let long = |at: usize| Some(u32::from_be_bytes(body.get(at..at + 4)?.try_into().ok()?));
    let packet = |kind, id, port, number| Some(Packet { kind, source, target, id, port, number });
    match (protocol, *body.first()?) {
        (ICMP, 8) | (ICMPV6, 128) => packet(Kind::EchoRequest, short(4)?, 0, short(6)?.into()),
        (ICMP, 0) | (ICMPV6, 129) => packet(Kind::EchoReply, short(4)?, 0, short(6)?.into()),
        (TCP, _) => match body.get(13)? & (SYN | ACK | RST) {
            SYN => packet(Kind::Syn, short(0)?, short(2)?, long(4)?),
            // The answer acknowledges the SYN, which counts as one octet.
            flags if flags == SYN | ACK => {
                packet(Kind::SynAck, short(2)?, short(0)?, long(8)?.wrapping_sub(1))
            }
            _ => None,
        },
        _ => None,
    }
}

/// Builds a request, an [`Kind::EchoRequest`] or a [`Kind::Syn`], from its IP header on. The kernel writes the length and
/// the checksum of an IPv4 header (`raw(7)`).
///
/// # Panics
///
/// When the addresses are of different families, or the packet is an answer: those are the kernel's.
pub fn build(packet: &Packet) -> Vec<u8> {
    let Packet { kind, id, port, number, .. } = *packet;
    let mut body = Vec::new();
    let (protocol, checksum_at) = match (kind, packet.target) {
        (Kind::EchoRequest, target) => {
            body.extend([if target.is_ipv4() { 8 } else { 128 }, 0, 0, 0]);
            body.extend(id.to_be_bytes());
            // Sixteen bits are what the field has.
            body.extend(&number.to_be_bytes()[2..]);
            (if target.is_ipv4() { ICMP } else { ICMPV6 }, 2)
        }
        (Kind::Syn, _) => {
            body.extend(id.to_be_bytes());
            body.extend(port.to_be_bytes());
            body.extend(number.to_be_bytes());
            // No acknowledgement; a header of five words; the window; checksum and urgent pointer.
            body.extend([0, 0, 0, 0, 5 << 4, SYN, 0xff, 0xff, 0, 0, 0, 0]);
            (TCP, 16)
        }
        (Kind::EchoReply | Kind::SynAck, _) => panic!("answers are made by the kernel"),
    };
    let length = u16::try_from(body.len()).expect("a request has a few octets");
    let mut header = Vec::with_capacity(IPV6 + body.len());
    let mut pseudo = Vec::new();
    match (packet.source, packet.target) {
        (IpAddr::V4(source), IpAddr::V4(target)) => {
            let total = u16::try_from(IPV4).expect("20") + length;
            header.extend([0x45, 0]);
            header.extend(total.to_be_bytes());
            header.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
            header.extend(source.octets());
            header.extend(target.octets());
            if protocol == TCP {
                pseudo.extend_from_slice(&header[12..20]);
                pseudo.extend([0, protocol]);
                pseudo.extend(length.to_be_bytes());
            }
        }
        (IpAddr::V6(source), IpAddr::V6(target)) => {
            header.extend([0x60, 0, 0, 0]);
            header.extend(length.to_be_bytes());
            header.extend([protocol, 64]);
            header.extend(source.octets());
            header.extend(target.octets());
            pseudo.extend_from_slice(&header[8..40]);
            pseudo.extend(u32::from(length).to_be_bytes());
            pseudo.extend([0, 0, 0, protocol]);
        }
        (source, target) => panic!("{source} and {target} are of different families"),
    }
    let sum = checksum(&[pseudo.as_slice(), body.as_slice()].concat());
    body[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
    header.extend(body);
    header
}

/// The Internet checksum (RFC 1071) of an even number of octets.
pub(super) fn checksum(octets: &[u8]) -> u16 {
    let words = octets.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("it was folded")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(kind: Kind, source: &str, target: &str) -> Packet {
        let port = if kind == Kind::Syn { 8080 } else { 0 };
        let (source, target) = (source.parse().unwrap(), target.parse().unwrap());
        Packet { kind, source, target, id: 12_345, port, number: 54_321 }
    }

    #[test]
    fn what_is_built_is_read() {
        for kind in [Kind::EchoRequest, Kind::Syn] {
            for (source, target) in [("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2")] {
                let packet = packet(kind, source, target);
                assert_eq!(read(&build(&packet)), Some(packet));
            }
        }
    }

    #[test]
    fn a_right_checksum_sums_to_zero() {
        let octets = build(&packet(Kind::EchoRequest, "192.0.2.1", "192.0.2.2"));
        assert_eq!(checksum(&octets[IPV4..]), 0);
        // An echo request of ping, as it was captured: 08 00, checksum f7ff without identifier, number and data.
        assert_eq!(checksum(&[8, 0, 0, 0, 0, 0, 0, 0]), 0xf7ff);
    }

    #[test]
    fn other_packets_are_none() {
        let syn = build(&packet(Kind::Syn, "192.0.2.1", "192.0.2.2"));
        for (at, value) in [(0, 0x55), (9, 17), (7, 1), (IPV4 + 13, ACK), (IPV4 + 13, SYN | RST)] {
            let mut other = syn.clone();
            other[at] = value;
            assert_eq!(read(&other), None, "octet {at} is {value}");
        }
        for length in 0..IPV4 + 14 {
            assert_eq!(read(&syn[..length]), None, "{length} octets");
        }
    }

    #[test]
    fn an_answer_names_its_question() {
        let mut answer = build(&packet(Kind::Syn, "192.0.2.2", "192.0.2.1"));
        let body = &mut answer[IPV4..];
        body[0..2].copy_from_slice(&8080_u16.to_be_bytes());
        body[2..4].copy_from_slice(&12_345_u16.to_be_bytes());
        body[8..12].copy_from_slice(&54_322_u32.to_be_bytes());
        body[13] = SYN | ACK;
        let expected = Packet { kind: Kind::SynAck, ..packet(Kind::Syn, "192.0.2.2", "192.0.2.1") };
        assert_eq!(read(&answer), Some(expected));
    }
}
