//! Puts the agent together: the node, FRR, the kernel's events, the stream to the controller, and the loop.

use std::{convert::Infallible, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use calico_vni_telemetry::{Source, serve};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::AbortHandle,
    time::{Instant, interval, sleep},
};
use tracing::{debug, info, warn};

use crate::{
    dial::{Dial, DialError},
    frr::Driver,
    frr_link::FrrLink,
    frr_port::Frr as _,
    last_good::{LastGood, Told},
    leaving::{LeavingError, Shared},
    lock::{AGENT, Lock, LockError},
    metrics::Served,
    netlink::{Client, NetlinkError, events},
    netns::{Netns, NetnsError},
    node::{Node, NodeError},
    notices::{Watch, of_sessions},
    patience::Patience,
    reconcile::{Reconciler, Settings, look},
    report::{Health, Report},
    session::Session,
};

/// How long the controller may take to open a stream.
const STREAM: Duration = Duration::from_mins(1);

/// How often FRR is asked for its sessions.
const HEALTH: Duration = Duration::from_secs(5);

/// Pause before the address of metrics and probes is tried again.
const LISTEN_AGAIN: Duration = Duration::from_secs(30);

/// Where things are.
#[derive(Clone, Debug)]
pub struct Options {
    /// Kubernetes node name.
    pub node: String,
    /// How the controller is reached.
    pub dial: Dial,
    /// The router's network namespace.
    pub router_netns: PathBuf,
    /// Where FRR's sockets are.
    pub frr_dir: PathBuf,
    /// Where the agent keeps what it has to know after a restart.
    pub state_dir: PathBuf,
    /// Where metrics and probes are asked for.
    pub http_listen: SocketAddr,
    /// How often it looks.
    pub settings: Settings,
}

/// Why the agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A namespace.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The node.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The kernel's events.
    #[error("cannot follow the kernel's events: {0}")]
    Events(#[from] NetlinkError),
    /// What a clean-up has left for the next agent.
    #[error(transparent)]
    Leaving(#[from] LeavingError),
    /// Another agent.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The options about the controller.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// A socket that broke. What stands is not touched, and the next start opens new ones.
    #[error("a netlink socket to the kernel has broken; the agent has to be started again")]
    Deaf,
    /// FRR has gone into another namespace. What stands in this one is not touched.
    #[error("{} is another network namespace than it was; the agent has to be started again", .0.display())]
    Replaced(PathBuf),
}

/// Runs the agent until the process is told to stop. What it set up stays as it is.
pub async fn run(options: Options) -> Result<(), StartError> {
    options.dial.check()?;
    let _lock = Lock::take(&options.state_dir.join(AGENT))?;
    let host = Arc::new(Netns::current()?);
    // FRR's pod makes it, which may come after this one.
    let router = tokio::select! {
        router = Netns::wait(&options.router_netns) => Arc::new(router?),
        () = stop_signal() => return Ok(()),
    };
    Shared { frr_dir: &options.frr_dir, netns: &options.router_netns }.agent_begins()?;
    let (word, changed) = mpsc::channel(1);
    events::follow(&host, word.clone())?;
    events::follow(&router, word)?;
    let kernel = Client::connect(Arc::clone(&router)).map_err(NodeError::from)?;
    let last_good = LastGood::new(&options.state_dir);
    let watch = Watch::open(Arc::clone(&host), last_good.clone())?;
    let platform = Node::open(host, Arc::clone(&router), &options.state_dir)?;
    let connections = platform.connections();

    let told = last_good.load(&options.node);
    info!(
        node = options.node,
        guard = told.guard.as_ref().map(|held| tracing::field::display(held.digest)),
        digest = told.config.as_ref().map(|held| tracing::field::display(held.digest)),
        "agent starts"
    );
    let (told_sender, told) = watch::channel(told);
    let (report_sender, report) = watch::channel(Report::default());
    let (health_sender, health) = watch::channel(None);
    let frr = FrrLink::new(options.frr_dir.clone()).routing_in(kernel);
    let (connected_sender, connected) = watch::channel(false);
    let served = Arc::new(Served {
        metrics: Arc::default(),
        told: told.clone(),
        report: report.clone(),
        health: health.clone(),
        connected,
    });
    let metrics = Arc::clone(&served.metrics);
    let reconciler = Reconciler::new(platform, frr, options.settings, told.clone(), report_sender, metrics);
    let session = Session {
        node: options.node,
        dial: options.dial,
        patience: STREAM,
        last_good,
        told: told_sender,
        report: report.clone(),
        health,
        frr: Driver::new(options.frr_dir.clone()),
        connected: connected_sender,
    };
    let health = follow_health(FrrLink::new(options.frr_dir), watch, (told, report), health_sender);

    tokio::select! {
        () = reconciler.run(changed) => warn!("the loop ended"),
        () = session.run() => warn!("the session ended"),
        () = health => warn!("health ended"),
        never = telemetry(options.http_listen, served) => match never {},
        () = until(|| connections.iter().any(AbortHandle::is_finished)) => return Err(StartError::Deaf),
        // FRR is in the other one then.
        () = until(|| router.is_replaced()) => return Err(StartError::Replaced(options.router_netns)),
        () = stop_signal() => info!("stopping; what stands on the node stays as it is"),
    }
    Ok(())
}

/// Prints what the agent would do, from what it was told last.
pub async fn dry_run(options: &Options) -> Result<(), StartError> {
    let host = Arc::new(Netns::current()?);
    let router = Arc::new(Netns::open(&options.router_netns)?);
    let platform = Node::open(host, router, &options.state_dir)?;
    let told = LastGood::for_a_look(&options.state_dir).load(&options.node);
    let frr = FrrLink::new(options.frr_dir.clone());
    match look(&told, &platform, &frr).await? {
        None => println!("no configuration was taken from the controller so far"),
        Some(look) => {
            if let Some(error) = look.observed.frr_error {
                println!("# {error}");
            }
            look.ops.iter().for_each(|op| println!("{op}"));
        }
    }
    Ok(())
}

async fn follow_health(
    frr: FrrLink,
    watch: Watch,
    (told, mut report): (watch::Receiver<Told>, watch::Receiver<Report>),
    health: watch::Sender<Option<Health>>,
) {
    let mut tick = interval(HEALTH);
    let (mut patience, mut heard) = (Patience::default(), Vec::new());
    loop {
        // After a result at once: who changes many nodes waits for how this one does with it.
        tokio::select! {
            _ = tick.tick() => {}
            Ok(()) = report.changed() => {}
        }
        let (told, report) = (told.borrow().clone(), report.borrow_and_update().clone());
        let Some(config) = &told.config else { continue };
        let (mut notices, drops) = (watch.notices(&told, &report).await, watch.drops(&told).await);
        let now = Instant::now();
        // What FRR has said before the result says nothing of how it does with it.
        let mut since = None;
        match frr.sessions(&config.value).await {
            Ok(sessions) => {
                patience.hear(now);
                heard = sessions;
                since = report.config;
            }
            Err(error) if patience.is_over(now) => {
                debug!(%error, "FRR counts as down");
                heard.clear();
                since = report.config;
            }
            Err(error) => debug!(%error, "FRR is given time"),
        }
        let (frr_running, sessions) = (!patience.is_over(now), heard.clone());
        notices.extend(of_sessions(&config.value, &sessions));
        health.send_replace(Some(Health { frr_running, sessions, notices, drops, since }));
    }
}

/// Serves metrics and probes. What the node carries does not wait for it, nor for whoever has its address.
async fn telemetry(address: SocketAddr, source: Arc<dyn Source>) -> Infallible {
    loop {
        let served = match TcpListener::bind(address).await {
            Ok(listener) => {
                info!(%address, "metrics and probes");
                serve(listener, Arc::clone(&source)).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = served {
            warn!(%address, %error, "--http-listen: metrics and probes are not served; it is tried again");
        }
        sleep(LISTEN_AGAIN).await;
    }
}

/// Until this holds, which is looked at every few seconds.
async fn until(holds: impl Fn() -> bool) {
    let mut tick = interval(HEALTH);
    while !holds() {
        tick.tick().await;
    }
}

async fn stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
