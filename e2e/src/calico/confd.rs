//! Follows the API server and hands every node's changed files to BIRD.
//!
//! Effects are the watches and the [`BirdSink`]; which files change is decided by [`Files`], which is pure.

use std::{collections::BTreeMap, fmt::Display, sync::Arc, time::Duration};

use calico_vni_crds::calico::{BgpConfiguration, BgpFilter, BgpPeer, BlockAffinity, CalicoApi, IpPool};
use futures::{FutureExt, Stream, StreamExt, future, stream};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client, Resource,
    runtime::{
        WatchStreamExt, reflector,
        reflector::{Lookup, Store, store::Writer},
        watcher,
    },
};
use serde::de::DeserializeOwned;
use tokio::{select, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{Family, cluster::Cluster, filter::Refused, render::render, state::CalicoState};

/// Pause before a file that a node did not take is handed over again.
const AGAIN: Duration = Duration::from_secs(1);
/// Files that are handed over at the same time.
const AT_ONCE: usize = 16;
/// Changes that are gathered, if they are there already, before files are rendered.
const GATHERED: usize = 1024;

/// Takes configurations to the nodes' BIRD daemons.
pub trait BirdSink: Send + Sync {
    /// Why a node did not take a file.
    type Error: Display + Send;

    /// Puts the file in place and has the daemon read it (`birdc configure`). Called only for what changed.
    fn configure(
        &self,
        node: &str,
        family: Family,
        text: &str,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

/// A file that a node is to get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// The node.
    pub node: String,
    /// The daemon.
    pub family: Family,
    /// The whole configuration.
    pub text: String,
}

/// What the nodes have, and what of their configuration was usable last.
#[derive(Debug, Default)]
pub struct Files {
    taken: BTreeMap<(String, Family), String>,
    usable: BTreeMap<(String, Family), String>,
    refused: BTreeMap<(String, Family), Refused>,
}

impl Files {
    /// The files that differ from what the nodes have. While something in a main part is unusable, the last usable one
    /// stays; a node that never had one gets nothing.
    pub fn due(&mut self, cluster: &Cluster) -> Vec<File> {
        let exists = |(node, _): &(String, Family)| cluster.nodes.contains_key(node);
        self.taken.retain(|key, _| exists(key));
        self.usable.retain(|key, _| exists(key));
        self.refused.retain(|key, _| exists(key));
        let mut due = Vec::new();
        for (node, family) in cluster.nodes.keys().flat_map(|node| Family::ALL.map(|family| (node, family))) {
            let Some(config) = render(cluster, node, family) else { continue };
            let key = (node.clone(), family);
            let text = if let Some(refused) = &config.refused {
                self.refused.insert(key.clone(), refused.clone());
                let Some(main) = self.usable.get(&key) else { continue };
                config.with_main(main)
            } else {
                self.refused.remove(&key);
                self.usable.insert(key.clone(), config.main.clone());
                config.text()
            };
            if self.taken.get(&key) != Some(&text) {
                due.push(File { node: node.clone(), family, text });
            }
        }
        due
    }

    /// Notes that a node has taken a file.
    pub fn taken(&mut self, file: File) {
        self.taken.insert((file.node, file.family), file.text);
    }

    /// Why sessions and filters of a node stand still.
    pub fn refused(&self, node: &str, family: Family) -> Option<&Refused> {
        self.refused.get(&(node.to_owned(), family))
    }
}

/// The task.
pub struct Confd<S> {
    client: Client,
    api: CalicoApi,
    sink: S,
}

impl<S: BirdSink> Confd<S> {
    /// A task that reads Calico's kinds from `api`.
    pub fn new(client: Client, api: CalicoApi, sink: S) -> Self {
        Self { client, api, sink }
    }

    /// Runs until `stop`. Nothing is handed over before all kinds have been listed once.
    pub async fn run(self, stop: CancellationToken) {
        let (stores, changes) = Stores::follow(&self.client, self.api);
        let mut changes = changes.ready_chunks(GATHERED);
        let mut files = Files::default();
        let mut again = false;
        loop {
            select! {
                () = stop.cancelled() => return,
                change = changes.next() => if change.is_none() { return },
                () = sleep(AGAIN), if again => {}
            }
            if stores.ready() {
                again = !self.hand_over(&mut files, &Cluster::new(&stores.state())).await;
            }
        }
    }

    /// Hands over what is due and says whether all of it was taken.
    async fn hand_over(&self, files: &mut Files, cluster: &Cluster) -> bool {
        let due = files.due(cluster);
        for ((node, family), refused) in &files.refused {
            debug!(node, %family, %refused, "sessions and filters stay as they are");
        }
        let handed = stream::iter(due.into_iter().map(async |file| {
            let outcome = self.sink.configure(&file.node, file.family, &file.text).await;
            (file, outcome)
        }));
        let handed: Vec<_> = handed.buffer_unordered(AT_ONCE).collect().await;
        let mut all = true;
        for (file, outcome) in handed {
            match outcome {
                Ok(()) => {
                    info!(node = file.node, family = %file.family, "BIRD configured");
                    files.taken(file);
                }
                Err(error) => {
                    warn!(node = file.node, family = %file.family, %error, "BIRD not configured");
                    all = false;
                }
            }
        }
        all
    }
}

/// The kinds that are followed.
struct Stores {
    nodes: Store<Node>,
    pools: Store<IpPool>,
    peers: Store<BgpPeer>,
    filters: Store<BgpFilter>,
    configurations: Store<BgpConfiguration>,
    affinities: Store<BlockAffinity>,
}

impl Stores {
    fn follow(client: &Client, api: CalicoApi) -> (Self, impl Stream<Item = ()> + Send + Unpin + use<>) {
        let mut changes = Vec::new();
        let stores = Self {
            nodes: follow(client, &(), &mut changes),
            pools: follow(client, &api, &mut changes),
            peers: follow(client, &api, &mut changes),
            filters: follow(client, &api, &mut changes),
            configurations: follow(client, &api, &mut changes),
            affinities: follow(client, &api, &mut changes),
        };
        (stores, stream::select_all(changes))
    }

    fn ready(&self) -> bool {
        fn listed<K>(store: &Store<K>) -> bool
        where
            K: Lookup + Clone + 'static,
            K::DynamicType: Eq + std::hash::Hash + Clone,
        {
            matches!(store.wait_until_ready().now_or_never(), Some(Ok(())))
        }
        listed(&self.nodes)
            && listed(&self.pools)
            && listed(&self.peers)
            && listed(&self.filters)
            && listed(&self.configurations)
            && listed(&self.affinities)
    }

    fn state(&self) -> CalicoState {
        CalicoState {
            nodes: self.nodes.state(),
            pools: self.pools.state(),
            peers: self.peers.state(),
            filters: self.filters.state(),
            configurations: self.configurations.state(),
            affinities: self.affinities.state(),
        }
    }
}

/// Keeps a store of one kind, and tells of each change by an item of a stream that is added to `changes`.
fn follow<K>(
    client: &Client,
    dyntype: &K::DynamicType,
    changes: &mut Vec<stream::BoxStream<'static, ()>>,
) -> Store<K>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
    K::DynamicType: Eq + std::hash::Hash + Clone + Send + Sync,
{
    let writer = Writer::new(dyntype.clone());
    let store = writer.as_reader();
    let kind = K::kind(dyntype).into_owned();
    let objects = watcher(Api::all_with(client.clone(), dyntype), watcher::Config::default());
    let told = reflector(writer, objects.default_backoff()).filter_map(move |event| {
        if let Err(error) = &event {
            debug!(kind, %error, "watch interrupted");
        }
        future::ready(event.is_ok().then_some(()))
    });
    changes.push(told.boxed());
    store
}

impl<S: BirdSink> BirdSink for Arc<S> {
    type Error = S::Error;

    async fn configure(&self, node: &str, family: Family, text: &str) -> Result<(), Self::Error> {
        self.as_ref().configure(node, family, text).await
    }
}
