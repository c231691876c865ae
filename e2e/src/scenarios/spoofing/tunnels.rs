//! Hosts of the fabric that forge: a tenant's source without a tunnel, and tunnel packets made by hand.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Growth, Places, Shots};
use crate::{
    calico::Family,
    matrix::{Place, Protocol, Way},
    nodes::protocol::Tunnel,
    step,
    topology::{LEAF, LEAF_VTEP, Node},
    world::World,
};

/// Namespace of a host that somebody has put on the fabric.
const ROGUE: &str = "rogue";

/// Its address on the fabric, and one that it has given to itself among the routers' tunnel end points.
const ROGUE_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 66);
const ROGUE_VTEP: Ipv4Addr = Ipv4Addr::new(10, 255, 255, 66);

/// A VNI that no tenant has.
const NOBODYS_VNI: u32 = 4_242;

/// Counter of the router's guard for tunnel packets.
const TUNNEL_DROPS: &str = "tunnel";

/// Counter of the router's guard for what tenants send to the router itself.
const ROUTER_DROPS: &str = "router";

/// Plays it, with a host of the fabric's own that is gone afterwards.
pub(super) async fn play(world: &World, places: &Places) -> Result<()> {
    let node = world.lab.members[0].clone();
    let end = End::of(world, &node).await?;
    let by = node.fabric_address();
    let make = [
        format!("netns add {ROGUE}"),
        // As many octets as the fabric's other links have: a bridge takes the least of its ports.
        format!("link add {ROGUE} netns {LEAF} mtu 9000 type veth peer name eth0 netns {ROGUE} mtu 9000"),
        format!("-n {LEAF} link set {ROGUE} master fabric up"),
        format!("-n {ROGUE} link set lo up"),
        format!("-n {ROGUE} link set eth0 up"),
        format!("-n {ROGUE} addr add {ROGUE_ADDRESS}/24 dev eth0"),
        format!("-n {ROGUE} addr add {ROGUE_VTEP}/32 dev lo"),
        format!("-n {ROGUE} route add default via {by}"),
    ];
    for line in make {
        let argv: Vec<&str> = ["ip"].into_iter().chain(line.split(' ')).collect();
        world.lab.nodes().run(LEAF, &argv).await?;
    }
    let played = async {
        without_a_tunnel(world, places, &node).await?;
        by_vxlan(world, places, &node, &end).await?;
        of_a_foreign_vni(world, places, &node, &end).await?;
        from_a_tenant(world, places, &node, &end).await
    }
    .await;
    world.lab.nodes().ip(None, vec![format!("netns del {ROGUE}")]).await?;
    played
}

/// A router as tunnel packets address it.
struct End {
    vtep: IpAddr,
    /// By VNI.
    macs: BTreeMap<u32, [u8; 6]>,
}

impl End {
    async fn of(world: &World, node: &Node) -> Result<Self> {
        let nodes = world.lab.nodes();
        let text = nodes.run(&node.router(), &["ip", "-j", "-d", "link", "show"]).await?;
        let links: Vec<Value> = serde_json::from_str(&text).context("links of a router")?;
        let link = |name: String| {
            let found = links.iter().find(|link| link["ifname"] == name.as_str());
            found.with_context(|| format!("{} has no {name}", node.router()))
        };
        let local = &link("vx1001".to_owned())?["linkinfo"]["info_data"]["local"];
        let vtep = local.as_str().context("vx1001 has no local address")?.parse()?;
        let mut macs = BTreeMap::new();
        for vni in [1001, 1002] {
            let text =
                link(format!("br{vni}"))?["address"].as_str().context("a bridge without an address")?;
            macs.insert(vni, mac(text)?);
        }
        Ok(Self { vtep, macs })
    }

    /// A tunnel to this router with the router MAC of `of`'s VRF.
    fn tunnel(&self, from: Ipv4Addr, vni: u32, of: u32) -> Tunnel {
        Tunnel { from: from.into(), to: self.vtep, vni, router_mac: self.macs[&of] }
    }
}

fn mac(text: &str) -> Result<[u8; 6]> {
    let octets: Result<Vec<u8>, _> = text.split(':').map(|octet| u8::from_str_radix(octet, 16)).collect();
    octets?.try_into().map_err(|_| anyhow::anyhow!("`{text}` is no hardware address"))
}

/// In all four ways, from each source.
fn through(shots: &mut Shots, netns: &str, tunnel: &Tunnel, sources: &[&Place], to: &Place, reach: bool) {
    for source in sources {
        for way in Way::ALL {
            shots.add(way, (netns, Some(tunnel)), source, to, reach);
        }
    }
}

/// The router's own network knows no pod, so that it forwards to none. The fabric has no IPv6.
async fn without_a_tunnel(world: &World, places: &Places, node: &Node) -> Result<()> {
    let [red, dflt] = [places.get("red-n1-a")?, places.get("dflt-n1-a")?];
    let source = places.get("red-n2-a")?;
    let mut forged = Shots::new();
    for way in Way::ALL.into_iter().filter(|way| way.family == Family::V4) {
        forged.add(way, (ROGUE, None), source, red, false);
        forged.add(way, (ROGUE, None), source, dflt, false);
        forged.add(way, ("red-n2-a", None), source, red, true);
        forged.add(way, ("dflt-n2-a", None), places.get("dflt-n2-a")?, dflt, true);
    }
    let before = no_route(world, node).await?;
    forged.shoot(world).await?;
    let grown = no_route(world, node).await?.saturating_sub(before);
    ensure!(grown >= forged.forbidden(), "the kernel counted {grown} packets without a route");
    step!("a host of the fabric with a tenant's source: {grown} packets had no route in the router");
    Ok(())
}

/// Packets for which the kernel of a router's namespace had no route (`InNoRoutes`, and `IcmpOutDestUnreachs` where a
/// route says that there is none).
async fn no_route(world: &World, node: &Node) -> Result<u64> {
    let text = world.lab.nodes().run(&node.router(), &["nstat", "-asz", "--json"]).await?;
    let all: Value = serde_json::from_str(&text).context("nstat")?;
    let of = |name: &str| all["kernel"][name].as_u64().unwrap_or(0);
    Ok(of("IpExtInNoRoutes") + of("IcmpOutDestUnreachs") + of("Ip6InNoRoutes") + of("Icmp6OutDestUnreachs"))
}

/// The leaf's own tunnel end point is heard, with its host's address inside and with a pod's; nobody else's is.
async fn by_vxlan(world: &World, places: &Places, node: &Node, end: &End) -> Result<()> {
    let sources = places.several(&["ext-red", "red-n2-a"])?;
    let red = places.get("red-n1-a")?;
    let mut shots = Shots::new();
    for from in [ROGUE_ADDRESS, ROGUE_VTEP] {
        through(&mut shots, ROGUE, &end.tunnel(from, 1001, 1001), &sources, red, false);
    }
    through(&mut shots, LEAF, &end.tunnel(LEAF_VTEP, 1001, 1001), &sources, red, true);
    let router = node.router();
    let growth = Growth::begin(world, &[&router], TUNNEL_DROPS).await?;
    shots.shoot(world).await?;
    let counted = growth.at_least(world, shots.forbidden()).await?;
    step!(
        "tunnel packets of unknown end points: {counted} were dropped and counted; those of the leaf's arrived"
    );
    Ok(())
}

/// With a VNI of nobody the kernel finds no device, and with blue's the packet is in blue's VRF, which has no way to red.
async fn of_a_foreign_vni(world: &World, places: &Places, node: &Node, end: &End) -> Result<()> {
    let red = places.get("red-n1-a")?;
    let router = node.router();
    let rules = format!(
        "add table inet lab; add chain inet lab input {{ type filter hook input priority 100; }}; \
         add counter inet lab nobodys; \
         add rule inet lab input udp dport 4789 @th,96,24 {NOBODYS_VNI} counter name nobodys"
    );
    let mut nobodys = Shots::new();
    let tunnel = end.tunnel(LEAF_VTEP, NOBODYS_VNI, 1001);
    through(&mut nobodys, LEAF, &tunnel, &[places.get("ext-red")?], red, false);
    world.lab.nodes().run(&router, &["nft", &rules]).await?;
    let shot = nobodys.shoot(world).await;
    let seen = super::lab_counters(world, &router).await?;
    world.lab.nodes().run(&router, &["nft", "delete", "table", "inet", "lab"]).await?;
    shot?;
    ensure!(
        seen["nobodys"] >= nobodys.forbidden(),
        "{} of {} came to the router",
        seen["nobodys"],
        nobodys.forbidden()
    );
    step!("tunnel packets with a VNI of nobody: {} came to the router, none to the pod", seen["nobodys"]);

    let mut blues = Shots::new();
    let sources = places.several(&["ext-blue", "red-n2-a"])?;
    let tunnel = end.tunnel(LEAF_VTEP, 1002, 1002);
    through(&mut blues, LEAF, &tunnel, &sources, red, false);
    let forbidden = blues.forbidden();
    // The same tunnel carries what is blue's.
    through(&mut blues, LEAF, &tunnel, &sources[..1], places.get("blue-n1-a")?, true);
    let before = no_route(world, node).await?;
    blues.shoot(world).await?;
    let grown = no_route(world, node).await?.saturating_sub(before);
    step!(
        "red's packets in blue's VNI: of {forbidden} none arrived; the kernel counted {grown} without a route"
    );
    Ok(())
}

/// A tenant's pod that makes tunnel packets of its own does not reach the router's end point.
async fn from_a_tenant(world: &World, places: &Places, node: &Node, end: &End) -> Result<()> {
    let (red, blue) = (places.get("red-n1-a")?, places.get("blue-n1-a")?);
    let mut shots = Shots::new();
    let tunnel = Tunnel { from: red.addresses.v4.into(), ..end.tunnel(ROGUE_VTEP, 1002, 1002) };
    for way in Way::ALL.into_iter().filter(|way| way.protocol == Protocol::Icmp) {
        shots.add(way, (&red.netns, Some(&tunnel)), places.get("ext-blue")?, blue, false);
    }
    let router = node.router();
    let growth = Growth::begin(world, &[&router], ROUTER_DROPS).await?;
    shots.shoot(world).await?;
    let counted = growth.at_least(world, shots.forbidden()).await?;
    step!("tunnel packets of a tenant's pod: {counted} were dropped and counted");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses_are_six_octets() {
        assert_eq!(mac("02:00:0a:ff:00:01").unwrap(), [2, 0, 10, 255, 0, 1]);
        assert!(mac("02:00:0a:ff:00").is_err() && mac("02:00:0a:ff:00:zz").is_err());
    }
}
