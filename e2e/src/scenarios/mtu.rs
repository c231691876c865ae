//! A tenant carries what the fabric carries, less the tunnel's headers; who sends more is told so by the path, and an operator
//! by the Tenant's status.

use anyhow::{Context as _, Result, bail, ensure};

use super::transitions;
use crate::{
    calico::Family,
    matrix::Place,
    nodes::protocol::Command,
    step,
    topology::LEAF,
    wait,
    world::{PATIENCE, World},
};

/// Octets of the fabric's links in the lab, and what the tunnel leaves of them (RFC 7348: 50 with an outer IPv4 header).
const FABRIC: u32 = 9_000;
const TUNNEL: u32 = 50;

/// What the Underlay says for a while.
const NARROW: u32 = 1_500;

/// What pods and external hosts have.
const PODS: u32 = 1_500;

/// Plays it with red's pods and external host.
pub async fn play(world: &mut World) -> Result<()> {
    let places = transitions::places(world, &["red"]);
    let find = |name: &str| places.iter().find(|p| p.name == name).context("a place");
    let (pod, far, external) = (find("red-n1-a")?, find("red-n2-a")?, find("ext-red")?);

    carries(world, FABRIC - TUNNEL).await?;
    for (from, to) in [(pod, far), (pod, external), (external, pod)] {
        passes(world, from, to, PODS).await?;
    }
    wide_pods(world, pod, far).await?;

    set(world, NARROW).await?;
    let played = narrow(world, pod, far, external).await;
    set(world, FABRIC).await?;
    played?;
    carries(world, FABRIC - TUNNEL).await?;
    told(world, false).await?;
    // The leaf remembers for minutes what its own tunnels carried; so the way from the fabric is not tried again.
    for to in [far, external] {
        forget(world, pod).await?;
        passes(world, pod, to, PODS).await?;
    }
    Ok(())
}

/// Pods with more than the tenant carries: 9000 octets do not pass, 8950 do.
async fn wide_pods(world: &World, pod: &Place, far: &Place) -> Result<()> {
    let ends = [(pod, "calireda", 0), (far, "calireda", 1)];
    let set = async |mtu: u32| {
        for (place, prefix, number) in ends {
            let node = &world.lab.members[number].name;
            let interface = format!("{prefix}{node}");
            let nodes = world.lab.nodes();
            nodes.ip(Some(node), vec![format!("link set {interface} mtu {mtu}")]).await?;
            nodes.ip(Some(&place.netns), vec![format!("link set eth0 mtu {mtu}")]).await?;
        }
        anyhow::Ok(())
    };
    set(FABRIC).await?;
    let played = async {
        passes(world, pod, far, FABRIC - TUNNEL).await?;
        refused(world, pod, far, FABRIC, FABRIC - TUNNEL).await
    }
    .await;
    set(PODS).await?;
    forget(world, pod).await?;
    played?;
    step!(
        "pods of {FABRIC} octets: {} pass, {FABRIC} are refused with the number that passes",
        FABRIC - TUNNEL
    );
    Ok(())
}

/// With a fabric of 1500 octets.
async fn narrow(world: &World, pod: &Place, far: &Place, external: &Place) -> Result<()> {
    let carried = NARROW - TUNNEL;
    carries(world, carried).await?;
    let message = told(world, true).await?;
    for (from, to) in [(pod, far), (pod, external), (external, pod)] {
        passes(world, from, to, carried).await?;
        refused(world, from, to, PODS, carried).await?;
        forget(world, from).await?;
    }
    step!(
        "a fabric of {NARROW} octets: {carried} pass, {PODS} are refused with the number that passes; the Tenant says: {message}"
    );
    Ok(())
}

/// Gives the fabric's links so many octets at both ends: the leaf's here, and the routers' by the Underlay.
async fn set(world: &World, mtu: u32) -> Result<()> {
    let ports = world.lab.members.iter().map(|node| node.name.as_str()).chain(["fabric"]);
    world
        .lab
        .nodes()
        .ip(Some(LEAF), ports.map(|port| format!("link set {port} mtu {mtu}")).collect())
        .await?;
    let patch = format!(r#"{{"spec":{{"mtu":{mtu}}}}}"#);
    world.kubectl(&["patch", "underlay", "fabric", "--type=merge", "-p", &patch]).await.map(drop)
}

/// Waits until the links of red's VRF are so wide on all nodes, at both ends.
async fn carries(world: &World, mtu: u32) -> Result<()> {
    for node in &world.lab.members {
        for (netns, device) in
            [(&node.name, "cv1001"), (&node.router(), "h1001"), (&node.router(), "vrf1001")]
        {
            wait::until(&format!("{device} of {netns} to carry {mtu} octets"), PATIENCE, async || {
                let link = world.lab.nodes().run(netns, &["ip", "-o", "link", "show", device]).await?;
                ensure!(link.contains(&format!(" mtu {mtu} ")), "{link}");
                Ok(())
            })
            .await?;
        }
        world.in_step(node, PATIENCE).await?;
    }
    Ok(())
}

/// Waits until the Tenant says, or no longer says, that its pods send more than it carries.
async fn told(world: &World, is: bool) -> Result<String> {
    wait::until("what the Tenant says of its pods' MTU", PATIENCE, async || {
        let path = "jsonpath={.status.conditions[?(@.type==\"Degraded\")].message}";
        let said = world.kubectl(&["get", "tenant", super::demo::RED_TENANT, "-o", path]).await?;
        let says = said.contains("pods have an MTU of");
        ensure!(says == is, "it says: {said}");
        Ok(said)
    })
    .await
}

/// Forgets what the path has taught a place. IPv4 keeps it at the route, which `ip route flush cache` does not reach.
async fn forget(world: &World, place: &Place) -> Result<()> {
    let nodes = world.lab.nodes();
    let default = nodes.run(&place.netns, &["ip", "-4", "route", "show", "default"]).await?;
    let lines = ["del", "add"].map(|verb| format!("route {verb} {}", default.trim()));
    nodes.ip(Some(&place.netns), lines.into()).await?;
    nodes.run(&place.netns, &["ip", "-6", "route", "flush", "cache"]).await.map(drop)
}

/// An echo request of so many octets, IP header and all, that nobody may cut to pieces.
async fn ping(world: &World, from: &Place, to: &Place, family: Family, octets: u32) -> Result<(i32, String)> {
    // ICMP's header has 8 octets (RFC 792, RFC 4443), IP's 20 (RFC 791) or 40 (RFC 8200).
    let (flag, headers) = match family {
        Family::V4 => ("-4", 28),
        Family::V6 => ("-6", 48),
    };
    let (size, target) = ((octets - headers).to_string(), to.addresses.of(family).to_string());
    let argv = ["ping", flag, "-n", "-M", "do", "-c", "1", "-W", "2", "-s", &size, &target];
    let command = Command {
        netns: Some(from.netns.clone()),
        argv: argv.map(str::to_owned).into(),
        env: vec![("LC_ALL".into(), "C".into())],
        timeout_ms: 20_000,
        ..Command::default()
    };
    let output = world.lab.nodes().exec(command).await?;
    Ok((output.code, output.stdout + &output.stderr))
}

async fn passes(world: &World, from: &Place, to: &Place, octets: u32) -> Result<()> {
    for family in Family::ALL {
        let what = format!("{octets} octets from {} to {} over {family}", from.name, to.name);
        wait::until(&what, PATIENCE, async || {
            let (code, said) = ping(world, from, to, family, octets).await?;
            ensure!(code == 0, "{said}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// It is refused, and by the first or second answer the sender knows how much passes.
async fn refused(world: &World, from: &Place, to: &Place, octets: u32, passes: u32) -> Result<()> {
    for family in Family::ALL {
        let what = format!("{octets} octets from {} to {} over {family}", from.name, to.name);
        wait::until(&format!("the refusal of {what}"), PATIENCE, async || {
            let (code, said) = ping(world, from, to, family, octets).await?;
            if code == 0 {
                bail!(wait::hopeless(anyhow::anyhow!("it passed")));
            }
            let known = ["mtu=", "mtu = ", "mtu: "].iter().any(|is| said.contains(&format!("{is}{passes}")));
            ensure!(known, "the sender does not know of {passes}: {said}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}
