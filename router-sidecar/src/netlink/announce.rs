//! What the kernel says of an address, said once more to all who listen.

use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::packet_route::{
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope},
    link::LinkAttribute,
};

use super::{Client, NetlinkError, observe::all};

/// An address as the kernel told it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// The address with its prefix length.
    pub net: IpNet,
    message: AddressMessage,
}

/// The addresses of a namespace that routing daemons should know: those of a link alone (IPv6), those that are not
/// used yet (RFC 4862 section 2, tentative) and all but the first of one subnet are left out.
pub async fn addresses(client: &Client) -> Result<Vec<Announcement>, NetlinkError> {
    let messages = all(client.handle.address().get().execute()).await?;
    Ok(messages.into_iter().filter_map(announcement).collect())
}

fn announcement(message: AddressMessage) -> Option<Announcement> {
    let (mut local, mut address, mut flags) = (None, None, AddressFlags::empty());
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    let ip: IpAddr = local.or(address)?;
    let link_local = matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
    let unfit =
        message.header.flags.intersects(AddressHeaderFlags::Secondary | AddressHeaderFlags::Tentative)
            || flags.intersects(AddressFlags::Secondary | AddressFlags::Tentative | AddressFlags::Dadfailed);
    let host = message.header.scope == AddressScope::Host || ip.is_loopback();
    let net = IpNet::new(ip, message.header.prefix_len).ok()?;
    (!unfit && !link_local && !host).then_some(Announcement { net, message })
}

/// The name of the device that has it.
pub async fn device(client: &Client, address: &Announcement) -> Result<String, NetlinkError> {
    let index = address.message.header.index;
    let links = all(client.handle.link().get().match_index(index).execute()).await?;
    let name = links.into_iter().flat_map(|link| link.attributes).find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name),
        _ => None,
    });
    name.ok_or_else(|| NetlinkError::NoDevice(format!("index {index}")))
}

/// Has the kernel announce it: an address that is replaced by itself stays as it is, its routes too, and is told to
/// all who listen (`inet_rtm_newaddr` and `inet6_addr_modify` in Linux).
pub async fn again(client: &Client, address: &Announcement) -> Result<(), NetlinkError> {
    let Announcement { net, message } = address;
    let request = client.handle.address().add(message.header.index, net.addr(), net.prefix_len());
    let mut request = request.replace();
    *request.message_mut() = message.clone();
    Ok(request.execute().await?)
}
