//! The leader's pod goes, and the other takes over.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{
    cluster::{Cluster, until},
    install,
};
use crate::step;

/// Far below the Lease's 15 seconds, which pass only where a leader ends without a word.
const HANDED_OVER: Duration = Duration::from_secs(10);

/// Deletes the leader's pod.
pub async fn hand_over(cluster: &Cluster) -> Result<()> {
    let old = install::leader(cluster).await?;
    let began = Instant::now();
    cluster.kubectl(&["-n", "calico-vni", "delete", "pod", &old, "--wait=false"]).await?;
    until("another controller to lead", async || {
        let new = install::leader(cluster).await?;
        ensure!(new != old, "{old} leads");
        Ok(())
    })
    .await?;
    let took = began.elapsed();
    ensure!(took < HANDED_OVER, "another leads only after {:.1} s", took.as_secs_f32());
    install::connected(cluster).await?;
    let all = began.elapsed();
    step!(
        "kind: another controller leads after {:.1} s, and every agent is connected to it after {:.1} s",
        took.as_secs_f32(),
        all.as_secs_f32()
    );
    Ok(())
}
