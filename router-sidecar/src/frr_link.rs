//! [`crate::frr`] behind [`crate::frr_port`]: bounds how long a daemon that hangs is waited for, and keeps zebra's idea
//! of the addresses in its namespace right.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use calico_vni_proto::{model::NodeConfig, names, wire};
use ipnet::IpNet;
use tokio::{
    sync::{Mutex, oneshot},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use crate::{
    frr::{self, Driver, SessionState},
    frr_port::{Change, Frr, Silent},
    netlink::{
        Client,
        announce::{self, Announcement},
    },
    state::{Space, vni_of_link},
};

/// How long a look at FRR is waited for, which a bgpd with hundreds of VRFs may take when it is busy. Guard and rules wait
/// for it, too, but once: until it has ended, FRR is not asked again.
const LOOK: Duration = Duration::from_secs(20);

/// How long a change is waited for, which is longer than FRR takes for a thousand tenants when nothing else runs. One
/// that takes longer is not broken off: it goes on, and FRR is left alone until it has ended.
const WRITE: Duration = Duration::from_secs(10);

/// How long zebra may take to hear what the kernel has told it, and how often it is asked.
const HEAR: Duration = Duration::from_secs(2);
const ASK: Duration = Duration::from_millis(20);

/// How long zebra may call an L3VNI down whose VRF is there: what the kernel tells of a new tenant's devices comes one after
/// the other.
const DOWN: Duration = Duration::from_secs(2);

/// FRR's daemons of this node.
#[derive(Debug)]
pub struct FrrLink {
    router: Arc<Router>,
    planned: Mutex<Vec<Step>>,
    busy: Mutex<Option<Busy>>,
    patience: Duration,
}

/// What outlasted the time that it was waited for.
#[derive(Debug)]
struct Busy {
    with: &'static str,
    task: JoinHandle<()>,
}

/// FRR, and the namespace that it routes in.
#[derive(Debug)]
struct Router {
    driver: Driver,
    /// Absent where FRR is only asked or cleared away.
    kernel: Option<Client>,
    /// Since when zebra calls L3VNIs down whose VRF is there.
    down: std::sync::Mutex<BTreeMap<u32, Instant>>,
}

/// One change.
#[derive(Clone, Debug)]
enum Step {
    /// Lines for the daemons.
    Write(frr::Op),
    /// An address that the kernel has and zebra does not know of, with its device.
    Announce(Announcement, String),
    /// An L3VNI that zebra does not take up again by itself.
    Rejoin(u32),
    /// The files with which the daemons start again.
    Save,
}

impl Step {
    fn change(&self) -> Change {
        match self {
            Self::Write(op) => Change { vni: op.tenant().map(|tenant| tenant.vni), what: op.to_string() },
            Self::Announce(address, dev) => Change {
                vni: vni_of_link(Space::Router, dev),
                what: format!("frr: announce to zebra {} of {dev}", address.net),
            },
            Self::Rejoin(vni) => Change {
                vni: Some(*vni),
                what: format!("frr: have zebra look for the devices of VNI {vni} again"),
            },
            Self::Save => {
                Change { vni: None, what: "frr: save what the daemons start again with".to_owned() }
            }
        }
    }
}

impl FrrLink {
    /// The daemons whose sockets are in this directory.
    pub fn new(dir: PathBuf) -> Self {
        let router = Arc::new(Router::new(Driver::new(dir), None));
        Self { router, planned: Mutex::default(), busy: Mutex::default(), patience: WRITE }
    }

    /// The same daemons, together with what the kernel has in their namespace.
    #[must_use]
    pub fn routing_in(self, kernel: Client) -> Self {
        let router = Router::new(self.router.driver.clone(), Some(kernel));
        Self { router: Arc::new(router), ..self }
    }

    /// The same, by one that has nothing else to do than to wait.
    #[must_use]
    pub fn patient(self) -> Self {
        Self { patience: Duration::from_mins(5), ..self }
    }

    /// Waits for the work for so long. Work that takes longer goes on, and until its end nothing else is begun.
    async fn bounded<T: Send + 'static>(
        &self,
        with: &'static str,
        limit: Duration,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Silent> {
        let mut busy = self.busy.lock().await;
        if let Some(Busy { with, .. }) = busy.as_ref().filter(|busy| !busy.task.is_finished()) {
            return Err(Silent(format!("{with} has not ended yet; all else goes on without it")));
        }
        let (sender, result) = oneshot::channel();
        let task = tokio::spawn(async move {
            // Nobody waits any more for what took too long; the next look finds out.
            sender.send(work.await).ok();
        });
        *busy = Some(Busy { with, task });
        let Ok(result) = timeout(limit, result).await else {
            return Err(Silent(format!("{with} takes longer than {} s", limit.as_secs())));
        };
        *busy = None;
        result.map_err(|_| Silent(format!("{with} ended in a panic, which the log tells of")))
    }
}

impl Router {
    fn new(driver: Driver, kernel: Option<Client>) -> Self {
        Self { driver, kernel, down: std::sync::Mutex::default() }
    }

    async fn plan(&self, config: &NodeConfig) -> Result<Vec<Step>, String> {
        let observed = self.driver.observe().await.map_err(|e| e.to_string())?;
        let ops = frr::diff(&frr::render(config, observed.version), &observed);
        let mut steps: Vec<Step> = ops.into_iter().map(Step::Write).collect();
        // Changes are saved when they are made.
        if steps.is_empty() && !self.driver.is_saved(&observed).await.map_err(|e| e.to_string())? {
            steps.push(Step::Save);
        }
        if observed.version.forgets_addresses() {
            steps.extend(self.unheard().await?);
        }
        steps.extend(self.long_down(&observed.down).into_iter().map(Step::Rejoin));
        Ok(steps)
    }

    /// Of those that are down, the ones that have been for a while. FRR 8.4 stays so when a VRF goes and comes back.
    fn long_down(&self, down: &BTreeSet<u32>) -> Vec<u32> {
        let now = Instant::now();
        let mut since = self.down.lock().expect("nothing panics while it holds the times");
        since.retain(|vni, _| down.contains(vni));
        for vni in down {
            since.entry(*vni).or_insert(now);
        }
        since.iter().filter(|(_, since)| now.duration_since(**since) >= DOWN).map(|(vni, _)| *vni).collect()
    }

    /// What zebra does not know of. Without its address a link's neighbours are out of reach for it, for ever.
    async fn unheard(&self) -> Result<Vec<Step>, String> {
        let Some(kernel) = &self.kernel else { return Ok(Vec::new()) };
        let there = announce::addresses(kernel).await.map_err(|e| e.to_string())?;
        let known = self.driver.addresses().await.map_err(|e| e.to_string())?;
        let mut steps = Vec::new();
        for address in there.into_iter().filter(|address| !known.contains(&address.net)) {
            match announce::device(kernel, &address).await {
                Ok(dev) => steps.push(Step::Announce(address, dev)),
                Err(error) if error.is_absent() => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(steps)
    }

    async fn apply(&self, steps: &[Step]) -> Vec<Result<(), String>> {
        let ops: Vec<frr::Op> = steps
            .iter()
            .filter_map(|step| match step {
                Step::Write(op) => Some(op.clone()),
                Step::Announce(..) | Step::Rejoin(_) | Step::Save => None,
            })
            .collect();
        let mut written = match self.driver.apply(&ops).await {
            Ok(results) => {
                results.into_iter().map(|result| result.outcome.map_err(|e| e.to_string())).collect()
            }
            Err(error) => vec![Err(error.to_string()); ops.len()],
        }
        .into_iter();
        let mut outcomes = Vec::with_capacity(steps.len());
        for step in steps {
            outcomes.push(match step {
                Step::Write(_) => written.next().unwrap_or_else(|| Err("FRR gave no result for it".into())),
                Step::Announce(address, _) => self.announce(address).await,
                Step::Rejoin(vni) => self.driver.rejoin(&[*vni]).await.map_err(|e| e.to_string()),
                Step::Save => self.driver.save().await.map_err(|e| e.to_string()),
            });
        }
        outcomes
    }

    async fn announce(&self, address: &Announcement) -> Result<(), String> {
        let Some(kernel) = &self.kernel else { return Err("the namespace is not known".to_owned()) };
        announce::again(kernel, address).await.map_err(|e| e.to_string())?;
        let deadline = Instant::now() + HEAR;
        loop {
            let known: BTreeSet<IpNet> = self.driver.addresses().await.map_err(|e| e.to_string())?;
            if known.contains(&address.net) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("zebra has not heard of it within {} s", HEAR.as_secs()));
            }
            sleep(ASK).await;
        }
    }
}

impl Frr for FrrLink {
    async fn plan(&self, config: &NodeConfig) -> Result<Vec<Change>, Silent> {
        let (router, config) = (Arc::clone(&self.router), config.clone());
        let look = async move { router.plan(&config).await };
        let steps = self.bounded("a look at its configuration", LOOK, look).await?.map_err(Silent)?;
        let changes = steps.iter().map(Step::change).collect();
        *self.planned.lock().await = steps;
        Ok(changes)
    }

    async fn apply(&self, changes: &[Change]) -> Vec<Result<(), String>> {
        let planned = self.planned.lock().await;
        let steps: Vec<Step> =
            planned.iter().filter(|step| changes.contains(&step.change())).cloned().collect();
        drop(planned);
        if steps.len() != changes.len() {
            let stale = "FRR was looked at in between; it is planned anew".to_owned();
            return changes.iter().map(|_| Err(stale.clone())).collect();
        }
        let router = Arc::clone(&self.router);
        let write = async move { router.apply(&steps).await };
        match self.bounded("a change of its configuration", self.patience, write).await {
            Ok(outcomes) => outcomes,
            Err(silent) => changes.iter().map(|_| Err(silent.to_string())).collect(),
        }
    }

    async fn rejoin(&self, vnis: &[u32]) -> Result<(), Silent> {
        let (router, vnis) = (Arc::clone(&self.router), vnis.to_vec());
        let write = async move { router.driver.rejoin(&vnis).await.map_err(|e| e.to_string()) };
        self.bounded("a change of its configuration", self.patience, write).await?.map_err(Silent)
    }

    async fn sessions(&self, config: &NodeConfig) -> Result<Vec<wire::Session>, Silent> {
        let sessions = timeout(LOOK, self.router.driver.sessions()).await;
        let sessions = sessions
            .map_err(|_| Silent(format!("its sessions were not told within {} s", LOOK.as_secs())))?
            .map_err(|e| Silent(e.to_string()))?;
        Ok(sessions.into_iter().map(|session| to_wire(&session, config)).collect())
    }
}

fn to_wire(session: &SessionState, config: &NodeConfig) -> wire::Session {
    let name_of = |vrf: &String| {
        let tenant = config.tenants.iter().find(|tenant| names::vrf(tenant.vni) == *vrf);
        // One that is on its way out is named by its VRF.
        tenant.map_or_else(|| vrf.clone(), |tenant| tenant.name.clone())
    };
    wire::Session {
        tenant: session.vrf.as_ref().map(name_of).unwrap_or_default(),
        peer: session.peer.to_string(),
        established: session.established,
        uptime_seconds: session.uptime.as_secs(),
        prefixes_received: session.prefixes_received,
        state: session.state.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::testing::config;

    /// A socket that takes connections and never answers, as a daemon that hangs does.
    fn hangs(dir: &std::path::Path) -> UnixListener {
        UnixListener::bind(dir.join("zebra.vty")).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_daemon_that_hangs_does_not_hold_up_the_guard() {
        let dir = tempfile::tempdir().unwrap();
        let zebra = hangs(dir.path());
        let frr = FrrLink::new(dir.path().to_owned());
        let began = Instant::now();
        let error = frr.plan(&config(vec![])).await.unwrap_err();
        assert!(error.to_string().contains("longer than 20 s"), "{error}");
        assert!(began.elapsed() <= Duration::from_secs(21), "{:?}", began.elapsed());

        let began = Instant::now();
        let error = frr.plan(&config(vec![])).await.unwrap_err();
        assert!(error.to_string().contains("not ended yet"), "{error}");
        assert_eq!(began.elapsed(), Duration::ZERO, "it is known to hang");

        // The daemon goes, and with it the question that it did not answer: the next look is a real one again.
        drop(zebra);
        loop {
            let error = frr.plan(&config(vec![])).await.unwrap_err();
            if error.to_string().contains("refused") {
                break;
            }
            assert!(began.elapsed() < Duration::from_mins(2), "{error}");
            sleep(Duration::from_secs(1)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_hangs_is_told_and_the_loop_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let _zebra = hangs(dir.path());
        let frr = FrrLink::new(dir.path().to_owned());
        let step = Step::Save;
        frr.planned.lock().await.push(step.clone());
        let began = Instant::now();
        let outcomes = frr.apply(&[step.change()]).await;
        let error = outcomes[0].as_ref().unwrap_err();
        assert!(error.contains("a change of its configuration takes longer than 10 s"), "{error}");
        assert!(began.elapsed() <= Duration::from_secs(11), "{:?}", began.elapsed());
        let error = frr.plan(&config(vec![])).await.unwrap_err();
        assert!(error.to_string().contains("a change of its configuration has not ended"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn sessions_that_are_not_told_are_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let _bgpd = UnixListener::bind(dir.path().join("bgpd.vty")).unwrap();
        let frr = FrrLink::new(dir.path().to_owned());
        let error = frr.sessions(&config(vec![])).await.unwrap_err();
        assert!(error.to_string().contains("within 20 s"), "{error}");
    }
}
