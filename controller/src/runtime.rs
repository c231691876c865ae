//! The wiring, and the one loop: observe → plan → apply → publish → report.

use std::{convert::Infallible, pin::pin, sync::Arc, time::Duration};

use jiff::Timestamp;
use kube::Client;
use tokio::{
    sync::{Notify, watch},
    task::{JoinError, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    agents::Agents,
    apply::{Applier, Pass, api_server::KubeCluster},
    detect::{self, Served},
    events::Events,
    grpc::Gate,
    metrics::{Metrics, Stage},
    observe::Stores,
    planning::{Planned, Planning},
    publish::Publisher,
};

/// Changes are gathered this long before a plan is made of them.
pub const GATHER: Duration = Duration::from_millis(100);
/// Longest reading of everything in another group, before it is asked anew which group that is.
const READ_ANEW: Duration = Duration::from_mins(1);
/// How often it is asked whether a group that was about to end has ended.
const MOVING: Duration = Duration::from_secs(1);

/// Why the controller stopped without being told to.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// A reflector ended, so a store would grow old without anybody noticing.
    #[error("the reflector of {0} ended")]
    ReflectorEnded(&'static str),
    /// A task panicked.
    #[error("a task of the controller failed")]
    Task(#[from] JoinError),
    /// The server of metrics and probes failed.
    #[error("the server of metrics and probes failed")]
    Telemetry(#[from] std::io::Error),
    /// The gRPC server failed.
    #[error("the gRPC server failed")]
    Grpc(#[from] tonic::transport::Error),
}

/// What may be set.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long a tenant stays on a node after its last block has left.
    pub linger: Duration,
    /// Its own namespace, where it has one: of the Secrets with BGP passwords.
    pub namespace: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { linger: Duration::from_mins(10), namespace: None }
    }
}

/// What is observed, in one group of Calico's kinds, and the tasks that observe it.
struct Sources {
    stores: Stores,
    reflectors: JoinSet<&'static str>,
}

impl Sources {
    /// Reads everything once.
    async fn read(
        client: &Client,
        served: Served,
        namespace: Option<&str>,
        changed: &Arc<Notify>,
        waits: impl FnMut(Vec<&'static str>),
    ) -> Result<Self, RuntimeError> {
        let mut reflectors = JoinSet::new();
        let stores = Stores::start(client, served, namespace, changed, &mut reflectors);
        stores.ready(waits).await.map_err(RuntimeError::ReflectorEnded)?;
        Ok(Self { stores, reflectors })
    }

    /// Waits until Calico is served in another way than `current`, and everything has been read anew. What was read
    /// before is in use meanwhile, so that no plan is ever made of two groups.
    async fn read_other(
        client: Client,
        current: Served,
        namespace: Option<String>,
        changed: Arc<Notify>,
    ) -> Self {
        loop {
            let served = detect::wait_for_other(&client, current).await;
            info!(
                group = served.api.group(),
                version = served.api.version(),
                "Calico is served in another way"
            );
            match tokio::time::timeout(
                READ_ANEW,
                Self::read(&client, served, namespace.as_deref(), &changed, drop),
            )
            .await
            {
                Ok(Ok(sources)) => return sources,
                Ok(Err(error)) => warn!(%error, "it cannot be read; what is used stays in use"),
                Err(_) => warn!("it was not read in time; what is used stays in use"),
            }
        }
    }
}

/// Does the work until it is told to stop. Agents are let in once everything has been read. Nothing is written from the
/// moment on in which it is told to stop.
pub(crate) async fn lead(
    client: &Client,
    gate: &watch::Sender<Gate>,
    metrics: &Arc<Metrics>,
    settings: &Settings,
    stop: CancellationToken,
) -> Result<(), RuntimeError> {
    let changed = Arc::new(Notify::new());
    let missing = |missing| drop(gate.send_replace(Gate::Preparing { missing }));
    let read_all = async {
        missing("Calico's kinds at the API server".to_owned());
        let served = detect::wait_for_calico(client).await;
        Sources::read(client, served, settings.namespace.as_deref(), &changed, |kinds| {
            missing(format!("the first list of {}", kinds.join(", ")));
        })
        .await
    };
    let Some(read) = stop.run_until_cancelled(Box::pin(read_all)).await else { return Ok(()) };
    let sources = read?;
    let agents = Agents::new(changed.clone(), stop.clone(), Arc::clone(metrics));
    gate.send_replace(Gate::Open(Arc::clone(&agents)));
    tokio::select! {
        biased;
        () = stop.cancelled() => Ok(()),
        ended = Box::pin(control(client, sources, &agents, &changed, metrics, settings)) => {
            ended.map(|never| match never {})
        }
    }
}

/// Plans and carries out, over and over.
async fn control(
    client: &Client,
    mut sources: Sources,
    agents: &Agents,
    changed: &Arc<Notify>,
    metrics: &Arc<Metrics>,
    settings: &Settings,
) -> Result<Infallible, RuntimeError> {
    let mut applier = Applier::new(KubeCluster::new(client, sources.stores.api()), Arc::clone(metrics));
    let mut publisher = Publisher::default();
    let mut planning = Planning::new(settings.linger, Arc::clone(metrics));
    let mut events = Events::start(client.clone());
    let read_other =
        |served| Sources::read_other(client.clone(), served, settings.namespace.clone(), changed.clone());
    let mut other = pin!(read_other(sources.stores.served()));
    loop {
        let started = Instant::now();
        let heard = agents.heard();
        let mut observed = sources.stores.observe(agents.said());
        metrics.stage(Stage::Observe, started.elapsed());
        let mut due = None;
        if detect::still(client, sources.stores.served()).await {
            applier.complete(&mut observed);
            let observed_us = micros(started.elapsed());
            let Planned { plan, configs, grace } =
                planning.plan(&mut observed.snapshot, &heard, &agents.others(), started);
            let planned_us = micros(started.elapsed()) - observed_us;

            let mut pass = Pass::new(&plan, &observed);
            metrics.timed(Stage::Prepare, applier.prepare(&mut pass)).await;
            metrics.timed(Stage::Withdraw, applier.withdraw(&mut pass)).await;
            let publishing = Instant::now();
            publisher.publish(&plan, &configs, agents);
            metrics.stage(Stage::Publish, publishing.elapsed());
            let establish = applier.establish(pass, Timestamp::now(), grace.is_some());
            let mut notices = metrics.timed(Stage::Establish, establish).await;
            notices.extend(plan.notices.iter().cloned());
            events.tell(&notices, &observed.snapshot);
            due = [applier.next_due(), planning.next_due(started), grace].into_iter().flatten().min();
            metrics.pass(started.elapsed());
            debug!(
                tenants = observed.snapshot.tenants.len(),
                nodes = plan.nodes.len(),
                observed_us,
                planned_us,
                whole_us = micros(started.elapsed()),
                "a plan was carried out"
            );
        } else {
            info!("Calico moves to another group: nothing is planned until that has been read");
            due.replace(started + MOVING);
        }
        tokio::select! {
            () = wait_for_change(changed, due) => {}
            Some(ended) = sources.reflectors.join_next() => return Err(RuntimeError::ReflectorEnded(ended?)),
            read = &mut other => {
                sources = read;
                applier.turn_to(KubeCluster::new(client, sources.stores.api()));
                other.set(read_other(sources.stores.served()));
            }
        }
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
