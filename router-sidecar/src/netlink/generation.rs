//! The generation of the packet filter's rules: a number that changes with every change to them, for the price of one
//! message. It spares listing a table in which nothing was changed.

use std::io;

use rtnetlink::{
    packet_core::{NlasIterator, parse_u32_be},
    sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER},
};

use super::NLMSGHDR;
use crate::netns::{Netns, NetnsError};

/// `NFNL_SUBSYS_NFTABLES` in `linux/netfilter/nfnetlink.h`.
const NFTABLES: u16 = 10;
/// `NFT_MSG_NEWGEN` in `linux/netfilter/nf_tables.h`.
const NEWGEN: u16 = 15;
/// `NFT_MSG_GETGEN`.
const GETGEN: u16 = 16;
/// `NFTA_GEN_ID`: 32 bits in network order.
const GEN_ID: u16 = 1;
/// `NLM_F_REQUEST`.
const REQUEST: u16 = 1;
/// Octets of `struct nfgenmsg`: family, version, resource, all zero in the request.
const NFGENMSG: usize = 4;

/// A socket that asks for it.
#[derive(Debug)]
pub struct Generation {
    socket: Socket,
}

impl Generation {
    /// For the packet filter of this namespace.
    pub fn open(netns: &Netns) -> Result<io::Result<Self>, NetnsError> {
        netns.run(|| {
            let mut socket = Socket::new(NETLINK_NETFILTER)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            // The kernel has answered when the request is sent: there is nothing to wait for.
            socket.set_non_blocking(true)?;
            Ok(Self { socket })
        })
    }

    /// The generation now.
    pub fn now(&self) -> io::Result<u32> {
        self.socket.send(&request(), 0)?;
        let (answer, _) = self.socket.recv_from_full()?;
        parse(&answer).ok_or_else(|| io::Error::other("no generation in the answer"))
    }
}

fn request() -> Vec<u8> {
    let length = u32::try_from(NLMSGHDR + NFGENMSG).expect("20 fits");
    let mut message = Vec::with_capacity(NLMSGHDR + NFGENMSG);
    message.extend(length.to_ne_bytes());
    message.extend(((NFTABLES << 8) | GETGEN).to_ne_bytes());
    message.extend(REQUEST.to_ne_bytes());
    message.resize(NLMSGHDR + NFGENMSG, 0);
    message
}

fn parse(answer: &[u8]) -> Option<u32> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    if kind != (NFTABLES << 8) | NEWGEN {
        return None;
    }
    NlasIterator::new(answer.get(NLMSGHDR + NFGENMSG..)?)
        .filter_map(Result::ok)
        .find(|nla| nla.kind() == GEN_ID)
        .and_then(|nla| parse_u32_be(nla.value()).ok())
}
