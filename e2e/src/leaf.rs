//! The leaf: the fabric's router, FRR 8.4 or newer in its own namespace. Renders its configuration and starts its daemons.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::{
    nodes::{client::Nodes, protocol::Command},
    topology::{FABRIC_TENANTS, LEAF, LEAF_ASN, LEAF_VTEP, Node, ROUTER_ASN},
    wait,
};

/// Where its daemons' sockets are.
const STATE: &str = "/run/frr/leaf";

/// Socket of its bgpd.
pub const BGPD: &str = "/run/frr/leaf/bgpd.vty";

/// Where Debian puts the daemons.
const DAEMONS: &str = "/usr/lib/frr";

fn render_zebra() -> String {
    let mut text = String::from("hostname leaf\n");
    for tenant in &FABRIC_TENANTS {
        let _ = write!(text, "vrf {}\n vni {}\nexit-vrf\n", tenant.name, tenant.vni);
    }
    text
}

/// An eBGP speaker that passes every node's routes to the others, with auto-derived route targets for its own VRFs.
fn render_bgpd(nodes: &[Node]) -> String {
    let mut text = format!(
        "hostname leaf\nrouter bgp {LEAF_ASN}\n bgp router-id {LEAF_VTEP}\n no bgp ebgp-requires-policy\n no bgp default ipv4-unicast\n"
    );
    for node in nodes {
        let peer = node.fabric_address();
        let _ = write!(
            text,
            " neighbor {peer} remote-as {ROUTER_ASN}\n neighbor {peer} timers 3 9\n neighbor {peer} timers connect 1\n"
        );
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
    for tenant in &FABRIC_TENANTS {
        let _ = write!(
            text,
            "router bgp {LEAF_ASN} vrf {}\n bgp router-id {LEAF_VTEP}\n no bgp ebgp-requires-policy\n address-family ipv4 unicast\n  redistribute connected\n exit-address-family\n address-family l2vpn evpn\n  advertise ipv4 unicast\n exit-address-family\nexit\n",
            tenant.name
        );
    }
    text
}

/// Writes the configuration and starts zebra and bgpd; returns when bgpd answers with its VRFs up.
pub async fn start(nodes: &Nodes, members: &[Node]) -> Result<()> {
    let (zebra, bgpd) = (format!("{STATE}/zebra.conf"), format!("{STATE}/bgpd.conf"));
    nodes.write(&zebra, &render_zebra(), 0o640, Some("frr")).await?;
    nodes.write(&bgpd, &render_bgpd(members), 0o640, Some("frr")).await?;
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
pub async fn type5_routes(nodes: &Nodes) -> Result<String> {
    let texts = nodes.vty(BGPD, &["show bgp l2vpn evpn route type prefix"]).await?;
    texts.into_iter().next().context("no answer")
}
