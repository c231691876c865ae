//! Dumps of a network namespace, turned into [`crate::state`].

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use calico_vni_proto::names;
use futures::{Stream, TryStreamExt as _};
use ipnet::IpNet;
use rtnetlink::{
    IpVersion,
    packet_route::{
        AddressFamily,
        address::{AddressAttribute, AddressMessage, AddressProtocol, AddressScope},
        link::{
            AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridgePort, InfoData, InfoKind, InfoPortData,
            InfoVrf, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
        },
        route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteType},
        rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage},
    },
};

use super::{Client, NetlinkError};
use crate::state::{
    Action, Address, Kind, LOOPBACK, Link, MAIN, Mac, NetState, Port, Route, Rule, Space, Target, Uplink,
    UplinkRoute, vni_of_link,
};

/// One namespace as it was read, before its veths are known to be pairs.
#[derive(Debug, Default)]
pub struct Dump {
    /// What was read; sysctls are not.
    pub state: NetState,
    /// Of each veth: its own index, and that of its other end.
    veths: BTreeMap<String, (u32, Option<u32>)>,
}

/// Reads a namespace.
pub async fn dump(client: &Client, space: Space) -> Result<Dump, NetlinkError> {
    let links: Vec<LinkMessage> = all(client.handle.link().get().execute()).await?;
    let names: HashMap<u32, String> =
        links.iter().filter_map(|link| Some((link.header.index, name_of(link)?.to_owned()))).collect();

    let mut dump = Dump::default();
    for message in &links {
        let Some(name) = name_of(message) else { continue };
        let link = link(message, space, name, &names);
        if matches!(link.kind, Kind::Veth { .. }) {
            dump.veths.insert(name.to_owned(), (message.header.index, other_end(message)));
        }
        dump.state.links.insert(name.to_owned(), link);
    }
    for message in all(client.handle.address().get().execute()).await? {
        if let Some((address, marked)) = address(&message, &names) {
            if marked {
                dump.state.marked.insert(address.clone());
            }
            dump.state.addresses.insert(address);
        }
    }
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        request.header.protocol = RouteProtocol::from(names::PROTOCOL);
        let routes = all(client.handle.route().get(request).execute()).await?;
        dump.state.routes.extend(routes.iter().filter_map(|message| route(message, &names)));
    }
    for version in [IpVersion::V4, IpVersion::V6] {
        let rules = all(client.handle.rule().get(version).execute()).await?;
        dump.state.rules.extend(rules.iter().filter_map(rule));
    }
    Ok(dump)
}

/// Marks as pairs the veths of one tenant that are each other's ends.
pub fn pair(host: &mut Dump, router: &mut Dump) {
    for (name, ends) in &host.veths {
        let Some(vni) = vni_of_link(Space::Host, name) else { continue };
        let other = names::router_link(vni);
        let Some((index, peer)) = router.veths.get(&other) else { continue };
        if ends.1 == Some(*index) && *peer == Some(ends.0) {
            for (dump, name) in [(&mut host.state, name), (&mut router.state, &other)] {
                if let Some(link) = dump.links.get_mut(name) {
                    link.kind = Kind::Veth { paired: true };
                }
            }
        }
    }
}

/// How an interface stands in the main table of a namespace, or `None` where it is not there.
pub async fn uplink(client: &Client, name: &str) -> Result<Option<Uplink>, NetlinkError> {
    let links: Vec<LinkMessage> = all(client.handle.link().get().execute()).await?;
    let Some(message) = links.iter().find(|link| name_of(link) == Some(name)) else { return Ok(None) };
    let index = message.header.index;
    let names = HashMap::from([(index, name.to_owned())]);
    let addresses = all(client.handle.address().get().execute()).await?;
    let mut uplink = Uplink {
        name: name.to_owned(),
        up: message.header.flags.contains(LinkFlags::Up),
        mtu: link(message, Space::Host, name, &names).mtu.unwrap_or_default(),
        addresses: addresses.iter().filter_map(|m| address(m, &names)).map(|(address, _)| address).collect(),
        routes: vec![],
    };
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        let routes = all(client.handle.route().get(request).execute()).await?;
        uplink.routes.extend(routes.iter().filter_map(|route| uplink_route(route, index)));
    }
    Ok(Some(uplink))
}

/// MTU of each device, by name.
pub async fn mtus(client: &Client) -> Result<BTreeMap<String, u32>, NetlinkError> {
    let links: Vec<LinkMessage> = all(client.handle.link().get().execute()).await?;
    let mtu = |link: &LinkMessage| {
        link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        })
    };
    Ok(links.iter().filter_map(|link| Some((name_of(link)?.to_owned(), mtu(link)?))).collect())
}

/// Host routes of the main table with the device that they lead to: the pods of this node, as Calico has them.
pub async fn pods(client: &Client) -> Result<Vec<(IpNet, String)>, NetlinkError> {
    let links: Vec<LinkMessage> = all(client.handle.link().get().execute()).await?;
    let names: HashMap<u32, &str> =
        links.iter().filter_map(|link| Some((link.header.index, name_of(link)?))).collect();
    let mut pods = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        let routes = all(client.handle.route().get(request).execute()).await?;
        pods.extend(routes.iter().filter_map(parts).filter_map(|parts| {
            let host_route = parts.to.prefix_len() == parts.to.max_prefix_len();
            let dev = names.get(&parts.dev?).filter(|_| host_route && parts.table == MAIN)?;
            Some((parts.to, (*dev).to_owned()))
        }));
    }
    Ok(pods)
}

/// Index of a device.
pub(super) async fn index_of(client: &Client, name: &str) -> Result<u32, NetlinkError> {
    let get = client.handle.link().get().match_name(name.to_owned()).execute();
    match all(get).await {
        Ok(links) => {
            links.first().map(|link| link.header.index).ok_or_else(|| NetlinkError::NoDevice(name.to_owned()))
        }
        Err(error) if error.is_absent() => Err(NetlinkError::NoDevice(name.to_owned())),
        Err(error) => Err(error),
    }
}

pub(super) async fn all<T>(
    stream: impl Stream<Item = Result<T, rtnetlink::Error>>,
) -> Result<Vec<T>, NetlinkError> {
    Ok(stream.try_collect().await?)
}

fn name_of(message: &LinkMessage) -> Option<&str> {
    message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

fn other_end(message: &LinkMessage) -> Option<u32> {
    message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Link(index) => Some(*index),
        _ => None,
    })
}

fn link(message: &LinkMessage, space: Space, name: &str, names: &HashMap<u32, String>) -> Link {
    let mut link = Link::up(Kind::Given);
    link.up = message.header.flags.contains(LinkFlags::Up);
    // Where the kernel has no IPv6 for a device, it gives it no IPv6 address either.
    link.link_local = Some(false);
    let (mut kind, mut data) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => link.mtu = Some(*mtu),
            LinkAttribute::Address(bytes) => link.mac = bytes.as_slice().try_into().ok().map(Mac),
            LinkAttribute::Controller(index) => link.master = names.get(index).cloned(),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(k) => kind = Some(k),
                        LinkInfo::Data(d) => data = Some(d),
                        LinkInfo::PortData(InfoPortData::BridgePort(port)) => {
                            link.port = Some(bridge_port(port));
                        }
                        _ => {}
                    }
                }
            }
            LinkAttribute::AfSpecUnspec(specs) => {
                if let Some(on) = link_local(specs) {
                    link.link_local = Some(on);
                }
            }
            _ => {}
        }
    }
    if vni_of_link(space, name).is_some() {
        link.kind = our_kind(kind, data);
    }
    link
}

fn our_kind(kind: Option<&InfoKind>, data: Option<&InfoData>) -> Kind {
    match (kind, data) {
        (Some(InfoKind::Veth), _) => Kind::Veth { paired: false },
        (Some(InfoKind::Bridge), _) => Kind::Bridge,
        (Some(InfoKind::Vrf), Some(InfoData::Vrf(infos))) => {
            let table = infos.iter().find_map(|info| match info {
                InfoVrf::TableId(table) => Some(*table),
                _ => None,
            });
            Kind::Vrf { table: table.unwrap_or_default() }
        }
        (Some(InfoKind::Vxlan), Some(InfoData::Vxlan(infos))) => {
            let (mut vni, mut local, mut port, mut learning) = (0, None, 0, false);
            for info in infos {
                match info {
                    InfoVxlan::Id(id) => vni = *id,
                    InfoVxlan::Local(v4) => local = Some(IpAddr::V4(*v4)),
                    InfoVxlan::Local6(v6) => local = Some(IpAddr::V6(*v6)),
                    InfoVxlan::Port(p) => port = *p,
                    InfoVxlan::Learning(on) => learning = *on,
                    _ => {}
                }
            }
            Kind::Vxlan { vni, local, port, learning }
        }
        (kind, _) => Kind::Foreign(kind.map_or_else(|| "physical".to_owned(), |kind| format!("{kind:?}"))),
    }
}

fn bridge_port(infos: &[InfoBridgePort]) -> Port {
    let mut port = Port { learning: true, neigh_suppress: false };
    for info in infos {
        match info {
            InfoBridgePort::Learning(on) => port.learning = *on,
            InfoBridgePort::NeighSupress(on) => port.neigh_suppress = *on,
            _ => {}
        }
    }
    port
}

fn link_local(specs: &[AfSpecUnspec]) -> Option<bool> {
    specs.iter().find_map(|spec| match spec {
        AfSpecUnspec::Inet6(inet6) => inet6.iter().find_map(|attribute| match attribute {
            AfSpecInet6::AddrGenMode(mode) => Some(*mode != In6AddrGenMode::None),
            _ => None,
        }),
        _ => None,
    })
}

/// An address, and whether it carries our mark.
fn address(message: &AddressMessage, names: &HashMap<u32, String>) -> Option<(Address, bool)> {
    let dev = names.get(&message.header.index)?.clone();
    let (mut local, mut address, mut marked) = (None, None, false);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Protocol(protocol) => {
                marked = *protocol == AddressProtocol::Other(names::PROTOCOL);
            }
            _ => {}
        }
    }
    let ip = local.or(address)?;
    let link_scope = message.header.scope == AddressScope::Link;
    let foreign = match ip {
        // The kernel makes and keeps these itself.
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.is_loopback(),
        IpAddr::V4(v4) => v4.is_loopback() && dev == LOOPBACK,
    };
    let net = IpNet::new(ip, message.header.prefix_len).ok()?;
    (!foreign).then_some((Address { dev, net, link_scope }, marked))
}

fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

/// The attributes of a route that we look at.
struct Parts {
    table: u32,
    to: IpNet,
    metric: u32,
    gateway: Option<IpAddr>,
    source: Option<IpAddr>,
    dev: Option<u32>,
}

fn parts(message: &RouteMessage) -> Option<Parts> {
    let header = &message.header;
    let any: IpAddr = match header.address_family {
        AddressFamily::Inet => std::net::Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let (mut table, mut metric, mut to, mut gateway, mut source, mut dev) =
        (u32::from(header.table), 0, any, None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(id) => table = *id,
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Destination(address) => to = ip_of(address)?,
            RouteAttribute::Gateway(address) => gateway = ip_of(address),
            RouteAttribute::PrefSource(address) => source = ip_of(address),
            RouteAttribute::Oif(index) => dev = Some(*index),
            _ => {}
        }
    }
    let to = IpNet::new(to, header.destination_prefix_length).ok()?;
    Some(Parts { table, to, metric, gateway, source, dev })
}

fn route(message: &RouteMessage, names: &HashMap<u32, String>) -> Option<Route> {
    if message.header.protocol != RouteProtocol::from(names::PROTOCOL) {
        return None;
    }
    let parts = parts(message)?;
    let target = match message.header.kind {
        RouteType::Throw => Target::Throw,
        RouteType::Unreachable => Target::Unreachable,
        RouteType::Unicast => match (parts.gateway, parts.dev.and_then(|index| names.get(&index))) {
            (Some(gateway), Some(dev)) => Target::Via { gateway, dev: dev.clone() },
            _ => Target::Other("unicast".into()),
        },
        kind => Target::Other(format!("{kind:?}").to_lowercase()),
    };
    Some(Route { table: parts.table, to: parts.to, metric: parts.metric, target })
}

fn uplink_route(message: &RouteMessage, index: u32) -> Option<UplinkRoute> {
    let header = &message.header;
    let protocol = u8::from(header.protocol);
    let parts = parts(message)?;
    let restorable = header.kind == RouteType::Unicast
        && !matches!(header.protocol, RouteProtocol::Kernel | RouteProtocol::Ra)
        && protocol != names::PROTOCOL
        && parts.table == MAIN
        && parts.dev == Some(index);
    restorable.then_some(UplinkRoute {
        to: parts.to,
        gateway: parts.gateway,
        source: parts.source,
        metric: parts.metric,
        protocol,
        onlink: header.flags.contains(RouteFlags::Onlink),
    })
}

fn rule(message: &RuleMessage) -> Option<Rule> {
    let header = &message.header;
    let (mut pref, mut table, mut suppress, mut goto) = (0, u32::from(header.table), None, None);
    let (mut from, mut to, mut iif, mut mark, mut mask, mut ours) = (None, None, None, None, None, false);
    let mut narrowed = header.tos != 0 || header.flags.contains(RuleFlags::Invert);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(priority) => pref = *priority,
            RuleAttribute::Table(id) => table = *id,
            // The kernel writes -1 where nothing is suppressed.
            RuleAttribute::SuppressPrefixLen(length) => suppress = u8::try_from(*length).ok(),
            RuleAttribute::Goto(target) => goto = Some(*target),
            RuleAttribute::Source(ip) => from = IpNet::new(*ip, header.src_len).ok(),
            RuleAttribute::Destination(ip) => to = IpNet::new(*ip, header.dst_len).ok(),
            RuleAttribute::Protocol(protocol) => ours = *protocol == RouteProtocol::from(names::PROTOCOL),
            RuleAttribute::Iifname(name) => iif = Some(name.clone()),
            RuleAttribute::FwMark(bits) => mark = Some(*bits),
            RuleAttribute::FwMask(bits) => mask = Some(*bits),
            // Ours ask for nothing else.
            RuleAttribute::Oifname(_)
            | RuleAttribute::TunId(_)
            | RuleAttribute::L3MDev(_)
            | RuleAttribute::UidRange(_)
            | RuleAttribute::IpProtocol(_)
            | RuleAttribute::SourcePortRange(_)
            | RuleAttribute::DestinationPortRange(_) => narrowed = true,
            _ => {}
        }
    }
    // Ours ask for all bits that they look at.
    narrowed |= mark != mask;
    let mark = mark.filter(|_| mark == mask);
    let action = match (header.action, goto) {
        (action, _) if narrowed => Action::Other(action.into()),
        (RuleAction::ToTable, _) => Action::Lookup { table, suppress_prefixlength: suppress },
        (RuleAction::Goto, Some(target)) => Action::Goto(target),
        (RuleAction::Nop, _) => Action::Nop,
        (RuleAction::Blackhole, _) => Action::Blackhole,
        (other, _) => Action::Other(other.into()),
    };
    ours.then_some(Rule { pref, v6: header.family == AddressFamily::Inet6, from, to, iif, mark, action })
}
