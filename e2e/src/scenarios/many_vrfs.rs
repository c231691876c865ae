//! Three hundred tenants on one node: each has its own table, its own VRF and its own way out, and none falls through to
//! the main table. Node n1 carries them all, node n2 the samples between which packets are sent; the samples have both
//! families, the others IPv4.
//!
//! Devices take a kernel whose processor is emulated a hundred times longer, so there are fewer tenants in a virtual
//! machine, unless `LAB_TENANTS` says how many.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use calico_vni_crds::{keys::VNI, tenant::Tenant};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use ipnet::IpNet;
use kube::{Api, api::ListParams};
use serde_json::Value;

use super::transitions;
use crate::{
    calico::ipam,
    leaf, look,
    matrix::{Kind, Place, Way},
    nodes::protocol::{Command, Output},
    site::Mode,
    step,
    topology::{Addresses, Node, OUTSIDE, PodLink, ROUTER_ASN},
    wait,
    world::{PATIENCE, World},
};

/// Tenants: more than the 256 tables that the kernel's old eight bits could name.
const TENANTS: u16 = 300;

/// Tenants in a virtual machine, which may be an emulated one.
const IN_VM: u16 = 40;

/// VNI of the first of them.
const FIRST_VNI: u32 = 2001;

/// How long all of them may take to come or to go on a busy emulated machine.
const LIMIT: Duration = Duration::from_mins(15);

/// Requests to the API server at a time.
const AT_ONCE: usize = 16;

/// Addresses that no table but main has a way to: an outside of the cluster (RFC 5737, RFC 3849).
const ELSEWHERE: [&str; 2] = ["198.51.100.9", "2001:db8:51::9"];

/// Rules that a packet may meet. A plain list would have two for each pool; a trie of this many pools is about nine deep,
/// with two rules for each step, the pool's own and the kernel's.
const MOST_RULES: usize = 40;

/// One of the many.
struct Many {
    number: u16,
    vni: u32,
    /// An address of its pool on n1.
    address: IpAddr,
    /// Whether it has pods, on both nodes and of both families.
    sample: bool,
}

impl Many {
    fn tenant(&self) -> String {
        format!("vni-{}", self.vni)
    }

    fn table(&self) -> String {
        (1_000_000_000 + u64::from(self.vni)).to_string()
    }
}

/// How many tenants there are to be.
fn count(world: &World) -> Result<u16> {
    let count = match env::var("LAB_TENANTS") {
        Ok(count) => {
            count.parse().with_context(|| format!("LAB_TENANTS is `{count}`, which is no number"))?
        }
        Err(_) if world.lab.site.mode == Mode::Native => TENANTS,
        Err(_) => IN_VM,
    };
    ensure!((4..=512).contains(&count), "LAB_TENANTS is {count}; it can be 4 to 512");
    Ok(count)
}

/// Tenants with pods, by their number: the first, one in between, those around the 256th, the last.
fn is_sample(number: u16, count: u16) -> bool {
    [0, count / 4, 255, 256, count - 1].contains(&number)
}

/// Makes them, looks at each, sends packets between some, and takes them away.
pub async fn play(world: &mut World) -> Result<()> {
    let began = Instant::now();
    let all = make(world, count(world)?).await?;
    let pods = sample_pods(world, &all).await?;
    let count = all.len();
    step!("{count} pools with a block each on n1, {} pods: {}", pods.len(), since(began));
    programmed(world, &all).await?;
    step!("{count} Tenants say that they are programmed: {}", since(began));
    at_leaf(world, &all).await?;
    step!("the leaf has a route to a block of each, by its own target: {}", since(began));
    let node = world.lab.members[0].clone();
    world.in_step(&node, LIMIT).await?;
    step!("n1 is in step: {}", since(began));

    tables(world, &node, &all).await?;
    rules(world, &node, &all).await?;
    let by = &pods[0].interface;
    ways_out(world, &node, by, &all).await?;
    links_down(world, &node, by, &all).await?;
    let mut places = transitions::places(world, &["red"]);
    places.retain(|place| matches!(place.kind, Kind::Pod { .. } | Kind::External { .. } | Kind::Node));
    places.extend(pods.iter().map(|pod| pod.place.clone()));
    let matrix = world.matrix(&places, &Way::ICMP).await?;
    step!(
        "some of them, red and the default pool: {} answers, in {} cells nothing arrives; {}",
        matrix.open(),
        matrix.closed(),
        since(began)
    );
    unmake(world, &node, &all, &pods).await?;
    step!("all are gone: {}", since(began));
    Ok(())
}

fn since(began: Instant) -> String {
    format!("{:.1} s", began.elapsed().as_secs_f64())
}

/// Where their pools are.
const POOLS: &str = "10.210.0.0/15";
const POOLS_V6: &str = "fd00:300::/32";

/// Name and prefix of a tenant's pool: a /24, and for a sample a /64 too.
fn pool(number: u16) -> (String, String) {
    (format!("many-{number}"), format!("10.{}.{}.0/24", 210 + number / 256, number % 256))
}

fn pool_v6(number: u16) -> (String, String) {
    (format!("many-{number}-v6"), format!("fd00:300:0:{number:x}::/64"))
}

/// Pools whose annotation alone makes the tenants, and blocks as if each had a pod on n1.
async fn make(world: &World, count: u16) -> Result<Vec<Many>> {
    let world = &world;
    let one = |number: u16| async move {
        let vni = FIRST_VNI + u32::from(number);
        let annotations: BTreeMap<_, _> = [(VNI.to_owned(), vni.to_string())].into();
        let mut pools = vec![pool(number)];
        let sample = is_sample(number, count);
        pools.extend(sample.then(|| pool_v6(number)));
        let mut first = None;
        for (name, cidr) in pools {
            let plain = world.put_pool(&name, &cidr).await?;
            let address = world.ipam.assign_address(&plain, &world.lab.members[0].name).await?;
            world.ipam.put_pool(&name, plain.spec, annotations.clone()).await?;
            first.get_or_insert(address);
        }
        let address = first.with_context(|| format!("tenant {number} has no pool"))?;
        anyhow::Ok(Many { number, vni, address, sample })
    };
    let mut all: Vec<Many> = stream::iter(0..count).map(one).buffer_unordered(AT_ONCE).try_collect().await?;
    all.sort_by_key(|many| many.number);
    Ok(all)
}

struct Pod {
    place: Place,
    interface: String,
}

/// A pod of each sample on each node.
async fn sample_pods(world: &World, all: &[Many]) -> Result<Vec<Pod>> {
    let (mut links, mut pods) = (Vec::new(), Vec::new());
    for many in all.iter().filter(|many| many.sample) {
        let number = many.number;
        let (v4, v6) = (world.pool(&pool(number).0).await?, world.pool(&pool_v6(number).0).await?);
        for node in &world.lab.members {
            let of = async |pool| world.ipam.assign_address(pool, &node.name).await;
            let (IpAddr::V4(v4), IpAddr::V6(v6)) = (of(&v4).await?, of(&v6).await?) else {
                bail!("the pools of tenant {number} are of other families than their names say")
            };
            let addresses = Addresses { v4, v6 };
            let (name, interface) =
                (format!("many{number}-{}", node.name), format!("cali{number}m{}", node.name));
            let tenant = Some(many.tenant());
            let kind = Kind::Pod { tenant, node: node.name.clone() };
            links.push(PodLink {
                node: node.clone(),
                netns: name.clone(),
                addresses,
                interface: interface.clone(),
            });
            pods.push(Pod { place: Place { netns: name.clone(), name, addresses, kind }, interface });
        }
    }
    world.lab.add_pods(&links).await?;
    Ok(pods)
}

async fn tenants(world: &World) -> Result<BTreeMap<String, Tenant>> {
    let list = Api::<Tenant>::all(world.client.clone()).list(&ListParams::default()).await?;
    Ok(list.items.into_iter().filter_map(|tenant| Some((tenant.metadata.name.clone()?, tenant))).collect())
}

/// Waits until each Tenant is programmed on every node that has a block of its pool.
async fn programmed(world: &World, all: &[Many]) -> Result<()> {
    wait::until(&format!("{} Tenants to be programmed", all.len()), LIMIT, async || {
        let tenants = tenants(world).await?;
        let done = |many: &&Many| {
            let status = tenants.get(&many.tenant()).and_then(|tenant| tenant.status.as_ref());
            let nodes = if many.sample { 2 } else { 1 };
            status.is_some_and(|status| {
                let programmed =
                    status.conditions.iter().any(|c| c.type_ == "Programmed" && c.status == "True");
                let on = status.nodes.as_ref().map(|on| (on.desired, on.programmed, on.degraded));
                programmed && on == Some((nodes, nodes, 0))
            })
        };
        let count = all.iter().filter(done).count();
        let first = all.iter().find(|many| !done(many));
        ensure!(
            first.is_none(),
            "{count} are, {} is not: {:?}",
            first.map(Many::tenant).unwrap_or_default(),
            first.and_then(|many| tenants.get(&many.tenant())).and_then(|tenant| tenant.status.as_ref())
        );
        Ok(())
    })
    .await
}

/// Waits until the leaf has the type-5 route of each tenant's block on n1: BIRD announced it over the tenant's own
/// session, and FRR exported it from the tenant's own VRF.
async fn at_leaf(world: &World, all: &[Many]) -> Result<()> {
    wait::until("a type-5 route of each tenant at the leaf", LIMIT, async || {
        let routes: BTreeSet<(IpNet, String)> = leaf::type5(world.lab.nodes())
            .await?
            .into_iter()
            .flat_map(|route| route.targets.into_iter().map(move |target| (route.prefix, target)))
            .collect();
        let missing = all.iter().filter(|many| {
            let block = IpNet::new_assert(many.address, 26).trunc();
            !routes.contains(&(block, format!("RT:{ROUTER_ASN}:{}", many.vni)))
        });
        let missing: Vec<u32> = missing.map(|many| many.vni).collect();
        ensure!(missing.is_empty(), "{} are missing, of VNIs {missing:?}", missing.len());
        Ok(())
    })
    .await
}

async fn json(world: &World, netns: &str, argv: &[&str]) -> Result<Vec<Value>> {
    let text = world.lab.nodes().run(netns, argv).await?;
    serde_json::from_str(&text).with_context(|| format!("`{}` in {netns}", argv.join(" ")))
}

/// Each VRF has the table of its VNI and each VXLAN device its VNI: none was cut to eight bits, none is there twice.
async fn tables(world: &World, node: &Node, all: &[Many]) -> Result<()> {
    for (kind, prefix, field, base) in [("vrf", "vrf", "table", 1_000_000_000), ("vxlan", "vx", "id", 0)] {
        let links = json(world, &node.router(), &["ip", "-j", "-d", "link", "show", "type", kind]).await?;
        let field = |link: &Value| link["linkinfo"]["info_data"][field].as_u64();
        let found: BTreeMap<String, Option<u64>> = links
            .iter()
            .filter_map(|link| Some((link["ifname"].as_str()?.to_owned(), field(link))))
            .collect();
        for many in all {
            let (name, wanted) = (format!("{prefix}{}", many.vni), base + u64::from(many.vni));
            let seen = found.get(&name).copied().flatten();
            ensure!(seen == Some(wanted), "{name} has {seen:?}, not {wanted}");
        }
        let distinct: BTreeSet<_> = found.values().collect();
        ensure!(distinct.len() == found.len(), "two devices of type {kind} share a number: {found:?}");
    }
    step!("VRFs and VXLAN devices: {} of each, with tables from {} on", all.len(), all[0].table());
    Ok(())
}

/// Goes through the rules as the kernel does, for an address of each tenant: it comes to the tenant's table, and meets
/// few rules on its way.
async fn rules(world: &World, node: &Node, all: &[Many]) -> Result<()> {
    let rules = json(world, &node.name, &["ip", "-j", "rule"]).await?;
    ensure!(rules.len() > 2 * all.len(), "{} rules for {} pools", rules.len(), all.len());
    let mut most = 0;
    for many in all {
        let (table, met) = walk(&rules, many.address)?;
        ensure!(table == many.table(), "{} of {} goes by table {table}", many.address, many.tenant());
        most = most.max(met);
    }
    ensure!(most <= MOST_RULES, "a packet meets {most} of {} rules", rules.len());
    step!("of {} rules a tenant's packet meets {most} at most", rules.len());
    Ok(())
}

/// The table that the first rule leads to for a packet from this source to somewhere outside, by a pod's interface, past those of which only some routes count, and how many rules
/// were met.
fn walk(rules: &[Value], source: IpAddr) -> Result<(String, usize)> {
    let (mut at, mut met) = (0, 0);
    while let Some(rule) = rules.get(at) {
        met += 1;
        at += 1;
        let matches = match rule["src"].as_str() {
            None | Some("all") => true,
            Some(address) => {
                let address: IpAddr =
                    address.parse().with_context(|| format!("the source of rule {rule}"))?;
                let length = rule["srclen"].as_u64().map_or(Ok(32), u8::try_from)?;
                IpNet::new(address, length)?.contains(&source)
            }
        };
        // It goes to nobody's pool and bears no mark.
        if !matches || ["dst", "iif", "fwmark"].iter().any(|field| rule.get(field).is_some()) {
            continue;
        }
        if let Some(target) = rule["goto"].as_u64() {
            let found = rules.iter().position(|rule| rule["priority"].as_u64() >= Some(target));
            at = found.with_context(|| format!("rule {rule} leads nowhere"))?;
            continue;
        }
        match rule["table"].as_str() {
            Some("local") | None => {}
            Some(_) if rule.get("suppress_prefixlen").is_some() => {}
            Some(table) => return Ok((table.to_owned(), met)),
        }
    }
    bail!("no rule has a table for {source}")
}

/// Asks the kernel for the way of a packet of each tenant to somewhere outside, as it comes in from a pod.
async fn ways_out(world: &World, node: &Node, by: &str, all: &[Many]) -> Result<()> {
    let lines = all.iter().map(|many| format!("route get {} from {} iif {by}", ELSEWHERE[0], many.address));
    let output = batch(world, node, &[], lines.collect()).await?;
    for (many, way) in all.iter().zip(ways(&output, ELSEWHERE[0], all.len())?) {
        ensure!(goes_by(way, many), "a packet of {} goes elsewhere: {way}", many.tenant());
    }
    let samples: Vec<&Many> = all.iter().filter(|many| many.sample).collect();
    let lines = samples.iter().map(|many| {
        let source = pool_v6(many.number).1.replace("/64", "1");
        format!("route get {} from {source} iif {by}", ELSEWHERE[1])
    });
    let output = batch(world, node, &["-6"], lines.collect()).await?;
    for (many, way) in samples.iter().zip(ways(&output, ELSEWHERE[1], samples.len())?) {
        ensure!(goes_by(way, many), "an IPv6 packet of {} goes elsewhere: {way}", many.tenant());
    }
    step!(
        "a packet of each of {} tenants to the outside goes by its own link, IPv6 of {} too",
        all.len(),
        samples.len()
    );
    Ok(())
}

/// Without the agent and with their links down, the samples' packets are refused; they do not go by main.
async fn links_down(world: &World, node: &Node, by: &str, all: &[Many]) -> Result<()> {
    world.router(node).kill_agent(world).await?;
    let samples: Vec<&Many> = all.iter().filter(|many| many.sample).collect();
    let down = samples.iter().map(|many| format!("link set cv{} down", many.vni)).collect();
    world.lab.nodes().ip(Some(&node.name), down).await?;
    let get = |many: &&Many| format!("route get {} from {} iif {by}", ELSEWHERE[0], many.address);
    let output = batch(world, node, &[], samples.iter().map(get).collect()).await?;
    ensure!(
        output.stdout.is_empty(),
        "with its link down a tenant's packet goes elsewhere: {}",
        output.stdout
    );
    let refused = output.stderr.matches("No route to host").count();
    ensure!(refused == samples.len(), "{refused} of {} were refused: {}", samples.len(), output.stderr);
    let began = Instant::now();
    world.router(node).start_agent(world).await?;
    world.in_step(node, LIMIT).await?;
    step!(
        "with their links down packets are refused; a new agent puts {} tenants right in {}",
        all.len(),
        since(began)
    );
    Ok(())
}

/// Runs all in one process, also those after one that fails.
async fn batch(world: &World, node: &Node, options: &[&str], lines: Vec<String>) -> Result<Output> {
    let argv = [&["ip", "-force"], options, &["-batch", "-"]].concat();
    let command = Command {
        netns: Some(node.name.clone()),
        argv: argv.into_iter().map(str::to_owned).collect(),
        stdin: lines.join("\n") + "\n",
        timeout_ms: 60_000,
        ..Command::default()
    };
    world.lab.nodes().exec(command).await
}

/// The line of each answer.
fn ways<'a>(output: &'a Output, target: &str, wanted: usize) -> Result<Vec<&'a str>> {
    let ways: Vec<&str> = output.stdout.lines().filter(|line| line.starts_with(target)).collect();
    ensure!(ways.len() == wanted, "{} of {wanted} have a way: {}", ways.len(), output.stderr);
    Ok(ways)
}

fn goes_by(way: &str, many: &Many) -> bool {
    let words: Vec<&str> = way.split_whitespace().collect();
    let follows = |key: &str, value: &str| words.windows(2).any(|pair| pair == [key, value]);
    follows("dev", &format!("cv{}", many.vni)) && follows("table", &many.table())
}

/// Pods, blocks and pools go, and with them everything that was made for them on n1.
async fn unmake(world: &World, node: &Node, all: &[Many], pods: &[Pod]) -> Result<()> {
    let gone = pods.iter().map(|pod| format!("netns del {}", pod.place.netns)).collect();
    world.lab.nodes().ip(None, gone).await?;
    for [family, prefix] in [["-4", POOLS], ["-6", POOLS_V6]] {
        world.lab.nodes().run(OUTSIDE, &["ip", family, "route", "flush", "root", prefix]).await?;
    }
    let mut pools: Vec<String> = all.iter().map(|many| pool(many.number).0).collect();
    pools.extend(all.iter().filter(|many| many.sample).map(|many| pool_v6(many.number).0));
    let of_theirs: [IpNet; 2] = [POOLS.parse()?, POOLS_V6.parse()?];
    let mut blocks = Vec::new();
    for net in of_theirs {
        let held = look::blocks(world, net).await?;
        blocks.extend(held.into_iter().map(|(node, block)| ipam::affinity_name(&node, block)));
    }
    for (kind, names) in [(world.resource("blockaffinities"), &blocks), (world.resource("ippools"), &pools)] {
        for some in names.chunks(100) {
            let mut args = vec!["delete", "--ignore-not-found", "--wait=false", &kind];
            args.extend(some.iter().map(String::as_str));
            world.kubectl(&args).await?;
        }
    }
    wait::until("the Tenants to be gone", LIMIT, async || {
        let left = tenants(world).await?;
        let left: Vec<String> = all.iter().map(Many::tenant).filter(|name| left.contains_key(name)).collect();
        ensure!(left.is_empty(), "{} are left, such as {}", left.len(), left[0]);
        Ok(())
    })
    .await?;
    for (netns, name) in [(node.name.clone(), "cv2"), (node.router(), "vrf2")] {
        wait::until(&format!("the links {name}* of {netns} to be gone"), PATIENCE, async || {
            let links = world.lab.nodes().run(&netns, &["ip", "-o", "link"]).await?;
            let left = links.lines().filter(|line| line.contains(&format!(": {name}"))).count();
            ensure!(left == 0, "{left} are left");
            Ok(())
        })
        .await?;
    }
    world.in_step(node, LIMIT).await
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_walk_follows_jumps_and_counts_what_it_meets() {
        let rules = [
            json!({"priority": 0, "src": "all", "table": "local"}),
            json!({"priority": 20000, "src": "10.0.0.0", "srclen": 9, "goto": 20004}),
            json!({"priority": 20001, "src": "10.200.0.0", "srclen": 16, "table": "main", "suppress_prefixlen": 31}),
            json!({"priority": 20002, "src": "10.200.0.0", "srclen": 16, "table": "1000001001"}),
            json!({"priority": 20004, "src": "10.1.0.0", "srclen": 16, "table": "1000001002"}),
            json!({"priority": 32766, "src": "all", "table": "main"}),
        ];
        let walk = |address: &str| walk(&rules, address.parse().unwrap()).unwrap();
        assert_eq!(walk("10.200.0.1"), ("1000001001".to_owned(), 4));
        assert_eq!(walk("10.1.0.1"), ("1000001002".to_owned(), 3));
        assert_eq!(walk("10.2.0.1"), ("main".to_owned(), 4));
    }

    #[test]
    fn a_way_out_is_told_from_others() {
        let many = Many { number: 0, vni: 2001, address: "10.210.0.0".parse().unwrap(), sample: false };
        let way = "198.51.100.9 from 10.210.0.0 via 169.254.192.9 dev cv2001 table 1000002001";
        assert!(goes_by(way, &many));
        assert!(!goes_by(&way.replace("cv2001", "cv20010"), &many));
        assert!(!goes_by("198.51.100.9 from 10.210.0.0 via 172.18.0.1 dev eth0", &many));
    }
}
