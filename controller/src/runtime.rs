//! The wiring, and the one loop: observe → plan → apply → publish → report.

use std::{pin::pin, sync::Arc, time::Duration};

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
/// Longest wait for agents to take leave when the controller stops.
const FAREWELL: Duration = Duration::from_secs(2);

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
    let changed = Arc::new(Notify::new());
    let mut reflectors = JoinSet::new();
    let read_all = async {
        let served = detect::wait_for_calico(&client).await;
        let stores = Stores::start(&client, served, &changed, &mut reflectors);
        stores.ready().await?;
        Ok::<_, RuntimeError>((stores, served.api))
    };
    let Some(read) = shutdown.run_until_cancelled(read_all).await else { return Ok(()) };
    let (stores, api) = read?;

    let agents = Agents::new(changed.clone(), shutdown.clone());
    let mut service = pin!(grpc::serve(listener, Arc::clone(&agents), shutdown.clone()));
    let control = control(&client, stores, &agents, &changed, KubeCluster::new(&client, api));
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = control => {}
        result = &mut service => return Ok(result?),
        Some(ended) = reflectors.join_next() => return Err(RuntimeError::ReflectorEnded(ended?)),
    }
    // Agents are told that their streams end; who does not listen is left.
    tokio::time::timeout(FAREWELL, service).await.unwrap_or(Ok(()))?;
    Ok(())
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
