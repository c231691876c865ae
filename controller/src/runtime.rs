//! The wiring, and the one loop: observe → plan → apply → publish → report.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use kube::{Client, runtime::reflector::store::WriterDropped};
use tokio::{
    net::TcpListener,
    sync::Notify,
    task::{JoinError, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::{
    agents::Agents,
    apply::{Applier, Pass, api_server::KubeCluster},
    detect,
    events::Events,
    grpc,
    observe::Stores,
    publish::Publisher,
};

/// Changes are gathered this long before a plan is made of them.
const GATHER: Duration = Duration::from_millis(100);

/// Why the controller stopped without being told to.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// A reflector ended, so a store would grow old without anybody noticing.
    #[error("the reflector of {0} ended")]
    ReflectorEnded(&'static str),
    /// A task panicked.
    #[error("a task of the controller failed")]
    Task(#[from] JoinError),
    /// A store can never be filled.
    #[error("a reflector ended before its first list")]
    NeverReady(#[from] WriterDropped),
    /// The gRPC server failed.
    #[error("the gRPC server failed")]
    Grpc(#[from] tonic::transport::Error),
}

/// Runs the controller until it is told to stop. Agents are accepted on `listener` once everything has been read.
pub async fn run(
    client: Client,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> Result<(), RuntimeError> {
    let result = shutdown.run_until_cancelled(serve(&client, listener, shutdown.clone())).await;
    result.unwrap_or(Ok(()))
}

async fn serve(
    client: &Client,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> Result<(), RuntimeError> {
    let changed = Arc::new(Notify::new());
    let mut reflectors = JoinSet::new();
    let served = detect::wait_for_calico(client).await;
    let stores = Stores::start(client, served, &changed, &mut reflectors);
    stores.ready().await?;

    // A guard cancels it on every way out, so that no agent is left with a stream that nobody feeds.
    let streams = shutdown.child_token();
    let _end = streams.clone().drop_guard();
    let agents = Agents::new(changed.clone(), streams.clone());
    let server = grpc::serve(listener, Arc::clone(&agents), streams);
    let control = control(client, stores, &agents, &changed, KubeCluster::new(client, served.api));
    tokio::select! {
        result = server => Ok(result?),
        () = control => Ok(()),
        Some(ended) = reflectors.join_next() => Err(RuntimeError::ReflectorEnded(ended?)),
    }
}

/// Plans and carries out, over and over.
async fn control(client: &Client, stores: Stores, agents: &Agents, changed: &Notify, cluster: KubeCluster) {
    let mut applier = Applier::new(cluster);
    let mut publisher = Publisher::default();
    let mut events = Events::new(client.clone());
    loop {
        let started = Instant::now();
        let mut observed = stores.observe(agents.said());
        applier.complete(&mut observed);
        let planning = Instant::now();
        let plan = calico_vni_planner::plan(&observed.snapshot);
        let planned_us = micros(planning.elapsed());

        let mut pass = Pass::new(&plan, &observed);
        applier.prepare(&mut pass).await;
        applier.withdraw(&mut pass).await;
        publisher.publish(&plan, agents);
        let mut notices = applier.establish(pass, Timestamp::now()).await;
        notices.extend(plan.notices.iter().cloned());
        events.tell(&notices, &observed.snapshot).await;
        debug!(
            tenants = observed.snapshot.tenants.len(),
            nodes = plan.nodes.len(),
            observed_us = micros(planning - started),
            planned_us,
            whole_us = micros(started.elapsed()),
            "a plan was carried out"
        );
        wait_for_change(changed, applier.next_due()).await;
    }
}

/// Until something changed or is to be tried again, and what else comes with it has come too.
async fn wait_for_change(changed: &Notify, due: Option<Instant>) {
    let retry = async {
        match due {
            Some(due) => tokio::time::sleep_until(due).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = changed.notified() => {}
        () = retry => {}
    }
    tokio::time::sleep(GATHER).await;
    // What was told meanwhile is in the stores that are read next.
    let _ = futures::FutureExt::now_or_never(changed.notified());
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
