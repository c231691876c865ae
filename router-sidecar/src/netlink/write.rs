//! Changes to a network namespace, one request each.
//!
//! Deleting what is not there is no error; adding what is there is one, since then it is not what we think.

use std::{net::IpAddr, os::fd::AsRawFd as _};

use calico_vni_proto::names;
use ipnet::IpNet;
use rtnetlink::{
    AddressMessageBuilder, LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVrf,
    LinkVxlan, RouteMessageBuilder,
    packet_core::{NLM_F_ACK, NLM_F_REQUEST},
    packet_route::{
        AddressFamily,
        address::{
            AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressProtocol, AddressScope,
        },
        link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoVeth, LinkAttribute, LinkMessage},
        route::{RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteScope, RouteType},
        rule::{RuleAction, RuleAttribute, RuleMessage},
    },
};

use super::{Client, NetlinkError, observe::index_of};
use crate::{
    netns::Netns,
    state::{Action, Address, Kind, Link, LinkChange, Route, Rule, Target, UplinkRoute},
};

/// `RT_TABLE_COMPAT`: what the eight bits of a header hold for a table that does not fit into them.
const TABLE_COMPAT: u8 = 252;

type Done = Result<(), NetlinkError>;

/// Makes a device as it is wanted. Veths are made by [`veth_add`].
pub async fn link_add(client: &Client, name: &str, link: &Link) -> Done {
    let message = match &link.kind {
        Kind::Vrf { table } => with_mac(LinkVrf::new(name, *table), link).build(),
        Kind::Bridge => with_mac(LinkMessageBuilder::<LinkBridge>::new(name), link).build(),
        Kind::Vxlan { vni, local, port, learning } => {
            let vxlan = LinkVxlan::new(name, *vni).port(*port).learning(*learning);
            let vxlan = match local {
                Some(IpAddr::V4(v4)) => vxlan.local(*v4),
                Some(IpAddr::V6(v6)) => vxlan.local6(*v6),
                None => vxlan,
            };
            with_mac(vxlan, link).build()
        }
        kind @ (Kind::Veth { .. } | Kind::Given | Kind::Foreign(_)) => {
            return Err(NetlinkError::Protocol(format!(
                "device `{name}` of kind {kind:?} is not made alone"
            )));
        }
    };
    client.handle.link().add(message).execute().await?;
    let rest = LinkChange { mac: None, ..LinkChange::between(link, &blank(link)) };
    link_set(client, name, &rest).await
}

fn with_mac<T>(builder: LinkMessageBuilder<T>, link: &Link) -> LinkMessageBuilder<T> {
    match link.mac {
        Some(mac) => builder.address(mac.0.to_vec()),
        None => builder,
    }
}

/// A device right after it was made.
fn blank(link: &Link) -> Link {
    Link { up: false, ..Link::up(link.kind.clone()) }
}

/// Makes a pair of veths, the second end in another namespace. Both have this MTU from the start.
pub async fn veth_add(client: &Client, name: &str, other: (&Netns, &str), mtu: u32) -> Done {
    let (netns, other) = other;
    let peer = LinkUnspec::new_with_name(other).setns_by_fd(netns.file().as_raw_fd()).mtu(mtu).build();
    let pair =
        LinkVeth::new(name, other).mtu(mtu).set_info_data(InfoData::Veth(InfoVeth::Peer(peer))).build();
    Ok(client.handle.link().add(pair).execute().await?)
}

/// Changes a device.
pub async fn link_set(client: &Client, name: &str, change: &LinkChange) -> Done {
    if change.is_empty() {
        return Ok(());
    }
    let index = index_of(client, name).await?;
    let set = |message: LinkMessage| client.handle.link().set(message).execute();
    let this = || LinkUnspec::new_with_index(index);
    // Before anything that puts it up, so that it never gets an address that is not wanted.
    if let Some(on) = change.link_local {
        let mode = if on { In6AddrGenMode::Eui64 } else { In6AddrGenMode::None };
        let spec = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(mode)]);
        set(this().append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![spec])).build()).await?;
    }
    if let Some(mac) = change.mac {
        set(this().address(mac.0.to_vec()).build()).await?;
    }
    if let Some(master) = &change.master {
        set(this().controller(index_of(client, master).await?).build()).await?;
    }
    if let Some(mtu) = change.mtu {
        set(this().mtu(mtu).build()).await?;
    }
    if let Some(port) = change.port {
        let port = LinkBridgePort::new(index).learning(port.learning).neigh_suppress(port.neigh_suppress);
        // RTM_SETLINK passes over the settings of a port without a word; RTM_NEWLINK for a device that is there takes
        // them (`rtnl_newlink` in net/core/rtnetlink.c).
        client.handle.link().add(port.build()).set_flags(NLM_F_REQUEST | NLM_F_ACK).execute().await?;
    }
    match change.up {
        Some(true) => Ok(set(this().up().build()).await?),
        Some(false) => Ok(set(this().down().build()).await?),
        None => Ok(()),
    }
}

/// Deletes a device.
pub async fn link_delete(client: &Client, name: &str) -> Done {
    let delete = async {
        let index = index_of(client, name).await?;
        Ok(client.handle.link().del(index).execute().await?)
    };
    absent_is_fine(delete.await)
}

/// Moves a device into another namespace.
pub async fn link_move(client: &Client, name: &str, to: &Netns) -> Done {
    let index = index_of(client, name).await?;
    let message = LinkUnspec::new_with_index(index).setns_by_fd(to.file().as_raw_fd()).build();
    Ok(client.handle.link().set(message).execute().await?)
}

/// Adds an address, with our mark if `ours`.
pub async fn address_add(client: &Client, address: &Address, ours: bool) -> Done {
    let mut message = address_message(client, address).await?;
    if ours {
        let mark = AddressAttribute::Protocol(AddressProtocol::Other(names::PROTOCOL));
        message.attributes.push(mark);
    }
    let mut request =
        client.handle.address().add(message.header.index, address.net.addr(), address.net.prefix_len());
    *request.message_mut() = message;
    Ok(request.execute().await?)
}

/// Deletes an address.
pub async fn address_delete(client: &Client, address: &Address) -> Done {
    let delete = async {
        let message = address_message(client, address).await?;
        Ok(client.handle.address().del(message).execute().await?)
    };
    absent_is_fine(delete.await)
}

async fn address_message(client: &Client, address: &Address) -> Result<AddressMessage, NetlinkError> {
    let index = index_of(client, &address.dev).await?;
    let length = address.net.prefix_len();
    let mut message = match address.net.addr() {
        IpAddr::V4(v4) => {
            AddressMessageBuilder::<std::net::Ipv4Addr>::new().index(index).address(v4, length).build()
        }
        IpAddr::V6(v6) => {
            let mut message =
                AddressMessageBuilder::<std::net::Ipv6Addr>::new().index(index).address(v6, length).build();
            // There is nobody else on these links who could have the address.
            message.header.flags |= AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            message
        }
    };
    if address.link_scope {
        message.header.scope = AddressScope::Link;
    }
    Ok(message)
}

/// Adds a route of ours.
pub async fn route_add(client: &Client, route: &Route) -> Done {
    let message = route_message(client, route).await?;
    Ok(client.handle.route().add(message).execute().await?)
}

/// Deletes a route of ours.
pub async fn route_delete(client: &Client, route: &Route) -> Done {
    let delete = async {
        let message = route_message(client, route).await?;
        Ok(client.handle.route().del(message).execute().await?)
    };
    absent_is_fine(delete.await)
}

async fn route_message(client: &Client, route: &Route) -> Result<RouteMessage, NetlinkError> {
    let mut message = to_prefix(route.to, route.table, route.metric);
    message.header.protocol = RouteProtocol::from(names::PROTOCOL);
    match &route.target {
        Target::Via { gateway, dev } => {
            message.header.kind = RouteType::Unicast;
            message.attributes.push(RouteAttribute::Gateway((*gateway).into()));
            message.attributes.push(RouteAttribute::Oif(index_of(client, dev).await?));
        }
        Target::Throw => message.header.kind = RouteType::Throw,
        Target::Unreachable => message.header.kind = RouteType::Unreachable,
        // Only ever deleted: the kernel matches any kind then.
        Target::Other(_) => message.header.kind = RouteType::Unspec,
    }
    Ok(message)
}

/// Adds a route as it was before its interface moved.
pub async fn uplink_route_add(client: &Client, dev: &str, route: &UplinkRoute) -> Done {
    let mut message = to_prefix(route.to, crate::state::MAIN, route.metric);
    message.header.kind = RouteType::Unicast;
    message.header.protocol = RouteProtocol::from(route.protocol);
    match route.gateway {
        Some(gateway) => message.attributes.push(RouteAttribute::Gateway(gateway.into())),
        None => message.header.scope = RouteScope::Link,
    }
    if let Some(source) = route.source {
        message.attributes.push(RouteAttribute::PrefSource(source.into()));
    }
    if route.onlink {
        message.header.flags |= RouteFlags::Onlink;
    }
    message.attributes.push(RouteAttribute::Oif(index_of(client, dev).await?));
    Ok(client.handle.route().add(message).replace().execute().await?)
}

fn to_prefix(to: IpNet, table: u32, metric: u32) -> RouteMessage {
    let builder = RouteMessageBuilder::<IpAddr>::new();
    let mut message = builder
        .destination_prefix(to.addr(), to.prefix_len())
        .expect("a prefix is never longer than its address")
        .build();
    message.header.scope = RouteScope::Universe;
    message.header.table = u8::try_from(table).unwrap_or(TABLE_COMPAT);
    message.attributes.push(RouteAttribute::Table(table));
    if metric != 0 {
        message.attributes.push(RouteAttribute::Priority(metric));
    }
    message
}

/// Adds a rule of ours behind those of its preference. One that is there already does not stop it: the kernel would take
/// for the same what differs in the target of a `goto`, or lacks what the other asks for.
pub async fn rule_add(client: &Client, rule: &Rule) -> Done {
    let mut request = client.handle.rule().add();
    *request.message_mut() = rule_message(rule);
    Ok(request.replace().execute().await?)
}

/// Deletes a rule of ours.
pub async fn rule_delete(client: &Client, rule: &Rule) -> Done {
    let delete = client.handle.rule().del(rule_message(rule)).execute().await;
    absent_is_fine(delete.map_err(NetlinkError::from))
}

fn rule_message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = if rule.v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    message.attributes.push(RuleAttribute::Priority(rule.pref));
    message.attributes.push(RuleAttribute::Protocol(RouteProtocol::from(names::PROTOCOL)));
    if let Some(from) = rule.from {
        message.header.src_len = from.prefix_len();
        message.attributes.push(RuleAttribute::Source(from.addr()));
    }
    if let Some(to) = rule.to {
        message.header.dst_len = to.prefix_len();
        message.attributes.push(RuleAttribute::Destination(to.addr()));
    }
    if let Some(iif) = &rule.iif {
        message.attributes.push(RuleAttribute::Iifname(iif.clone()));
    }
    if let Some(mark) = rule.mark {
        message.attributes.extend([RuleAttribute::FwMark(mark), RuleAttribute::FwMask(mark)]);
    }
    match &rule.action {
        Action::Lookup { table, suppress_prefixlength } => {
            message.header.action = RuleAction::ToTable;
            message.header.table = u8::try_from(*table).unwrap_or(TABLE_COMPAT);
            message.attributes.push(RuleAttribute::Table(*table));
            if let Some(length) = suppress_prefixlength {
                message.attributes.push(RuleAttribute::SuppressPrefixLen((*length).into()));
            }
        }
        Action::Goto(pref) => {
            message.header.action = RuleAction::Goto;
            message.attributes.push(RuleAttribute::Goto(*pref));
        }
        Action::Nop => message.header.action = RuleAction::Nop,
        Action::Blackhole => message.header.action = RuleAction::Blackhole,
        Action::Other(action) => {
            message.header.action = RuleAction::from(*action);
            if message.header.action == RuleAction::Goto {
                // It is only ever deleted. The kernel wants a target and does not compare it (`fib_nl2rule`).
                message.attributes.push(RuleAttribute::Goto(rule.pref + 1));
            }
        }
    }
    message
}

fn absent_is_fine(result: Done) -> Done {
    match result {
        Err(error) if error.is_absent() => Ok(()),
        other => other,
    }
}
