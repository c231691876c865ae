//! What is observed of the cluster: one reflector a kind, and the snapshot taken from all. Reads the API server, never
//! writes.
//!
//! An object that cannot be read (a field of a type that nobody expected) stops itself alone: it is told, and what was
//! last read of it stays.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::Hash,
    sync::Arc,
    time::Duration,
};

use calico_vni_crds::{
    Tenant, Underlay,
    calico::{
        BgpConfiguration, BgpFilter, BgpPeer, BlockAffinity, Calico, CalicoApi, CalicoSpec,
        FelixConfiguration, IpPool, IpamConfig,
    },
    keys,
    tenant::SERVICES,
};
use calico_vni_planner::{
    Snapshot,
    snapshot::{Agent, PasswordSecret, Passwords},
};
use futures::{FutureExt, StreamExt, TryFutureExt, future::BoxFuture, stream::FuturesUnordered};
use k8s_openapi::api::{
    core::v1::{Namespace, Node, Secret},
    discovery::v1::EndpointSlice,
    networking::v1::ServiceCIDR,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    core::{ApiResource, DeserializeGuard, DynamicObject},
    runtime::{reflector::Store, watcher},
};
use serde::de::DeserializeOwned;
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
};
use tracing::{info, warn};

use self::{
    blocks::Blocks,
    reduce::{endpoint_slice, has_prefix, node, secret},
    reflect::Start,
};
use crate::detect::Served;

mod blocks;
mod reduce;
mod reflect;

/// Names of our BGPPeers and BGPFilters begin with it. Labels cannot select them, since Calico may hide labels in JSON.
pub const NAME_PREFIX: &str = "calico-vni-";

/// A kind, and when its first list has been read.
type Waiting<'s> = (&'static str, BoxFuture<'s, Result<(), &'static str>>);

const TENANTS: &str = "Tenant";
const BLOCKS: &str = "BlockAffinity";
const SLICES: &str = "EndpointSlice";

/// How often it is told that something is still missing or still fails.
const TELL: Duration = Duration::from_secs(30);

/// The stores of all kinds that a plan depends on.
pub struct Stores {
    served: Served,
    tenants: Store<Tenant>,
    underlays: Store<Underlay>,
    nodes: Store<Node>,
    pools: Store<IpPool>,
    blocks: Blocks,
    bgp_configurations: Store<BgpConfiguration>,
    ipam_configs: Option<Store<IpamConfig>>,
    felix_configurations: Option<Store<FelixConfiguration>>,
    namespaces: Store<Namespace>,
    service_cidrs: Option<Store<ServiceCIDR>>,
    endpoint_slices: Store<EndpointSlice>,
    /// Which EndpointSlices are watched; nothing before the Tenants are known.
    services: watch::Sender<Option<watcher::Config>>,
    peers: Store<DynamicObject>,
    filters: Store<DynamicObject>,
    /// Those with BGP passwords, of the controller's own namespace, where it has one.
    secrets: Option<Store<Secret>>,
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
        namespace: Option<&str>,
        changed: &Arc<Notify>,
        tasks: &mut JoinSet<&'static str>,
    ) -> Self {
        let mut start = Start { client, changed, tasks };
        let api = served.api;
        let (services, selection) = watch::channel(None);
        let passwords = format!("{}={}", keys::BGP_PASSWORD, keys::BGP_PASSWORD_YES);
        let (_, passwords) = watch::channel(Some(watcher::Config::default().labels(&passwords)));
        let secrets = namespace.map(|namespace| {
            start.follow(Api::namespaced(client.clone(), namespace), (), "Secret", secret, passwords)
        });
        let (blocks, mut writer) = Blocks::new();
        let affinities: Api<DeserializeGuard<BlockAffinity>> = Api::all_with(client.clone(), &api);
        start.watch(affinities, BLOCKS, reflect::all(), move |event| writer.take(event));
        Self {
            served,
            tenants: start.reflect((), TENANTS, |_| true),
            underlays: start.reflect((), "Underlay", |_| true),
            nodes: start.reflect((), "Node", node),
            namespaces: start.reflect((), "Namespace", reduce::namespace),
            endpoint_slices: start.follow(Api::all(client.clone()), (), SLICES, endpoint_slice, selection),
            services,
            secrets,
            service_cidrs: served.service_cidr.then(|| start.reflect((), "ServiceCIDR", |_| true)),
            pools: start.reflect(api, "IPPool", |_| true),
            blocks,
            bgp_configurations: start.reflect(api, "BGPConfiguration", |_| true),
            ipam_configs: served.ipam_config.then(|| start.reflect(api, "IPAMConfiguration", |_| true)),
            felix_configurations: served
                .felix_configuration
                .then(|| start.reflect(api, "FelixConfiguration", |_| true)),
            peers: start.reflect(ApiResource::erase::<BgpPeer>(&api), "BGPPeer", has_prefix),
            filters: start.reflect(ApiResource::erase::<BgpFilter>(&api), "BGPFilter", has_prefix),
        }
    }

    /// The group that Calico's kinds are read from.
    pub fn served(&self) -> Served {
        self.served
    }

    /// The group that Calico's kinds are read from and written to.
    pub fn api(&self) -> CalicoApi {
        self.served.api
    }

    /// Waits until every store has been filled once; `waits` is told for which kinds. What is not served and may be missing is
    /// not awaited. Fails with the kind whose reflector has ended.
    pub async fn ready(&self, mut waits: impl FnMut(Vec<&'static str>)) -> Result<(), &'static str> {
        fn read<'s, K>(kind: &'static str, store: &'s Store<K>) -> Waiting<'s>
        where
            K: Resource + Clone + Send + Sync + 'static,
            K::DynamicType: Eq + Hash + Clone + Send + Sync,
        {
            (kind, store.wait_until_ready().map_err(move |_| kind).boxed())
        }
        let mut waiting: Vec<Waiting<'_>> = vec![
            read(TENANTS, &self.tenants),
            read("Underlay", &self.underlays),
            read("Node", &self.nodes),
            read("Namespace", &self.namespaces),
            read("IPPool", &self.pools),
            (BLOCKS, self.blocks.wait_until_ready().map_err(|_| BLOCKS).boxed()),
            read("BGPConfiguration", &self.bgp_configurations),
            read("BGPPeer", &self.peers),
            read("BGPFilter", &self.filters),
        ];
        if let Some(store) = &self.ipam_configs {
            waiting.push(read("IPAMConfiguration", store));
        }
        if let Some(store) = &self.felix_configurations {
            waiting.push(read("FelixConfiguration", store));
        }
        if let Some(store) = &self.service_cidrs {
            waiting.push(read("ServiceCIDR", store));
        }
        if let Some(store) = &self.secrets {
            waiting.push(read("Secret", store));
        }
        waiting.push(read(SLICES, &self.endpoint_slices));
        let mut missing: BTreeSet<&'static str> = waiting.iter().map(|(kind, _)| *kind).collect();
        let mut lists: FuturesUnordered<_> =
            waiting.into_iter().map(|(kind, ready)| ready.map_ok(move |()| kind)).collect();
        while !missing.is_empty() {
            waits(missing.iter().copied().collect());
            match tokio::time::timeout(TELL, lists.next()).await {
                Ok(Some(kind)) => {
                    missing.remove(kind?);
                    if !missing.contains(TENANTS) {
                        // Which EndpointSlices are wanted is known from the Tenants.
                        self.follow_services();
                    }
                }
                Ok(None) => break,
                Err(_) => {
                    warn!(
                        ?missing,
                        "waiting for the first list of these kinds; nothing is planned or served before"
                    );
                }
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
    pub fn observe(&self, agents: BTreeMap<String, Arc<Agent>>) -> Observed {
        self.follow_services();
        let peers = by_name(&self.peers);
        let filters = by_name(&self.filters);
        let snapshot = Snapshot {
            calico_api: self.served.api,
            tenants: list(&self.tenants),
            underlays: list(&self.underlays),
            pools: list(&self.pools),
            blocks: self.blocks.state(),
            nodes: self.nodes.state(),
            bgp_configurations: list(&self.bgp_configurations),
            ipam_configs: self.ipam_configs.as_ref().map(list).unwrap_or_default(),
            felix_configurations: self.felix_configurations.as_ref().map(list).unwrap_or_default(),
            namespaces: list(&self.namespaces),
            service_cidrs: self.service_cidrs.as_ref().map(list).unwrap_or_default(),
            endpoint_slices: list(&self.endpoint_slices),
            peers: parsed(&peers),
            filters: parsed(&filters),
            passwords: Passwords::Read(self.secrets.as_ref().map(passwords).unwrap_or_default()),
            agents,
            ..Snapshot::default()
        };
        Observed { snapshot, peers, filters }
    }

    /// Watches the EndpointSlices of the Services that Tenants name, and no others.
    fn follow_services(&self) {
        let tenants = self.tenants.state();
        let named = tenants.iter().flat_map(|tenant| &tenant.spec.shared_services.services);
        let wanted = Some(of_services(named.map(String::as_str)));
        self.services.send_if_modified(|config| {
            let differs = *config != wanted;
            if differs {
                *config = wanted;
            }
            differs
        });
    }
}

/// A watch on the EndpointSlices of these Services, each `namespace/name`, and of those that every tenant reaches
/// unless it says otherwise. Kubernetes labels each slice with its Service's name; what has that name in another
/// namespace comes along. Where very many are named, all are watched: the selector is part of an address.
fn of_services<'a>(named: impl Iterator<Item = &'a str>) -> watcher::Config {
    const MOST: usize = 64;
    let names: BTreeSet<&str> =
        named.chain(SERVICES).filter_map(|service| Some(service.split_once('/')?.1)).collect();
    let config = watcher::Config::default();
    if names.len() > MOST {
        return config;
    }
    let names: Vec<&str> = names.into_iter().collect();
    config.labels(&format!("{} in ({})", reduce::SERVICE_NAME, names.join(",")))
}

fn list<K>(store: &Store<K>) -> Vec<K>
where
    K: Resource + Clone + 'static,
    K::DynamicType: Eq + Hash + Clone,
{
    store.state().iter().map(|object| K::clone(object)).collect()
}

/// The objects as the planner knows them; of another form they are none of ours.
pub fn parsed<S: CalicoSpec + DeserializeOwned>(
    objects: &BTreeMap<String, Arc<DynamicObject>>,
) -> Vec<Calico<S>> {
    let parse = |object: &Arc<DynamicObject>| {
        // What is not needed is not copied: there is one of each kind for each tenant, and each plan wants all.
        let spec = S::deserialize(object.data.get("spec")?).ok()?;
        Some(Calico { types: object.types.clone(), metadata: object.metadata.clone(), spec })
    };
    objects.values().filter_map(parse).collect()
}

fn passwords(store: &Store<Secret>) -> BTreeMap<String, PasswordSecret> {
    let secrets = store.state().into_iter();
    secrets.filter_map(|secret| Some((secret.name_any(), PasswordSecret::of(&secret)?))).collect()
}

fn by_name(store: &Store<DynamicObject>) -> BTreeMap<String, Arc<DynamicObject>> {
    store.state().into_iter().map(|object| (object.name_any(), object)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_selected_by_the_services_that_tenants_name() {
        let selector = |named: &[&str]| of_services(named.iter().copied()).label_selector;
        assert_eq!(
            selector(&["default/kubernetes", "monitoring/push"]).as_deref(),
            Some("kubernetes.io/service-name in (kube-dns,kubernetes,push)")
        );
        let many: Vec<String> = (0..100).map(|i| format!("a/s{i}")).collect();
        assert_eq!(selector(&many.iter().map(String::as_str).collect::<Vec<_>>()), None);
    }
}
