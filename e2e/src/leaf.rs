//! The leaf: the fabric's router, FRR 8.4 or newer in its own namespace. Renders its configuration and starts its daemons.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use anyhow::{Context as _, Result, bail};
use ipnet::IpNet;
use serde_json::Value;

use crate::{
    nodes::{client::Nodes, protocol::Command},
    topology::{FABRIC_TENANTS, FabricTenant, LEAF, LEAF_ASN, LEAF_VTEP, Node, ROUTER_ASN},
    wait,
};

/// Where its daemons' sockets are.
const STATE: &str = "/run/frr/leaf";

/// Socket of its bgpd.
pub const BGPD: &str = "/run/frr/leaf/bgpd.vty";

/// Where Debian puts the daemons.
const DAEMONS: &str = "/usr/lib/frr";

/// What makes the logs say more, and is no part of what docs/underlay.md shows.
const ZEBRA_HEAD: &str = "hostname leaf\nlog stdout debugging\ndebug zebra vxlan\n";

fn render_zebra(tenants: &[FabricTenant]) -> String {
    let mut text = String::new();
    for tenant in tenants {
        let _ = write!(text, "vrf {}\n vni {}\nexit-vrf\n", tenant.name, tenant.vni);
    }
    text
}

/// An eBGP speaker that passes every node's routes to the others, with auto-derived route targets for its own VRFs.
///
/// One path a prefix: FRR 8.4 forgets the router MACs of all of a prefix's next hops when one of several equal paths is
/// withdrawn, and then sends nothing to those that are left.
fn render_bgpd(nodes: &[Node], tenants: &[FabricTenant]) -> String {
    let mut text = format!(
        "router bgp {LEAF_ASN}\n bgp router-id {LEAF_VTEP}\n no bgp ebgp-requires-policy\n no bgp default ipv4-unicast\n"
    );
    for node in nodes {
        let peer = node.fabric_address();
        let _ = write!(text, " neighbor {peer} remote-as {ROUTER_ASN}\n neighbor {peer} timers 3 9\n");
    }
    let _ = write!(text, " address-family ipv4 unicast\n  network {LEAF_VTEP}/32\n");
    for node in nodes {
        let _ = writeln!(text, "  neighbor {} activate", node.fabric_address());
    }
    text.push_str(" exit-address-family\n address-family l2vpn evpn\n");
    for node in nodes {
        let _ = writeln!(text, "  neighbor {} activate", node.fabric_address());
    }
    text.push_str("  advertise-all-vni\n exit-address-family\nexit\n");
    for tenant in tenants {
        let _ = write!(
            text,
            "router bgp {LEAF_ASN} vrf {}\n bgp router-id {LEAF_VTEP}\n no bgp ebgp-requires-policy\n",
            tenant.name
        );
        for family in ["ipv4", "ipv6"] {
            let _ = write!(
                text,
                " address-family {family} unicast\n  redistribute connected\n  maximum-paths 1\n exit-address-family\n"
            );
        }
        text.push_str(
            " address-family l2vpn evpn\n  advertise ipv4 unicast\n  advertise ipv6 unicast\n exit-address-family\nexit\n",
        );
    }
    text
}

/// Writes the configuration and starts zebra and bgpd; returns when bgpd answers with its VRFs up.
pub async fn start(nodes: &Nodes, members: &[Node]) -> Result<()> {
    let (zebra, bgpd) = (format!("{STATE}/zebra.conf"), format!("{STATE}/bgpd.conf"));
    let tenants = &FABRIC_TENANTS;
    nodes.write(&zebra, &(ZEBRA_HEAD.to_owned() + &render_zebra(tenants)), 0o640, Some("frr")).await?;
    nodes.write(&bgpd, &render_bgpd(members, tenants), 0o640, Some("frr")).await?;
    for (daemon, configuration) in [("zebra", &zebra), ("bgpd", &bgpd)] {
        let argv = [
            &format!("{DAEMONS}/{daemon}"),
            "-f",
            configuration,
            "-i",
            &format!("{STATE}/{daemon}.pid"),
            "-z",
            &format!("{STATE}/zserv.api"),
            "--vty_socket",
            STATE,
            "-A",
            "127.0.0.1",
            "-P",
            "0",
            "--log",
            "stdout",
        ];
        let argv = argv.iter().map(ToString::to_string).collect();
        let command = Command { netns: Some(LEAF.to_owned()), argv, ..Command::default() };
        nodes.spawn(&format!("leaf-{daemon}"), command).await?;
        // bgpd asks zebra for its interfaces once; zebra has to listen before.
        let socket = format!("{STATE}/{daemon}.vty");
        wait::until(&format!("the leaf's {daemon} to answer"), Duration::from_mins(1), async || {
            nodes.vty(&socket, &["show version"]).await
        })
        .await?;
    }
    wait::until("the leaf's VRFs to have their VNIs", Duration::from_secs(30), async || {
        let text = nodes.vty(&format!("{STATE}/zebra.vty"), &["show vrf vni"]).await?.concat();
        let up = text.lines().filter(|l| l.trim_end().contains(" Up ")).count();
        if up < FABRIC_TENANTS.len() {
            bail!("{up} of {} L3VNIs are up:\n{text}", FABRIC_TENANTS.len());
        }
        Ok(())
    })
    .await
}

/// The leaf's type-5 routes as FRR prints them.
pub async fn type5_text(nodes: &Nodes) -> Result<String> {
    Ok(nodes.vty(BGPD, &[TYPE5]).await?.concat())
}

const TYPE5: &str = "show bgp l2vpn evpn route type prefix";

/// A type-5 route at the leaf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Type5 {
    /// Route distinguisher.
    pub rd: String,
    /// What it leads to.
    pub prefix: IpNet,
    /// Tunnel end point that it leads by.
    pub next_hop: String,
    /// Route targets, as FRR writes them: `RT:65001:1001`.
    pub targets: Vec<String>,
}

/// The leaf's type-5 routes, the best path of each.
pub async fn type5(nodes: &Nodes) -> Result<Vec<Type5>> {
    let text = nodes.vty(BGPD, &[&format!("{TYPE5} json")]).await?.concat();
    parse_type5(&text)
}

fn parse_type5(text: &str) -> Result<Vec<Type5>> {
    let table: BTreeMap<String, Value> = serde_json::from_str(text).context("the leaf's routes")?;
    let mut routes = Vec::new();
    for (rd, entries) in table.iter().filter(|(_, v)| v.is_object()) {
        for (name, entry) in
            entries.as_object().into_iter().flatten().filter(|(name, _)| name.starts_with("[5]:"))
        {
            // `[5]:[0]:[26]:[10.200.0.0]`
            let parts: Vec<&str> = name.split(':').map(|p| p.trim_matches(['[', ']'])).collect();
            let (length, address) =
                (parts.get(2), name.rsplit_once('[').map(|(_, a)| a.trim_end_matches(']')));
            let (Some(length), Some(address)) = (length, address) else { bail!("a route named {name}") };
            let prefix =
                format!("{address}/{length}").parse().with_context(|| format!("a route named {name}"))?;
            // Paths come as a list of lists of one.
            let paths: Vec<&Value> =
                entry["paths"].as_array().into_iter().flatten().flat_map(one_or_many).collect();
            let Some(best) = paths.iter().find(|p| p["bestpath"] == true).or(paths.first()) else { continue };
            let targets = best["extendedCommunity"]["string"].as_str().unwrap_or_default();
            routes.push(Type5 {
                rd: rd.clone(),
                prefix,
                next_hop: best["nexthops"][0]["ip"].as_str().unwrap_or_default().to_owned(),
                targets: targets.split(' ').filter(|t| t.starts_with("RT:")).map(str::to_owned).collect(),
            });
        }
    }
    Ok(routes)
}

fn one_or_many(value: &Value) -> Vec<&Value> {
    value.as_array().map_or_else(|| vec![value], |list| list.iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guide_shows_this_leaf() {
        let tenants = &FABRIC_TENANTS[..1];
        let leaf = render_zebra(tenants) + &render_bgpd(&[Node::new(1), Node::new(2)], tenants);
        let page = include_str!("../../docs/underlay.md");
        let shown = page.split("```frr\n").nth(1).and_then(|rest| rest.split("```").next());
        similar_asserts::assert_eq!(shown.unwrap(), leaf, "docs/underlay.md, the first block of FRR");
    }
}
