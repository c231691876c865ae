//! An agent that programs nothing and says that it did, over the real contract.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use calico_vni_crds::Tenant;
use calico_vni_proto::{
    codec::{Codec, Digest},
    model::{Guard, NodeConfig},
    wire::{self, FromAgent, FromController, from_agent, from_controller, router_client::RouterClient},
};
use kube::{Api, Client};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

/// What an agent holds and has seen.
#[derive(Clone, Debug, Default)]
pub struct Held {
    pub guard: Guard,
    pub config: Option<NodeConfig>,
    pub guard_digest: Option<Digest>,
    pub config_digest: Option<Digest>,
    /// Of the agent; the controller's own where it is not said.
    pub version: Option<&'static str>,
    /// `guard` and `config`, in the order in which they came.
    pub received: Vec<&'static str>,
}

impl Held {
    /// The tenants that the node carries: name, VNI, link index.
    pub fn tenants(&self) -> Vec<(String, u32, u32)> {
        let tenants = self.config.iter().flat_map(|c| &c.tenants);
        tenants.map(|t| (t.name.clone(), t.vni, t.link_index)).collect()
    }

    pub fn quarantined(&self) -> Vec<String> {
        self.guard.quarantined.iter().map(ToString::to_string).collect()
    }
}

pub struct FakeAgent {
    held: Arc<Mutex<Held>>,
    refuses: Arc<AtomicBool>,
    acknowledges: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl FakeAgent {
    /// Dials once. With `api` it checks that every number it gets is kept there.
    pub fn start(
        node: &str,
        address: SocketAddr,
        acknowledges: bool,
        held: Held,
        api: Option<Client>,
    ) -> Self {
        let held = Arc::new(Mutex::new(held));
        let (sender, receiver) = watch::channel(acknowledges);
        let refuses = Arc::new(AtomicBool::default());
        let answers = (receiver, Arc::clone(&refuses));
        let task = tokio::spawn(run(node.to_owned(), address, Arc::clone(&held), answers, api));
        Self { held, refuses, acknowledges: sender, task }
    }

    pub fn held(&self) -> Held {
        self.held.lock().unwrap().clone()
    }

    /// From now on, and for what came before.
    pub fn acknowledge(&self) {
        self.acknowledges.send_replace(true);
    }

    /// From now on it can take no configuration, or can again.
    pub fn refuse(&self, refuses: bool) {
        self.refuses.store(refuses, Ordering::Relaxed);
    }

    /// Whether it has failed a check.
    pub fn check(&self) {
        assert!(!self.task.is_finished(), "the agent's task ended; its panic is printed above");
    }
}

impl Drop for FakeAgent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(
    node: String,
    address: SocketAddr,
    held: Arc<Mutex<Held>>,
    (mut acknowledges, refuses): (watch::Receiver<bool>, Arc<AtomicBool>),
    api: Option<Client>,
) {
    let (say, said) = mpsc::channel(8);
    let digests = held.lock().unwrap().clone();
    let hello = from_agent::Message::Hello(wire::Hello {
        node,
        version: held.lock().unwrap().version.unwrap_or(env!("CARGO_PKG_VERSION")).into(),
        guard_digest: digests.guard_digest.map(Digest::to_wire).unwrap_or_default(),
        config_digest: digests.config_digest.map(Digest::to_wire).unwrap_or_default(),
        answers: false,
    });
    say.send(from(hello)).await.unwrap();
    say.send(well()).await.unwrap();
    if digests.config_digest.is_some() {
        say.send(applied(&held)).await.unwrap();
    }
    let endpoint = Endpoint::try_from(format!("http://{address}")).unwrap();
    let dialled = async {
        let mut client = RouterClient::new(endpoint.connect().await.ok()?);
        let stream = client.sync(ReceiverStream::new(said)).await.ok()?.into_inner();
        Some((client, stream))
    };
    let Some((_client, mut stream)) = dialled.await else { return silence().await };
    loop {
        tokio::select! {
            message = stream.message() => {
                let Ok(Some(message)) = message else { return silence().await };
                if let Some(from_controller::Message::Config(payload)) = &message.message
                    && refuses.load(Ordering::Relaxed)
                {
                    let digest = payload.digest.clone();
                    let rejected = wire::Rejected { digest, reason: "it cannot be taken".to_owned() };
                    say.send(from(from_agent::Message::Rejected(rejected))).await.unwrap();
                    continue;
                }
                take(&held, message);
                check_allocations(&held, api.as_ref()).await;
            }
            changed = acknowledges.changed() => if changed.is_err() { return },
        }
        let ready = held.lock().unwrap().config.is_some();
        if ready && *acknowledges.borrow() {
            // And how it does with that, which a real one looks at after each result.
            for word in [applied(&held), well()] {
                if say.send(word).await.is_err() {
                    return silence().await;
                }
            }
        }
    }
}

/// The controller is gone, which is no failure of the agent's: it holds what it holds, as one that dials in vain.
async fn silence() {
    std::future::pending::<()>().await;
}

fn take(held: &Mutex<Held>, message: FromController) {
    let mut held = held.lock().unwrap();
    match message.message.unwrap() {
        from_controller::Message::Guard(payload) => {
            let (digest, guard) = Guard::from_payload(&payload).unwrap();
            assert_ne!(held.guard_digest, Some(digest), "what is held is not sent again");
            (held.guard, held.guard_digest) = (guard, Some(digest));
            held.received.push("guard");
        }
        from_controller::Message::Config(payload) => {
            let (digest, config) = NodeConfig::from_payload(&payload).unwrap();
            assert_ne!(held.config_digest, Some(digest), "what is held is not sent again");
            // One that is about to leave has no pools any more.
            for tenant in config.tenants.iter().filter(|t| !t.pools.is_empty()) {
                assert!(
                    held.guard.tenants.iter().any(|g| g.name == tenant.name),
                    "the guard comes first: {}",
                    tenant.name
                );
            }
            (held.config, held.config_digest) = (Some(config), Some(digest));
            held.received.push("config");
        }
        from_controller::Message::Question(question) => panic!("it said that it takes none: {question:?}"),
    }
}

/// A number that reached a node stands in the Tenant's status.
async fn check_allocations(held: &Mutex<Held>, api: Option<&Client>) {
    let Some(client) = api else { return };
    let carried = held.lock().unwrap().tenants();
    for (name, vni, link_index) in carried {
        let Some(tenant) = Api::<Tenant>::all(client.clone()).get_opt(&name).await.unwrap() else { continue };
        let status = tenant.status.unwrap_or_default();
        assert_eq!(
            (status.vni, status.link_index),
            (Some(vni), Some(link_index)),
            "{name} came before it was kept"
        );
    }
}

fn well() -> FromAgent {
    from(from_agent::Message::Health(wire::Health { frr_running: true, ..Default::default() }))
}

fn applied(held: &Mutex<Held>) -> FromAgent {
    let held = held.lock().unwrap();
    let tenants = held.tenants().into_iter().map(|(name, vni, _)| wire::TenantResult {
        name,
        vni,
        error: String::new(),
    });
    from(from_agent::Message::Applied(wire::Applied {
        guard_digest: held.guard_digest.map(Digest::to_wire).unwrap_or_default(),
        config_digest: held.config_digest.map(Digest::to_wire).unwrap_or_default(),
        tenants: tenants.collect(),
    }))
}

fn from(message: from_agent::Message) -> FromAgent {
    FromAgent { message: Some(message) }
}
