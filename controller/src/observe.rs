//! What is observed of the cluster: one reflector a kind, and the snapshot taken from all. Reads the API server, never
//! writes.
//!
//! An object that cannot be read (a field of a type that nobody expected) stops itself alone: it is told, and what was
//! last read of it stays.

use std::{collections::BTreeMap, fmt::Debug, hash::Hash, sync::Arc, time::Duration};

use calico_vni_crds::{
    Tenant, Underlay,
    calico::{BgpConfiguration, BgpFilter, BgpPeer, BlockAffinity, IpPool, IpamConfig},
};
use calico_vni_planner::{Snapshot, snapshot::Agent};
use futures::{FutureExt, StreamExt, future::BoxFuture};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client, Resource, ResourceExt,
    core::{ApiResource, DeserializeGuard, DynamicObject, ObjectMeta},
    runtime::{
        WatchStreamExt,
        reflector::{
            ObjectRef, Store,
            store::{Writer, WriterDropped},
        },
        watcher,
        watcher::Event,
    },
};
use serde::de::DeserializeOwned;
use tokio::{sync::Notify, task::JoinSet, time::Instant};
use tracing::{debug, info, warn};

use crate::{detect::Served, with_causes};

/// Names of our BGPPeers and BGPFilters begin with it. Labels cannot select them, since Calico may hide labels in JSON.
pub const NAME_PREFIX: &str = "calico-vni-";

/// How often it is told that something is still missing or still fails.
const TELL: Duration = Duration::from_secs(30);

/// The stores of all kinds that a plan depends on.
pub struct Stores {
    served: Served,
    tenants: Store<Tenant>,
    underlays: Store<Underlay>,
    nodes: Store<Node>,
    pools: Store<IpPool>,
    blocks: Store<BlockAffinity>,
    bgp_configurations: Store<BgpConfiguration>,
    ipam_configs: Store<IpamConfig>,
    peers: Store<DynamicObject>,
    filters: Store<DynamicObject>,
}

/// What stands in the cluster at one moment.
pub struct Observed {
    /// As the planner sees it.
    pub snapshot: Snapshot,
    /// BGPPeers whose name begins with [`NAME_PREFIX`], with all their fields: also those that somebody added.
    pub peers: BTreeMap<String, Arc<DynamicObject>>,
    /// BGPFilters of that kind.
    pub filters: BTreeMap<String, Arc<DynamicObject>>,
}

impl Stores {
    /// Starts the reflectors on `tasks`; each change that could matter to a plan is told by `changed`.
    pub fn start(
        client: &Client,
        served: Served,
        changed: &Arc<Notify>,
        tasks: &mut JoinSet<&'static str>,
    ) -> Self {
        let mut start = Start { client, changed, tasks };
        let api = served.api;
        Self {
            served,
            tenants: start.reflect((), "Tenant", |_| true),
            underlays: start.reflect((), "Underlay", |_| true),
            nodes: start.reflect((), "Node", reduce_node),
            pools: start.reflect(api, "IPPool", |_| true),
            blocks: start.reflect(api, "BlockAffinity", |_| true),
            bgp_configurations: start.reflect(api, "BGPConfiguration", |_| true),
            ipam_configs: start.reflect(api, "IPAMConfiguration", |_| true),
            peers: start.reflect(ApiResource::erase::<BgpPeer>(&api), "BGPPeer", has_prefix),
            filters: start.reflect(ApiResource::erase::<BgpFilter>(&api), "BGPFilter", has_prefix),
        }
    }

    /// Waits until every store has been filled once. What is not served and may be missing is not awaited.
    pub async fn ready(&self) -> Result<(), WriterDropped> {
        let mut waiting: Vec<(&str, BoxFuture<'_, Result<(), WriterDropped>>)> = vec![
            ("Tenant", self.tenants.wait_until_ready().boxed()),
            ("Underlay", self.underlays.wait_until_ready().boxed()),
            ("Node", self.nodes.wait_until_ready().boxed()),
            ("IPPool", self.pools.wait_until_ready().boxed()),
            ("BlockAffinity", self.blocks.wait_until_ready().boxed()),
            ("BGPConfiguration", self.bgp_configurations.wait_until_ready().boxed()),
            ("BGPPeer", self.peers.wait_until_ready().boxed()),
            ("BGPFilter", self.filters.wait_until_ready().boxed()),
        ];
        if self.served.ipam_config {
            waiting.push(("IPAMConfiguration", self.ipam_configs.wait_until_ready().boxed()));
        }
        for (kind, mut ready) in waiting {
            loop {
                if let Ok(result) = tokio::time::timeout(TELL, &mut ready).await {
                    break result?;
                }
                warn!(kind, "waiting for the first list of this kind; nothing is planned or served before");
            }
        }
        info!(
            tenants = self.tenants.len(),
            pools = self.pools.len(),
            nodes = self.nodes.len(),
            "everything has been read once"
        );
        Ok(())
    }

    /// What stands now, with what the agents said.
    pub fn observe(&self, agents: BTreeMap<String, Agent>) -> Observed {
        let peers = by_name(&self.peers);
        let filters = by_name(&self.filters);
        let snapshot = Snapshot {
            calico_api: self.served.api,
            tenants: list(&self.tenants),
            underlays: list(&self.underlays),
            pools: list(&self.pools),
            blocks: list(&self.blocks),
            nodes: list(&self.nodes),
            bgp_configurations: list(&self.bgp_configurations),
            ipam_configs: list(&self.ipam_configs),
            peers: peers.values().filter_map(|o| DynamicObject::clone(o).try_parse().ok()).collect(),
            filters: filters.values().filter_map(|o| DynamicObject::clone(o).try_parse().ok()).collect(),
            agents,
            ..Snapshot::default()
        };
        Observed { snapshot, peers, filters }
    }
}

fn list<K>(store: &Store<K>) -> Vec<K>
where
    K: Resource + Clone + 'static,
    K::DynamicType: Eq + Hash + Clone,
{
    store.state().iter().map(|object| K::clone(object)).collect()
}

fn by_name(store: &Store<DynamicObject>) -> BTreeMap<String, Arc<DynamicObject>> {
    store.state().into_iter().map(|object| (object.name_any(), object)).collect()
}

fn has_prefix(object: &mut DynamicObject) -> bool {
    object.name_any().starts_with(NAME_PREFIX)
}

/// A Node's status changes every few seconds and is large; what a plan needs is its labels and few annotations.
fn reduce_node(node: &mut Node) -> bool {
    node.spec = None;
    node.status = None;
    node.annotations_mut()
        .retain(|key, _| key.contains("calico-vni.io/") || key.contains("projectcalico.org/"));
    true
}

struct Start<'a> {
    client: &'a Client,
    changed: &'a Arc<Notify>,
    tasks: &'a mut JoinSet<&'static str>,
}

impl Start<'_> {
    /// Starts one reflector. `keep` may cut an object down, and says whether it is stored at all.
    fn reflect<K>(&mut self, types: K::DynamicType, kind: &'static str, keep: fn(&mut K) -> bool) -> Store<K>
    where
        K: Resource + Clone + Debug + PartialEq + DeserializeOwned + Send + Sync + 'static,
        K::DynamicType: Eq + Hash + Clone + Send + Sync,
    {
        let api: Api<DeserializeGuard<K>> = Api::all_with(self.client.clone(), &types);
        let writer = Writer::new(types.clone());
        let store = writer.as_reader();
        let mut reflector =
            Reflector { kind, types, keep, store: writer.as_reader(), writer, changed: self.changed.clone() };
        self.tasks.spawn(async move {
            let mut events = watcher(api, watcher::Config::default()).default_backoff().boxed();
            let mut told: Option<Instant> = None;
            while let Some(event) = events.next().await {
                match event {
                    Ok(event) => {
                        if told.take().is_some() {
                            info!(kind, "watching again");
                        }
                        reflector.take(event);
                    }
                    Err(error) if told.is_none_or(|at| at.elapsed() >= TELL) => {
                        warn!(
                            kind,
                            error = with_causes(&error),
                            "cannot watch; what was read before stays in use"
                        );
                        told = Some(Instant::now());
                    }
                    Err(error) => debug!(kind, %error, "cannot watch"),
                }
            }
            kind
        });
        store
    }
}

struct Reflector<K>
where
    K: Resource + Clone + 'static,
    K::DynamicType: Eq + Hash + Clone,
{
    kind: &'static str,
    types: K::DynamicType,
    keep: fn(&mut K) -> bool,
    store: Store<K>,
    writer: Writer<K>,
    changed: Arc<Notify>,
}

impl<K> Reflector<K>
where
    K: Resource + Clone + PartialEq + 'static,
    K::DynamicType: Eq + Hash + Clone,
{
    fn take(&mut self, event: Event<DeserializeGuard<K>>) {
        let event = match event {
            Event::Apply(object) => self.read(object).map(Event::Apply),
            Event::InitApply(object) => self.read(object).map(Event::InitApply),
            // What is deleted is known by its name, whether or not the rest can be read.
            Event::Delete(object) => self.stored(object.meta()).map(Event::Delete),
            Event::Init => Some(Event::Init),
            Event::InitDone => Some(Event::InitDone),
        };
        let Some(event) = event else { return };
        let matters = match &event {
            Event::Apply(object) => self.stored(object.meta()).is_none_or(|old| !same(&old, object)),
            Event::Delete(_) | Event::InitDone => true,
            Event::Init | Event::InitApply(_) => false,
        };
        self.writer.apply_watcher_event(&event);
        if matters {
            self.changed.notify_one();
        }
    }

    /// The object without what is of no use here; `None` when it is not to be stored.
    fn read(&self, object: DeserializeGuard<K>) -> Option<K> {
        match object.0 {
            Ok(mut object) => {
                object.meta_mut().managed_fields = None;
                object.annotations_mut().remove("kubectl.kubernetes.io/last-applied-configuration");
                (self.keep)(&mut object).then_some(object)
            }
            Err(invalid) => {
                let name = invalid.metadata.name.as_deref().unwrap_or_default();
                warn!(
                    kind = self.kind,
                    name,
                    error = invalid.error,
                    "this object cannot be read; what was read of it before stays"
                );
                self.stored(&invalid.metadata)
            }
        }
    }

    fn stored(&self, meta: &ObjectMeta) -> Option<K> {
        let name = meta.name.as_deref().unwrap_or_default();
        self.store.get(&ObjectRef::new_with(name, self.types.clone())).map(|object| K::clone(&object))
    }
}

/// Whether nothing changed but the version.
fn same<K: Resource + Clone + PartialEq>(old: &K, new: &K) -> bool {
    let mut old = old.clone();
    old.meta_mut().resource_version.clone_from(&new.meta().resource_version);
    old == *new
}

#[cfg(test)]
mod tests {
    use calico_vni_crds::calico::CalicoApi;
    use serde_json::{Value, json};

    use super::*;

    fn reflector() -> Reflector<IpPool> {
        let writer = Writer::new(CalicoApi::V3);
        let changed = Arc::new(Notify::new());
        Reflector {
            kind: "IPPool",
            types: CalicoApi::V3,
            keep: |_| true,
            store: writer.as_reader(),
            writer,
            changed,
        }
    }

    fn pool(version: &str, cidr: &Value) -> DeserializeGuard<IpPool> {
        serde_json::from_value(json!({
            "metadata": { "name": "red", "resourceVersion": version, "managedFields": [{ "manager": "x" }] },
            "spec": { "cidr": cidr },
        }))
        .unwrap()
    }

    fn signalled(reflector: &Reflector<IpPool>) -> bool {
        reflector.changed.notified().now_or_never().is_some()
    }

    fn stored(reflector: &Reflector<IpPool>) -> Vec<(String, String)> {
        let objects = reflector.store.state();
        objects.iter().map(|p| (p.resource_version().unwrap(), p.spec.cidr.clone())).collect()
    }

    #[test]
    fn only_changes_that_matter_call_for_a_plan() {
        let mut reflector = reflector();
        reflector.take(Event::Init);
        reflector.take(Event::InitApply(pool("1", &json!("10.0.0.0/16"))));
        assert!(!signalled(&reflector) && stored(&reflector).is_empty(), "not before the list is whole");
        reflector.take(Event::InitDone);
        assert!(signalled(&reflector));
        assert_eq!(reflector.store.state()[0].metadata.managed_fields, None);

        reflector.take(Event::Apply(pool("2", &json!("10.0.0.0/16"))));
        assert!(!signalled(&reflector), "a new version of the same");
        assert_eq!(stored(&reflector), [("2".to_owned(), "10.0.0.0/16".to_owned())], "is kept all the same");
        reflector.take(Event::Apply(pool("3", &json!("10.1.0.0/16"))));
        assert!(signalled(&reflector));
        reflector.take(Event::Delete(pool("4", &json!("10.1.0.0/16"))));
        assert!(signalled(&reflector) && stored(&reflector).is_empty());
    }

    #[test]
    fn an_object_that_cannot_be_read_stays_as_it_was_read() {
        let mut reflector = reflector();
        let first = ("1".to_owned(), "10.0.0.0/16".to_owned());
        for event in [Event::Init, Event::InitApply(pool("1", &json!("10.0.0.0/16"))), Event::InitDone] {
            reflector.take(event);
        }
        reflector.take(Event::Apply(pool("2", &json!(["no", "text"]))));
        assert_eq!(stored(&reflector), std::slice::from_ref(&first));
        for event in [Event::Init, Event::InitApply(pool("3", &json!(7))), Event::InitDone] {
            reflector.take(event);
        }
        assert_eq!(stored(&reflector), [first], "over a new list too");
        reflector.take(Event::Delete(pool("4", &json!(7))));
        assert!(stored(&reflector).is_empty());
    }

    #[test]
    fn of_a_node_only_what_plans_need_is_kept() {
        let mut node: Node = serde_json::from_value(json!({
            "metadata": {
                "name": "n1", "labels": { "zone": "a" },
                "annotations": { "calico-vni.io/router-index": "4", "projectcalico.org/ASNumber": "64513", "csi/x": "y" },
            },
            "spec": { "podCIDR": "10.0.0.0/24" }, "status": { "phase": "Running" },
        }))
        .unwrap();
        assert!(reduce_node(&mut node));
        assert!(node.spec.is_none() && node.status.is_none());
        assert_eq!(
            node.annotations().keys().collect::<Vec<_>>(),
            ["calico-vni.io/router-index", "projectcalico.org/ASNumber"]
        );
        assert_eq!(node.labels()["zone"], "a");
    }
}
