//! Scenarios: each makes what it needs in a running [`World`], shows one promise of the system, and takes its own things
//! away again. They may run in any order, one after the other.

use std::{pin::Pin, time::Instant};

use anyhow::{Result, bail};

use crate::{step, world::World};

pub mod demo;

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

/// All of them.
pub const ALL: [Scenario; 1] = [Scenario {
    name: "demo",
    shows: "an annotated pool and a Tenant become VRFs; tenants reach their own and nobody else",
    play: |world| Box::pin(demo::play(world)),
}];

/// Plays those whose names contain `filter`, one after the other, and says how each went.
pub async fn play(world: &mut World, filter: &str) -> Result<()> {
    let chosen: Vec<&Scenario> = ALL.iter().filter(|s| s.name.contains(filter)).collect();
    if chosen.is_empty() {
        let names: Vec<_> = ALL.iter().map(|s| s.name).collect();
        bail!("no scenario is named like `{filter}`; there are {}", names.join(", "));
    }
    let mut failed = Vec::new();
    let mut passed = 0;
    for Scenario { name, shows, play } in chosen {
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
                failed.push(*name);
            }
        }
    }
    println!("{passed} passed, {} failed", failed.len());
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}
