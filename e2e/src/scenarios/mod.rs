//! Scenarios: each shows one promise of the system in a running [`World`]. The first one brings up tenants red and blue,
//! on which the others stand; so it is always played.

use std::{pin::Pin, time::Instant};

use anyhow::{Result, bail};

use crate::{release::Release, step, world::World};

pub mod bad_input;
pub mod chaos;
pub mod cleanup;
pub mod controller_gone;
pub mod demo;
pub mod doctor;
pub mod drift;
pub mod flows;
pub mod many_vrfs;
pub mod matrix;
pub mod mtu;
pub mod node_services;
pub mod quick_start;
pub mod second_tenant;
pub mod services;
pub mod spoofing;
pub mod transitions;
pub mod uninstall;
pub mod upgrade;
pub mod withdraw;

/// A scenario's work.
type Play = for<'a> fn(&'a mut World) -> Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

/// A scenario by name.
pub struct Scenario {
    /// Name for the command line.
    pub name: &'static str,
    /// What it shows, in one line.
    pub shows: &'static str,
    play: Play,
}

/// All of them, in the order in which they can be played: the others stand on what the first one makes.
pub static ALL: [Scenario; 20] = [
    Scenario {
        name: "demo",
        shows: "an annotated pool and a Tenant become VRFs; tenants reach their own and nobody else",
        play: |world| Box::pin(demo::play(world)),
    },
    Scenario {
        name: UPGRADE,
        shows: "from the release before this one to this one, tenants in use lose nothing",
        play: |world| Box::pin(upgrade::play(world)),
    },
    Scenario {
        name: "withdraw",
        shows: "without the annotation live pods stay, then nothing remains; with it again all is back",
        play: |world| Box::pin(withdraw::play(world)),
    },
    Scenario {
        name: "quick_start",
        shows: "README.md's quick start, word by word",
        play: |world| Box::pin(quick_start::play(world)),
    },
    Scenario {
        name: "second_tenant",
        shows: "a tenant that comes later resets nobody's session",
        play: |world| Box::pin(second_tenant::play(world)),
    },
    Scenario {
        name: "matrix",
        shows: "each kind of place to each, both families, ICMP and TCP: what is forbidden never arrives",
        play: |world| Box::pin(matrix::play(world)),
    },
    Scenario {
        name: "services",
        shows: "a tenant's pods reach a Service that it names wherever its endpoints go; nobody else does",
        play: |world| Box::pin(services::play(world)),
    },
    Scenario {
        name: "node_services",
        shows: "by a Service a tenant's pods reach each other; by a node's port nobody outside reaches them",
        play: |world| Box::pin(node_services::play(world)),
    },
    Scenario {
        name: "mtu",
        shows: "a tenant carries what the fabric carries less the tunnel's headers, and senders learn how much that is",
        play: |world| Box::pin(mtu::play(world)),
    },
    Scenario {
        name: "spoofing",
        shows: "nobody passes for a tenant: not by a source address, a tunnel packet or a route",
        play: |world| Box::pin(spoofing::play(world)),
    },
    Scenario {
        name: "transitions",
        shows: "forbidden stays forbidden while agents die, tenants come and rules are flushed",
        play: |world| Box::pin(transitions::play(world)),
    },
    Scenario {
        name: "chaos",
        shows: "permitted flows lose nothing, whatever becomes of controller, API server and agents",
        play: |world| Box::pin(chaos::play(world)),
    },
    Scenario {
        name: "bad_input",
        shows: "what cannot be honoured is told, and changes nothing else",
        play: |world| Box::pin(bad_input::play(world)),
    },
    Scenario {
        name: "drift",
        shows: "what somebody changes by hand is put right, and what is not ours is left alone",
        play: |world| Box::pin(drift::play(world)),
    },
    Scenario {
        name: "many_vrfs",
        shows: "300 tenants on one node: each has its own table and way out, and none falls through to main",
        play: |world| Box::pin(many_vrfs::play(world)),
    },
    Scenario {
        name: "vrf_deleted",
        shows: "a VRF that is deleted by hand lets nothing forbidden through and comes back",
        play: |world| Box::pin(transitions::vrf_deleted(world)),
    },
    Scenario {
        name: "doctor",
        shows: "each of many broken situations is found by `kubectl vni doctor`, with its cause and remedy and nothing else",
        play: |world| Box::pin(doctor::play(world)),
    },
    Scenario {
        name: "controller_gone",
        shows: "without the controller nothing moves, and a new one changes nothing",
        play: |world| Box::pin(controller_gone::play(world)),
    },
    Scenario {
        name: "cleanup",
        shows: "a node that is cleaned up has its interface back and nothing of ours",
        play: |world| Box::pin(cleanup::play(world)),
    },
    Scenario {
        name: "uninstall",
        shows: "with tenants in use the chart is uninstalled as its page says, and nothing is left on nodes or in the API",
        play: |world| Box::pin(uninstall::play(world)),
    },
];

/// Scenarios that are played only when their whole name is asked for: they take an emulated machine many minutes, the upgrade
/// needs a second build, the one of the lost VRF waits for a recovery of FRR 8.4 that has been seen to work a few times only, and
/// after uninstalling there is nothing left.
const BY_NAME: [&str; 6] = [UPGRADE, "many_vrfs", "chaos", "doctor", "vrf_deleted", "uninstall"];

/// The one that begins with the release before this one.
const UPGRADE: &str = "upgrade";

/// With which release a world for these begins.
pub fn first_release(chosen: &[&Scenario]) -> Release {
    let upgrades = chosen.iter().any(|scenario| scenario.name == UPGRADE);
    if upgrades { Release::Previous } else { Release::This }
}

/// The first, and those whose names contain one of `names`; without any, all that are not played by name alone.
pub fn chosen(names: &[String]) -> Result<Vec<&'static Scenario>> {
    let plays = |name: &str, scenario: &Scenario| {
        scenario.name == name || (scenario.name.contains(name) && !BY_NAME.contains(&scenario.name))
    };
    for name in names {
        if !ALL.iter().any(|scenario| plays(name, scenario)) {
            let all: Vec<_> = ALL.iter().map(|s| s.name).collect();
            bail!("no scenario is named like `{name}`; there are {}", all.join(", "));
        }
    }
    let asked = |scenario: &Scenario| match names {
        [] => plays("", scenario),
        names => names.iter().any(|name| plays(name, scenario)),
    };
    Ok(ALL.iter().filter(|s| s.name == ALL[0].name || asked(s)).collect())
}

/// Plays these one after the other, and says how each went.
pub async fn play(world: &mut World, chosen: &[&Scenario]) -> Result<()> {
    let mut failed = Vec::new();
    let mut passed = 0;
    for &Scenario { name, shows, play } in chosen.iter().copied() {
        let started = Instant::now();
        step!("{name}: {shows}");
        let outcome = match play(world).await {
            Ok(()) => world.check(),
            failure => failure,
        };
        let seconds = started.elapsed().as_secs_f64();
        match outcome {
            Ok(()) => {
                passed += 1;
                step!("{name}: passed in {seconds:.1} s");
            }
            Err(error) => {
                step!("{name}: FAILED after {seconds:.1} s: {error:#}");
                let folder = world.keep_evidence(name).await?;
                step!("{name}: logs and state of everything are in {}", folder.display());
                failed.push((name, error));
            }
        }
    }
    // Told again where a reader of a long log looks first.
    for (name, error) in &failed {
        println!("{name} FAILED: {error:#}");
    }
    println!("{passed} passed, {} failed", failed.len());
    if !failed.is_empty() {
        let names: Vec<&str> = failed.iter().map(|&(name, _)| name).collect();
        bail!("failed: {}", names.join(", "));
    }
    Ok(())
}
