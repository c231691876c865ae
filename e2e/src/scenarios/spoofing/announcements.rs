//! Routes that are not the tenant's: from BIRD over the tenant's session, too many of them, and from the fabric.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use ipnet::IpNet;
use serde_json::Value;

use super::{Places, Shots};
use crate::{
    calico::Family,
    leaf, look,
    nodes::RUN_DIR,
    sink::control_socket,
    step,
    topology::{LEAF, Node, ROUTER_ASN},
    wait,
    world::{PATIENCE, World},
};

/// Name of the protocol that is put into BIRD's configuration.
const ROGUE: &str = "rogue";

/// Of each family what is not red's: blue's, nobody's, everybody's, what is wider than red's pool, and a host of red's,
/// which is announced by its block alone.
const NOT_REDS: [(Family, [&str; 5]); 2] = [
    (Family::V4, ["10.201.240.0/26", "198.51.100.0/24", "0.0.0.0/0", "10.200.0.0/15", "10.200.241.7/32"]),
    (Family::V6, ["fd00:201::f000/122", "2001:db8:51::/64", "::/0", "fd00:200::/63", "fd00:200::f107/128"]),
];

/// A block of red's that it may announce: the twin.
const REDS: [(Family, &str); 2] = [(Family::V4, "10.200.240.0/26"), (Family::V6, "fd00:200::f000/122")];

/// What blue's `maxPrefixes` is made for a while: few, since every route is work for an emulated machine.
const MOST: usize = 20;

/// What it is otherwise (`examples/tenant-blue.yaml`).
const USUAL: usize = 500;

/// Where blue's many blocks are.
const MANY: [(Family, &str, u8); 2] =
    [(Family::V4, "10.201.128.0/17", 26), (Family::V6, "fd00:201::8000/113", 122)];

/// Plays it on n1.
pub(super) async fn play(world: &World, places: &Places) -> Result<()> {
    let node = world.lab.members[0].clone();
    for (family, not_reds) in NOT_REDS {
        not_the_tenants(world, &node, family, &not_reds).await.with_context(|| family.to_string())?;
    }
    too_many(world, &node).await?;
    in_another_vrf(world, &node, places).await
}

/// A node's BIRD of one family, whose configuration somebody edits.
struct Bird {
    socket: String,
    file: String,
    before: String,
}

impl Bird {
    async fn of(world: &World, node: &Node, family: Family) -> Result<Self> {
        let (name, daemon) = (&node.name, family.daemon());
        let file = match world.lab.site.confd {
            Some(_) => format!("{RUN_DIR}/{name}-confd/{daemon}.cfg"),
            None => format!("{RUN_DIR}/{name}-{daemon}.conf"),
        };
        let before = world.lab.nodes().read(&file).await?;
        Ok(Self { socket: control_socket(name, family), file, before })
    }

    /// Announces these to a tenant's router past every filter, and waits until BIRD has done so.
    async fn announce(&self, world: &World, tenant: &str, routes: &[IpNet]) -> Result<()> {
        let protocol = self.tell(world, tenant, routes).await?;
        let command = format!("show route protocol {ROGUE} export {protocol}");
        wait::until("BIRD to announce what it was told", PATIENCE, async || {
            let shown = world.lab.nodes().bird(&self.socket, &command).await?;
            let missing = routes.iter().find(|route| !shown.contains(&route.to_string()));
            ensure!(missing.is_none(), "no {missing:?} in {shown}");
            Ok(())
        })
        .await
    }

    /// Tells BIRD to announce these, and returns the name of its session with the tenant's router.
    async fn tell(&self, world: &World, tenant: &str, routes: &[IpNet]) -> Result<String> {
        let (text, protocol) = edited(&self.before, tenant, routes)?;
        self.configure(world, &text).await?;
        Ok(protocol)
    }

    async fn configure(&self, world: &World, text: &str) -> Result<()> {
        world.lab.nodes().write(&self.file, text, 0o644, None).await?;
        let said = world.lab.nodes().bird(&self.socket, "configure").await?;
        ensure!(said.contains("Reconfigur"), "BIRD: {said}");
        Ok(())
    }

    /// Puts the configuration back, unless a newer one has come meanwhile.
    async fn restore(&self, world: &World) -> Result<()> {
        if world.lab.nodes().read(&self.file).await?.contains(&format!("protocol static {ROGUE}")) {
            self.configure(world, &self.before).await?;
        }
        Ok(())
    }
}

/// The configuration with these routes, which go to no kernel and past the filters of the session with a tenant's router;
/// and that session's name.
fn edited(text: &str, tenant: &str, routes: &[IpNet]) -> Result<(String, String)> {
    let ours = format!("calico-vni-{tenant}_export");
    let mut session = None;
    let parts: Vec<String> = text
        .split("\nprotocol bgp ")
        .map(|part| {
            if !part.contains(&ours) || part.contains("\nfunction ") {
                return part.to_owned();
            }
            session = part.split_whitespace().next().map(str::to_owned);
            let accept = format!("export filter {{\n    if proto = \"{ROGUE}\" then accept;");
            part.replacen("export filter {", &accept, 1)
        })
        .collect();
    let session = session.with_context(|| format!("BIRD has no session that calls the filter {ours}"))?;
    let kernel = "filter calico_kernel_programming {";
    let text = parts.join("\nprotocol bgp ").replacen(
        kernel,
        &format!("{kernel}\n  if proto = \"{ROGUE}\" then reject;"),
        1,
    );
    let lines: String =
        routes.iter().fold(String::new(), |lines, route| lines + &format!("  route {route} blackhole;\n"));
    let text = format!("{text}\nprotocol static {ROGUE} {{\n{lines}}}\n");
    Ok((text, session))
}

fn parse(texts: &[&str]) -> Result<Vec<IpNet>> {
    texts.iter().map(|text| text.parse().with_context(|| format!("prefix {text}"))).collect()
}

/// Prefixes that a VRF of a router holds.
async fn in_vrf(world: &World, node: &Node, vni: u32, family: Family) -> Result<BTreeSet<IpNet>> {
    let name = if family == Family::V4 { "ipv4" } else { "ipv6" };
    let command = format!("show bgp vrf vrf{vni} {name} unicast json");
    let text = world.router(node).vty(world, &[&command]).await?.concat();
    let table: Value = serde_json::from_str(&text).with_context(|| format!("`{command}` printed {text}"))?;
    let routes = table["routes"].as_object().into_iter().flatten();
    Ok(routes.filter_map(|(prefix, _)| prefix.parse().ok()).collect())
}

/// Prefixes that the leaf has with the target of a VNI.
async fn at_leaf(world: &World, vni: u32) -> Result<BTreeSet<IpNet>> {
    let target = format!("RT:{ROUTER_ASN}:{vni}");
    let routes = leaf::type5(world.lab.nodes()).await?;
    Ok(routes.into_iter().filter(|route| route.targets.contains(&target)).map(|route| route.prefix).collect())
}

/// What is not the tenant's is announced first, and the twin when that has been sent: one session keeps the order, so
/// when the twin is at the leaf, all others were heard too.
async fn not_the_tenants(world: &World, node: &Node, family: Family, not_reds: &[&str]) -> Result<()> {
    let forged = parse(not_reds)?;
    let twin = REDS.iter().find(|(of, _)| *of == family).context("no twin of that family")?.1.parse()?;
    let bird = Bird::of(world, node, family).await?;
    let before = heard(world, node, 1001, family).await?;
    let played = async {
        bird.announce(world, "vni-1001", &forged).await?;
        bird.announce(world, "vni-1001", &[&forged[..], &[twin]].concat()).await?;
        wait::until("the tenant's own block at the leaf", PATIENCE, async || {
            let routes = at_leaf(world, 1001).await?;
            ensure!(routes.contains(&twin), "{routes:?}");
            Ok(())
        })
        .await?;
        let (vrf, leaf) = (in_vrf(world, node, 1001, family).await?, at_leaf(world, 1001).await?);
        ensure!(vrf.contains(&twin), "vrf1001 lacks {twin}: {vrf:?}");
        for prefix in &forged {
            ensure!(!vrf.contains(prefix) && !leaf.contains(prefix), "{prefix} was taken: {vrf:?}, {leaf:?}");
        }
        let after = heard(world, node, 1001, family).await?;
        ensure!(
            after.accepted == before.accepted + 1,
            "accepted {} prefixes, then {}",
            before.accepted,
            after.accepted
        );
        ensure!(after.updates > before.updates + 1, "{} updates, then {}", before.updates, after.updates);
        step!(
            "{family}: of {} prefixes in {} updates the tenant's own one was taken",
            forged.len() + 1,
            after.updates - before.updates
        );
        Ok(())
    }
    .await;
    bird.restore(world).await?;
    played?;
    wait::until("the block to be withdrawn", PATIENCE, async || {
        ensure!(!at_leaf(world, 1001).await?.contains(&twin), "it is there");
        Ok(())
    })
    .await
}

/// What a router has heard over a session with BIRD.
struct Heard {
    updates: u64,
    accepted: u64,
}

async fn heard(world: &World, node: &Node, vni: u32, family: Family) -> Result<Heard> {
    let text =
        world.router(node).vty(world, &[&format!("show bgp vrf vrf{vni} neighbors json")]).await?.concat();
    let all: Value = serde_json::from_str(&text)?;
    let of_family = |(peer, _): &(&String, &Value)| peer.contains(':') == (family == Family::V6);
    let found = all.as_object().into_iter().flatten().filter(|(_, n)| n.is_object()).find(of_family);
    let (_, neighbor) = found.with_context(|| format!("vrf{vni} has no neighbour: {text}"))?;
    let name = if family == Family::V4 { "ipv4Unicast" } else { "ipv6Unicast" };
    let updates = neighbor["messageStats"]["updatesRecv"].as_u64().context("a session without updates")?;
    let accepted = &neighbor["addressFamilyInfo"][name]["acceptedPrefixCounter"];
    Ok(Heard { updates, accepted: accepted.as_u64().context("a session without prefixes")? })
}

/// FRR's word for the state of a VRF's session of one family.
async fn state(world: &World, node: &Node, vni: u32, family: Family) -> Result<String> {
    let text =
        world.router(node).vty(world, &[&format!("show bgp vrf vrf{vni} summary json")]).await?.concat();
    let all: Value = serde_json::from_str(&text)?;
    let name = if family == Family::V4 { "ipv4Unicast" } else { "ipv6Unicast" };
    let mut peers = all[name]["peers"].as_object().into_iter().flatten();
    let state = peers.next().and_then(|(_, peer)| peer["state"].as_str());
    Ok(state.with_context(|| format!("vrf{vni} has no session: {text}"))?.to_owned())
}

/// One prefix more than `maxPrefixes`: the session is closed and nothing of it is left in the fabric. Another tenant's
/// session notices nothing.
async fn too_many(world: &World, node: &Node) -> Result<()> {
    let others = look::sessions(world, 1001).await?;
    most_prefixes(world, node, MOST).await?;
    let mut told = String::new();
    for (family, range, length) in MANY {
        let range: IpNet = range.parse()?;
        let many: Vec<IpNet> = range.subnets(length)?.take(MOST + 1).collect();
        let bird = Bird::of(world, node, family).await?;
        let played = async {
            flood(world, node, &bird, family, &many).await?;
            told = degraded(world).await?;
            anyhow::Ok(())
        }
        .await;
        bird.restore(world).await?;
        played.with_context(|| format!("{family}: more than maxPrefixes"))?;
    }
    most_prefixes(world, node, USUAL).await?;
    // FRR would try again a minute later; an operator need not wait for that.
    world.router(node).vty(world, &["enable", "clear bgp vrf vrf1002 *"]).await?;
    for pool in ["blue", "blue-v6"] {
        world.blocks_at_leaf(pool, 1002).await?;
    }
    let now = look::sessions(world, 1001).await?;
    for (node, was) in others {
        ensure!(
            now[&node].times_up == was.times_up,
            "red's session on {node}: {was:?}, then {:?}",
            now[&node]
        );
    }
    step!(
        "more than {MOST} prefixes: the session was closed, and nothing was left at the leaf; the Tenant said: {told}"
    );
    Ok(())
}

/// As many as blue may have are taken, the block that the node has anyway among them; with two more the session goes.
async fn flood(world: &World, node: &Node, bird: &Bird, family: Family, many: &[IpNet]) -> Result<()> {
    let at_leaf =
        async || anyhow::Ok(at_leaf(world, 1002).await?.iter().filter(|net| many.contains(net)).count());
    let some = &many[..MOST - 1];
    bird.announce(world, "blue", some).await?;
    wait::until("as many blocks as blue may have at the leaf", PATIENCE, async || {
        let count = at_leaf().await?;
        ensure!(count == some.len(), "{count} of {}", some.len());
        Ok(())
    })
    .await?;
    // The session may be closed before BIRD can be asked what it announced.
    bird.tell(world, "blue", many).await?;
    wait::until("the session to be closed", PATIENCE, async || {
        let (state, left) = (state(world, node, 1002, family).await?, at_leaf().await?);
        ensure!(state.contains("PfxCt") && left == 0, "it is {state}, {left} prefixes are at the leaf");
        Ok(())
    })
    .await
}

/// Sets blue's `maxPrefixes` and waits until the router goes by it.
async fn most_prefixes(world: &World, node: &Node, most: usize) -> Result<()> {
    let patch = format!(r#"{{"spec":{{"maxPrefixes":{most}}}}}"#);
    world.kubectl(&["patch", "tenant", "blue", "--type=merge", "-p", &patch]).await?;
    wait::until(&format!("maxPrefixes of {most} on {}", node.name), PATIENCE, async || {
        let config = world.router(node).vty(world, &["enable", "show running-config"]).await?.concat();
        let lines = config.matches(&format!("maximum-prefix {most} restart")).count();
        ensure!(lines == Family::ALL.len(), "{lines} sessions have it");
        Ok(())
    })
    .await
}

/// Waits until blue's Tenant says what became of its session.
async fn degraded(world: &World) -> Result<String> {
    let path = "jsonpath={.status.conditions[?(@.type==\"Degraded\")].message}";
    wait::until("the Tenant to say that its session was closed", PATIENCE, async || {
        let told = world.kubectl(&["get", "tenant", "blue", "-o", path]).await?;
        ensure!(told.contains(&format!("more than {MOST} prefixes")), "it says: {told}");
        Ok(told)
    })
    .await
}

/// The leaf announces addresses of a pod of blue's in red's VRF. That is red's own affair: red has the route, and blue's
/// packets go where they went.
async fn in_another_vrf(world: &World, node: &Node, places: &Places) -> Result<()> {
    let target = places.get("blue-n2-a")?;
    let nodes = world.lab.nodes();
    let stolen = [IpNet::from(target.addresses.of(Family::V4)), IpNet::from(target.addresses.of(Family::V6))];
    let mut lines = vec!["link add stolen type dummy".to_owned(), "link set stolen master red up".to_owned()];
    lines.extend(stolen.iter().map(|net| format!("addr add {net} dev stolen{}", nodad(net))));
    nodes.ip(Some(LEAF), lines).await?;
    let played = async {
        for (family, net) in Family::ALL.into_iter().zip(&stolen) {
            wait::until(&format!("{net} in red's VRF on n1"), PATIENCE, async || {
                let routes = in_vrf(world, node, 1001, family).await?;
                ensure!(routes.contains(net), "{routes:?}");
                Ok(())
            })
            .await?;
            let blues = in_vrf(world, node, 1002, family).await?;
            ensure!(!blues.contains(net), "{net} of red's VRF is in blue's: {blues:?}");
        }
        let mut shots = Shots::new();
        for from in places.several(&["blue-n1-a", "ext-blue"])? {
            shots.plain(from, from, target, true);
        }
        shots.shoot(world).await
    }
    .await;
    nodes.ip(Some(LEAF), vec!["link del stolen".to_owned()]).await?;
    played?;
    step!(
        "a pod's addresses announced by the fabric in another tenant's VRF stay there: the pod gets its packets"
    );
    Ok(())
}

fn nodad(net: &IpNet) -> &'static str {
    if net.addr().is_ipv6() { " nodad" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_go_past_the_filters_of_one_session_and_to_no_kernel() {
        let text = "filter calico_kernel_programming {\n  accept;\n}\nfunction 'bgp_calico-vni-red_exportFilterV4'() {}\n
protocol bgp A from t {\n  export filter {\n    'bgp_calico-vni-red_exportFilterV4'();\n  };\n}\n
protocol bgp B from t {\n  export filter {\n    'bgp_calico-vni-blue_exportFilterV4'();\n  };\n}\n";
        let (text, session) = edited(text, "blue", &["192.0.2.0/24".parse().unwrap()]).unwrap();
        assert_eq!(session, "B");
        let accept = text.find("proto = \"rogue\" then accept").unwrap();
        assert!(accept > text.find("protocol bgp B").unwrap());
        assert_eq!(text.matches("then accept").count(), 1);
        assert!(text.starts_with("filter calico_kernel_programming {\n  if proto = \"rogue\" then reject;"));
        assert!(text.ends_with("protocol static rogue {\n  route 192.0.2.0/24 blackhole;\n}\n"));
        assert!(edited(&text, "green", &[]).is_err());
    }
}
