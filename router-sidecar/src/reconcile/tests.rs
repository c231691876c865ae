//! The loop, with a node and an FRR in memory and a clock that runs as fast as it can.

use std::sync::Arc;

use calico_vni_proto::{codec::Codec, model::Guard};
use tokio::task::JoinHandle;

use super::*;
use crate::{
    desired::nothing,
    frr_port::{Change, Silent},
    last_good::Held,
    observe::Uplinks,
    testing::{
        config,
        fake::{FakeFrr, FakeNode},
        tenant, uplink,
    },
};

impl<T: Platform> Platform for Arc<T> {
    async fn uplinks(&self, names: &[String]) -> Result<Uplinks, NodeError> {
        T::uplinks(self, names).await
    }
    async fn observe(&self, desired: &Desired) -> Result<Observed, NodeError> {
        T::observe(self, desired).await
    }
    async fn filters_changed(&self) -> bool {
        T::filters_changed(self).await
    }
    async fn guard_stands(&self, desired: &Desired) -> Result<bool, NodeError> {
        T::guard_stands(self, desired).await
    }
    async fn apply(&self, op: &Op) -> Result<(), NodeError> {
        T::apply(self, op).await
    }
}

impl<T: Frr> Frr for Arc<T> {
    async fn plan(&self, config: &NodeConfig) -> Result<Vec<Change>, Silent> {
        T::plan(self, config).await
    }
    async fn apply(&self, changes: &[Change]) -> Vec<Result<(), String>> {
        T::apply(self, changes).await
    }
    async fn rejoin(&self, vnis: &[u32]) -> Result<(), Silent> {
        T::rejoin(self, vnis).await
    }
    async fn sessions(&self, config: &NodeConfig) -> Result<Vec<calico_vni_proto::wire::Session>, Silent> {
        T::sessions(self, config).await
    }
}

fn held<T: Codec>(value: T) -> Held<T> {
    Held { digest: Digest::of(&value.encode()), value }
}

fn two_tenants() -> NodeConfig {
    config(vec![tenant("red", 1001, &["10.200.0.0/16"]), tenant("blue", 1002, &["10.201.0.0/16"])])
}

/// An agent that runs.
struct Agent {
    node: Arc<FakeNode>,
    frr: Arc<FakeFrr>,
    told: watch::Sender<Told>,
    report: watch::Receiver<Report>,
    word: mpsc::Sender<()>,
    task: JoinHandle<()>,
}

impl Agent {
    fn start() -> Self {
        let node = Arc::new(FakeNode::with_uplinks([uplink("eth1", 1500, &["192.0.2.3/31"])]));
        let frr = Arc::new(FakeFrr::default());
        let (told, told_receiver) = watch::channel(Told::default());
        let (report_sender, report) = watch::channel(Report::default());
        let (word, changed) = mpsc::channel(1);
        let reconciler = Reconciler::new(
            node.clone(),
            frr.clone(),
            Settings::default(),
            told_receiver,
            report_sender,
            Arc::default(),
        );
        let task = tokio::spawn(reconciler.run(changed));
        Self { node, frr, told, report, word, task }
    }

    fn tell(&self, config: NodeConfig) {
        self.told.send_replace(Told { guard: Some(held(Guard::default())), config: Some(held(config)) });
    }

    /// The next report, tenants with their errors.
    async fn reported(&mut self) -> Vec<(String, Option<String>)> {
        self.report.changed().await.unwrap();
        let report = self.report.borrow_and_update().clone();
        report.tenants.into_iter().map(|tenant| (tenant.name, tenant.error)).collect()
    }

    async fn wait_for(&self, what: &str, condition: impl Fn(&Self) -> bool) -> Duration {
        let began = Instant::now();
        while !condition(self) {
            assert!(began.elapsed() < Duration::from_mins(2), "never: {what}");
            sleep(Duration::from_millis(10)).await;
        }
        began.elapsed()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn fine(name: &str) -> (String, Option<String>) {
    (name.to_owned(), None)
}

#[tokio::test(start_paused = true)]
async fn what_is_told_is_brought_about_and_reported_once() {
    let mut agent = Agent::start();
    agent.tell(two_tenants());
    assert_eq!(agent.reported().await, [fine("red"), fine("blue")]);
    assert!(agent.node.lock().observed.host.links.contains_key("cv1002"));
    let asked = agent.node.lock().asked.len();
    sleep(Duration::from_mins(2)).await;
    assert!(!agent.report.has_changed().unwrap(), "nothing new was reported");
    assert_eq!(agent.node.lock().asked.len(), asked, "nothing was done twice");
}

#[tokio::test(start_paused = true)]
async fn a_tenant_that_fails_fails_alone_and_recovers() {
    let mut agent = Agent::start();
    agent.node.lock().failing.push("link add vrf1001".into());
    agent.tell(two_tenants());
    let reported = agent.reported().await;
    assert_eq!(reported[1], fine("blue"));
    let error = reported[0].1.as_ref().unwrap();
    assert_eq!(error, "router: link add vrf1001 type vrf table 1000001001: made to fail");
    // Its rules lead into a table that ends there, not in main.
    let table = calico_vni_proto::names::table(1001);
    let routes: Vec<String> = agent
        .node
        .lock()
        .observed
        .host
        .routes
        .iter()
        .filter(|r| r.table == table)
        .map(ToString::to_string)
        .collect();
    assert_eq!(routes, [format!("unreachable 0.0.0.0/0 metric 4278198272 table {table}")]);

    let count =
        |agent: &Agent| agent.node.lock().asked.iter().filter(|op| op.contains("add vrf1001")).count();
    sleep(Duration::from_mins(5)).await;
    let tried = count(&agent);
    assert!((8..=17).contains(&tried), "{tried} tries in 5 minutes");

    agent.node.lock().failing.clear();
    assert_eq!(agent.reported().await, [fine("red"), fine("blue")]);
}

#[tokio::test(start_paused = true)]
async fn a_new_configuration_is_tried_at_once_after_failures() {
    let mut agent = Agent::start();
    agent.node.lock().failing.push("link add vrf1001".into());
    agent.tell(two_tenants());
    agent.reported().await;
    sleep(Duration::from_secs(200)).await;
    agent.node.lock().failing.clear();
    let mut other = two_tenants();
    other.tenants[0].max_prefixes = 7;
    agent.tell(other);
    let began = Instant::now();
    assert_eq!(agent.reported().await, [fine("red"), fine("blue")]);
    assert!(began.elapsed() < Duration::from_millis(100));
}

#[tokio::test(start_paused = true)]
async fn without_the_guard_no_tenant_comes() {
    let mut agent = Agent::start();
    agent.node.lock().failing.push("guard load".into());
    agent.tell(two_tenants());
    for (_, error) in agent.reported().await {
        assert!(error.unwrap().contains("guard load"));
    }
    let observed = agent.node.lock().observed.clone();
    assert!(observed.host.rules.is_empty() && observed.host.routes.is_empty());

    agent.told.send_replace(Told { guard: None, config: Some(held(two_tenants())) });
    for (_, error) in agent.reported().await {
        assert_eq!(error.as_deref(), Some("waiting for the guard from the controller"));
    }
    agent.node.lock().failing.clear();
    agent.tell(two_tenants());
    assert_eq!(agent.reported().await, [fine("red"), fine("blue")]);
}

#[tokio::test(start_paused = true)]
async fn drift_is_put_right_in_time() {
    let mut agent = Agent::start();
    agent.tell(two_tenants());
    agent.reported().await;
    // The kernel tells of a rule; nobody tells of the guard or of FRR; a switch is found by the clock.
    let rules = std::mem::take(&mut agent.node.lock().observed.host.rules);
    agent.word.send(()).await.unwrap();
    let took = agent.wait_for("rules", |agent| agent.node.lock().observed.host.rules == rules).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    agent.node.lock().observed.guard.digest = None;
    let took = agent.wait_for("guard", |agent| agent.node.lock().observed.guard.digest.is_some()).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    agent.frr.lock().tenants.clear();
    let took = agent.wait_for("FRR", |agent| agent.frr.lock().tenants.len() == 2).await;
    assert!(took < Duration::from_secs(5), "{took:?}");
    agent.node.lock().observed.router.sysctls.clear();
    let took =
        agent.wait_for("switches", |agent| !agent.node.lock().observed.router.sysctls.is_empty()).await;
    assert!(took < Duration::from_secs(16), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn frr_is_told_of_devices_that_were_made_anew_beneath_it() {
    let mut agent = Agent::start();
    agent.tell(two_tenants());
    agent.reported().await;
    assert!(agent.frr.lock().rejoined.is_empty(), "new tenants are no news to it");
    agent.node.lock().observed.router.links.remove("vrf1001");
    agent.word.send(()).await.unwrap();
    agent.wait_for("the VRF", |agent| agent.node.lock().observed.router.links.contains_key("vrf1001")).await;
    agent.wait_for("a word to FRR", |agent| agent.frr.lock().rejoined == [1001]).await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_frr_is_an_error_and_its_return_is_noticed() {
    let mut agent = Agent::start();
    agent.frr.lock().silent = true;
    agent.tell(two_tenants());
    for (_, error) in agent.reported().await {
        assert_eq!(error.as_deref(), Some("FRR does not answer: made to be silent"));
    }
    assert!(
        agent.node.lock().observed.host.links.contains_key("cv1001"),
        "the kernel's part does not wait for FRR"
    );
    agent.frr.lock().silent = false;
    let began = Instant::now();
    assert_eq!(agent.reported().await, [fine("red"), fine("blue")]);
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[tokio::test(start_paused = true)]
async fn a_silence_of_less_than_a_minute_costs_nobody_who_is_carried() {
    let mut agent = Agent::start();
    agent.tell(two_tenants());
    agent.reported().await;
    agent.frr.lock().silent = true;
    sleep(Duration::from_secs(50)).await;
    assert!(!agent.report.has_changed().unwrap(), "{:?}", agent.report.borrow());
    // One that comes meanwhile is not there yet, and neither is what has changed.
    let mut config = two_tenants();
    config.tenants[1].max_prefixes = 7;
    config.tenants.push(tenant("green", 1003, &["10.202.0.0/16"]));
    agent.tell(config);
    let silent = |name: &str| (name.to_owned(), Some("FRR does not answer: made to be silent".to_owned()));
    assert_eq!(agent.reported().await, [fine("red"), silent("blue"), silent("green")]);
    let began = Instant::now();
    assert_eq!(agent.reported().await, [silent("red"), silent("blue"), silent("green")]);
    assert!(
        (Duration::from_secs(5)..Duration::from_secs(40)).contains(&began.elapsed()),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_tenant_that_frr_refuses_fails_alone() {
    let mut agent = Agent::start();
    agent.frr.lock().refused.push(1002);
    agent.tell(two_tenants());
    assert_eq!(
        agent.reported().await,
        [fine("red"), ("blue".to_owned(), Some("frr: set 1002: refused".to_owned()))]
    );
}

#[tokio::test(start_paused = true)]
async fn an_empty_configuration_leaves_the_guard_alone() {
    let mut agent = Agent::start();
    agent.tell(two_tenants());
    agent.reported().await;
    let mut empty = nothing("n1").config;
    empty.node = "n1".into();
    agent.tell(empty);
    assert_eq!(agent.reported().await, []);
    let inner = agent.node.lock();
    assert!(inner.observed.host.links.contains_key("eth1") && inner.observed.guard.present);
    assert!(!inner.observed.host.links.contains_key("cv1001") && inner.observed.host.rules.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_cannot_be_read_is_left_alone_for_a_while() {
    let node = Arc::new(FakeNode::with_uplinks([uplink("eth1", 1500, &["192.0.2.3/31"])]));
    node.lock().failing.push("link add vrf1001".into());
    let told = Told { guard: Some(held(Guard::default())), config: Some(held(two_tenants())) };
    let (_told, told) = watch::channel(told);
    let (report, _report) = watch::channel(Report::default());
    let frr = FakeFrr::default();
    let mut reconciler =
        Reconciler::new(node.clone(), frr, Settings::default(), told, report, Arc::default());
    let mut now = Instant::now();
    reconciler.round(now).await;
    node.lock().unreadable = true;
    for _ in 0..3 {
        now = reconciler.backoff.next().unwrap();
        reconciler.round(now).await;
        let next = reconciler.backoff.next().unwrap();
        assert!(next > now, "the next round would come at once, and so on for ever");
    }
}

#[tokio::test(start_paused = true)]
async fn without_the_kernels_word_the_clock_goes_on_as_before() {
    let mut agent = Agent::start();
    agent.tell(two_tenants());
    agent.reported().await;
    agent.word = mpsc::channel(1).0;
    let before = agent.node.lock().looks;
    sleep(Duration::from_mins(1)).await;
    let looks = agent.node.lock().looks - before;
    assert!((3..=5).contains(&looks), "{looks} looks in a minute");
}
