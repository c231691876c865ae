//! Nobody passes for a tenant: not a pod with another tenant's source, not a host of the flat network or of the fabric,
//! not a tunnel packet of an unknown end point or of a foreign VNI, not an announcement of what is not the tenant's.
//!
//! All are counted where they would arrive, each has a twin that does arrive, and what is dropped has to show in a
//! counter of the guard or of the kernel.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::transitions;
use crate::{
    calico::Family,
    matrix::{Place, Protocol, Way},
    nodes::protocol::{Landed, Shot, Tunnel},
    step,
    topology::{OUTSIDE, PORT},
    world::World,
};

mod announcements;
mod tunnels;

/// Packets of each kind.
const COUNT: u16 = 2;

/// Counter of what the guard drops for tenant red.
const RED_DROPS: &str = "tenant-vni-1001-1001";

/// Plays all of it.
pub async fn play(world: &mut World) -> Result<()> {
    let places = Places(transitions::places(world, &["red", "blue"]));
    from_a_pod(world, &places).await?;
    from_the_flat_network(world, &places).await?;
    tunnels::play(world, &places).await?;
    announcements::play(world, &places).await
}

/// Places by name.
struct Places(Vec<Place>);

impl Places {
    fn get(&self, name: &str) -> Result<&Place> {
        self.0.iter().find(|place| place.name == name).with_context(|| format!("no place is named {name}"))
    }

    fn several(&self, names: &[&str]) -> Result<Vec<&Place>> {
        names.iter().map(|name| self.get(name)).collect()
    }
}

/// Shots with what each is, for the families and protocols of `ways`.
struct Shots {
    shots: Vec<Shot>,
    what: Vec<String>,
}

impl Shots {
    fn new() -> Self {
        Self { shots: Vec::new(), what: Vec::new() }
    }

    /// From one place with the addresses of another, in all ways, as they are.
    fn plain(&mut self, from: &Place, source: &Place, to: &Place, reach: bool) {
        for way in Way::ALL {
            self.add(way, (&from.netns, None), source, to, reach);
        }
    }

    fn add(&mut self, way: Way, from: (&str, Option<&Tunnel>), source: &Place, to: &Place, reach: bool) {
        let (netns, tunnel) = (from.0.to_owned(), from.1.cloned());
        let inside = tunnel.as_ref().map(|t| format!(" in VNI {} of {}", t.vni, t.from)).unwrap_or_default();
        self.what.push(format!("{way} from {netns} as {}{inside} to {}", source.name, to.name));
        self.shots.push(Shot {
            netns,
            tunnel,
            source: source.addresses.of(way.family),
            target: to.addresses.of(way.family),
            port: (way.protocol == Protocol::Tcp).then_some(PORT),
            count: COUNT,
            count_in: to.netns.clone(),
            reach,
        });
    }

    /// How many packets must not arrive.
    fn forbidden(&self) -> u64 {
        self.shots.iter().filter(|shot| !shot.reach).map(|shot| u64::from(shot.count)).sum()
    }

    /// Sends all; it is an error when one arrives that must not, or one does not that has to, or one was not sent.
    async fn shoot(&self, world: &World) -> Result<Vec<Landed>> {
        let landed = world.lab.nodes().shoot(self.shots.clone()).await?;
        let mut wrong = Vec::new();
        for ((shot, what), landed) in self.shots.iter().zip(&self.what).zip(&landed) {
            let count = u64::from(shot.count);
            let wanted = if shot.reach { count } else { 0 };
            if landed.sent != count || landed.arrived != wanted {
                wrong.push(format!("{what}: {landed:?}, of which {wanted} have to arrive"));
            }
        }
        ensure!(wrong.is_empty(), "{} of {}: {}", wrong.len(), self.shots.len(), wrong.join("; "));
        Ok(landed)
    }
}

/// A counter of ours: the kernel's handle, and its packets.
type Counter = (u64, u64);

/// The named counters of our table in a namespace.
async fn counters(world: &World, netns: &str) -> Result<BTreeMap<String, Counter>> {
    let argv = ["nft", "-j", "list", "counters", "table", "inet", "calico-vni"];
    with_handles(&world.lab.nodes().run(netns, &argv).await?)
}

fn with_handles(text: &str) -> Result<BTreeMap<String, Counter>> {
    let list: Value = serde_json::from_str(text).context("nft's list of counters")?;
    let of = |item: &Value| {
        let counter = item.get("counter")?;
        let numbers = (counter["handle"].as_u64()?, counter["packets"].as_u64()?);
        Some((counter["name"].as_str()?.to_owned(), numbers))
    };
    Ok(list["nftables"].as_array().into_iter().flatten().filter_map(of).collect())
}

/// Packets by counter of a table `inet lab` that a scenario has made in a namespace; an error where there is none.
pub(super) async fn lab_counters(world: &World, netns: &str) -> Result<BTreeMap<String, u64>> {
    let argv = ["nft", "-j", "list", "counters", "table", "inet", "lab"];
    let counters = with_handles(&world.lab.nodes().run(netns, &argv).await?)?;
    Ok(counters.into_iter().map(|(name, (_, packets))| (name, packets)).collect())
}

/// By how much a counter of these namespaces has grown, all together.
struct Growth<'a> {
    netns: Vec<&'a str>,
    counter: &'a str,
    before: Counter,
}

impl<'a> Growth<'a> {
    async fn begin(world: &World, netns: &[&'a str], counter: &'a str) -> Result<Self> {
        let mut growth = Self { netns: netns.to_vec(), counter, before: (0, 0) };
        growth.before = growth.now(world).await?;
        Ok(growth)
    }

    /// The sum of the handles, which tells whether a guard was loaded anew, and that of the packets.
    async fn now(&self, world: &World) -> Result<Counter> {
        let mut sum = (0, 0);
        for netns in &self.netns {
            let counters = counters(world, netns).await?;
            let (handle, packets) = counters
                .get(self.counter)
                .with_context(|| format!("{netns} has no counter {}: {counters:?}", self.counter))?;
            sum = (sum.0 + handle, sum.1 + packets);
        }
        Ok(sum)
    }

    /// Each packet that must not arrive has to be counted.
    async fn at_least(&self, world: &World, packets: u64) -> Result<u64> {
        let now = self.now(world).await?;
        let grown = now.1.saturating_sub(self.before.1);
        ensure!(
            grown >= packets,
            "counter {} of {:?} grew by {grown}, not by {packets}{}",
            self.counter,
            self.netns,
            if now.0 == self.before.0 { "" } else { "; the guard was loaded anew meanwhile" }
        );
        Ok(grown)
    }
}

/// A pod of blue sends with red's addresses: of a pod on the same node, of one elsewhere. The guard drops it by itself,
/// and with Calico's own rule nothing changes.
async fn from_a_pod(world: &World, places: &Places) -> Result<()> {
    let blue = places.get("blue-n1-a")?;
    let mut forged = Shots::new();
    for source in places.several(&["red-n1-a", "red-n2-a"])? {
        for to in places.several(&["red-n1-a", "red-n2-a", "ext-red", "dflt-n1-a", "dflt-n2-a"])? {
            if to != source {
                forged.plain(blue, source, to, false);
            }
        }
    }
    let forbidden = forged.forbidden();
    // The same places, each with its own addresses.
    let [red, red_2] = [places.get("red-n1-a")?, places.get("red-n2-a")?];
    let [dflt, dflt_2] = [places.get("dflt-n1-a")?, places.get("dflt-n2-a")?];
    let own =
        [(blue, "blue-n2-a"), (red, "red-n2-a"), (red_2, "red-n1-a"), (red, "ext-red"), (dflt, "dflt-n2-a")];
    for (from, to) in own {
        forged.plain(from, from, places.get(to)?, true);
    }
    forged.plain(dflt_2, dflt_2, dflt, true);

    let node = &world.lab.members[0];
    world.lab.nodes().run(&node.name, &["nft", "delete", "table", "inet", "calico-rpf"]).await?;
    let growth = Growth::begin(world, &[&node.name], RED_DROPS).await?;
    let shot = forged.shoot(world).await;
    world.lab.reverse_path_rule(node).await?;
    shot.context("without Calico's reverse path rule")?;
    let counted = growth.at_least(world, forbidden).await?;
    step!(
        "a pod with another tenant's source: of {forbidden} packets none arrived, the guard counted {counted}"
    );
    forged.shoot(world).await.context("with Calico's reverse path rule")?;
    Ok(())
}

/// A host of the flat network sends with red's addresses to pods and to the node itself.
async fn from_the_flat_network(world: &World, places: &Places) -> Result<()> {
    let outside = places.get(OUTSIDE)?;
    let nodes: Vec<&str> = world.lab.members.iter().map(|node| node.name.as_str()).collect();
    let mut forged = Shots::new();
    for source in places.several(&["red-n1-a", "red-n2-a"])? {
        for to in places.several(&["red-n1-a", "red-n2-a", "dflt-n1-a", "dflt-n2-a"])? {
            if to != source {
                forged.plain(outside, source, to, false);
            }
        }
    }
    let mut forbidden = forged.forbidden();
    forged.plain(outside, outside, places.get("dflt-n1-a")?, true);
    forged.plain(outside, outside, places.get("dflt-n2-a")?, true);
    for (from, to) in [("red-n2-a", "red-n1-a"), ("red-n1-a", "red-n2-a")] {
        let from = places.get(from)?;
        forged.plain(from, from, places.get(to)?, true);
    }
    let growth = Growth::begin(world, &nodes, RED_DROPS).await?;
    forged.shoot(world).await?;
    growth.at_least(world, forbidden).await?;

    // What comes to a node itself is seen by a capture before the guard; so it is counted behind it, by a rule.
    let (node, red) = (places.get(nodes[0])?, places.get("red-n1-a")?);
    let mut to_node = Shots::new();
    to_node.plain(outside, red, node, false);
    to_node.plain(outside, outside, node, true);
    let rules = behind_the_guard([("forged", red), ("own", outside)], node);
    world.lab.nodes().run(&node.netns, &["nft", &rules]).await?;
    let growth = Growth::begin(world, &nodes[..1], RED_DROPS).await?;
    world.lab.nodes().shoot(to_node.shots.clone()).await?;
    let seen = lab_counters(world, &node.netns).await?;
    world.lab.nodes().run(&node.netns, &["nft", "delete", "table", "inet", "lab"]).await?;
    ensure!(
        seen["forged"] == 0 && seen["own"] >= to_node.forbidden(),
        "at the node {} forged packets came through the guard, and {} of {} of the sender's own",
        seen["forged"],
        seen["own"],
        to_node.forbidden()
    );
    forbidden += to_node.forbidden();
    growth.at_least(world, to_node.forbidden()).await?;
    step!("a host of the flat network with a tenant's source: {forbidden} packets were dropped and counted");
    Ok(())
}

/// Rules that count what these sources send to a node, where the guard has let it in.
fn behind_the_guard(sources: [(&str, &Place); 2], node: &Place) -> String {
    let mut lines = vec![
        "add table inet lab".to_owned(),
        "add chain inet lab input { type filter hook input priority 100; }".to_owned(),
    ];
    for (counter, source) in sources {
        lines.push(format!("add counter inet lab {counter}"));
        for (ip, family) in [("ip", Family::V4), ("ip6", Family::V6)] {
            let (from, to) = (source.addresses.of(family), node.addresses.of(family));
            lines.push(format!(
                "add rule inet lab input {ip} saddr {from} {ip} daddr {to} counter name {counter}"
            ));
        }
    }
    lines.join("; ")
}
