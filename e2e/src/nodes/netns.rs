//! Work inside a named network namespace, each on a thread of its own that ends with the work, so that no thread is ever
//! left in the wrong one.

use std::{fs::File, thread};

use anyhow::{Context as _, Result, anyhow};
use nix::sched::{CloneFlags, setns};
use tokio::sync::oneshot;

/// Where `ip netns` keeps the namespaces' names.
pub const DIR: &str = "/run/netns";

/// Runs `work` inside the namespace, or where the process is when none is named. Blocking work is fine.
pub async fn within<T, F>(netns: Option<&str>, work: F) -> Result<T>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T> + Send + 'static,
{
    let netns = netns.map(str::to_owned);
    let (sender, receiver) = oneshot::channel();
    thread::Builder::new()
        .name(format!("in {}", netns.as_deref().unwrap_or("own")))
        .spawn(move || {
            let result = enter(netns.as_deref()).and_then(|()| work());
            // Nobody listens any more when the request was given up.
            drop(sender.send(result));
        })
        .context("a thread for work in a network namespace")?;
    receiver
        .await
        .map_err(|_| anyhow!("the work in a network namespace panicked; see the node side's log"))?
}

fn enter(netns: Option<&str>) -> Result<()> {
    let Some(name) = netns else { return Ok(()) };
    let path = format!("{DIR}/{name}");
    let file = File::open(&path).with_context(|| format!("no network namespace {name}: open {path}"))?;
    setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter the network namespace {name}"))
}
