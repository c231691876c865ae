//! Plan against cluster: the writes that are missing. Pure.
//!
//! Each function gives the writes of one stage; [`super::Applier`] carries the stages out in order. An object that is
//! right gives no write, so a cluster that is right gives none at all.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use calico_vni_crds::{
    Tenant,
    calico::{BgpPeer, BgpPeerSpec, Calico, CalicoSpec},
    keys,
};
use calico_vni_planner::{
    Plan,
    plan::{About, Notice},
};
use k8s_openapi::api::core::v1::{Namespace, Node};
use kube::{ResourceExt, core::DynamicObject};
use serde::Serialize;
use serde_json::{Value, json};

use super::write::{Identity, Version, Write};
use crate::observe::Observed;

/// What the API server made of what was written: the form that was wanted, and the one that it holds since. A server
/// that fills in a default is not asked again and again to take it out.
pub type Settled = BTreeMap<(&'static str, String), (Value, Value)>;

/// Tenants to be made, with our finalizer from the beginning.
pub fn new_tenants(plan: &Plan, observed: &Observed) -> Vec<Write> {
    let standing: BTreeSet<_> = observed.snapshot.tenants.iter().map(ResourceExt::name_any).collect();
    let missing = plan.tenants.iter().filter(|(name, _)| !standing.contains(*name));
    let held = |tenant: &Tenant| {
        let mut tenant = tenant.clone();
        tenant.finalizers_mut().push(keys::FINALIZER.to_owned());
        Write::CreateTenant(Box::new(tenant))
    };
    missing.map(|(_, tenant)| held(tenant)).collect()
}

/// What has to be in the cluster before it is used.
pub fn allocations(plan: &Plan, observed: &Observed) -> Vec<Write> {
    let tenants = observed.snapshot.tenants.iter().filter_map(|tenant| {
        let allocation = *plan.allocations.tenants.get(&tenant.name_any())?;
        Some(Write::AllocateTenant {
            at: Version::of(tenant),
            uid: tenant.uid().unwrap_or_default(),
            allocation,
        })
    });
    let nodes = observed.snapshot.nodes.iter().filter_map(|node| {
        let index = *plan.allocations.nodes.get(&node.name_any())?;
        let before = node.annotations().get(keys::ROUTER_INDEX).cloned();
        Some(Write::AllocateNode { at: Identity::of(node.as_ref()), index, before })
    });
    tenants.chain(nodes).collect()
}

/// Finalizers of Tenants that are in use.
pub fn holds(plan: &Plan, observed: &Observed) -> Vec<Write> {
    let without = |tenant: &&Tenant| {
        plan.finalizers.contains(&tenant.name_any())
            && !tenant.finalizers().iter().any(|f| f == keys::FINALIZER)
    };
    let hold = |tenant: &Tenant| {
        let mut finalizers = tenant.finalizers().to_vec();
        finalizers.push(keys::FINALIZER.to_owned());
        Write::SetFinalizers { at: Version::of(tenant), finalizers, held: true }
    };
    observed.snapshot.tenants.iter().filter(without).map(hold).collect()
}

/// Ready labels of Nodes: those that are missing, wrong, or too many.
pub fn labels(plan: &Plan, observed: &Observed) -> Vec<Write> {
    let of_node = |node: &Node| {
        let name = node.name_any();
        let wanted = plan.labels.get(&name)?;
        let ready = plan.label_values.get(&name).map_or(keys::READY, String::as_str);
        // Of thousands of nodes nearly all are right.
        let standing = node.labels().range(keys::READY_LABEL_PREFIX.to_owned()..);
        let standing = standing
            .map_while(|(key, value)| Some((key.strip_prefix(keys::READY_LABEL_PREFIX)?, value.as_str())));
        if standing.eq(wanted.iter().map(|tenant| (&**tenant, ready))) {
            return None;
        }
        let mut labels: BTreeMap<String, Option<String>> = node
            .labels()
            .keys()
            .filter(|key| {
                key.strip_prefix(keys::READY_LABEL_PREFIX).is_some_and(|tenant| !wanted.contains(tenant))
            })
            .map(|key| (key.clone(), None))
            .collect();
        for key in wanted.iter().map(|tenant| keys::ready_label(tenant)) {
            if node.labels().get(&key).is_none_or(|value| value != ready) {
                labels.insert(key, Some(ready.to_owned()));
            }
        }
        (!labels.is_empty()).then(|| Write::LabelNode { at: Identity::of(node), labels })
    };
    observed.snapshot.nodes.iter().filter_map(|node| of_node(node)).collect()
}

/// Annotations of Namespaces: those that are missing, wrong, or to be taken away. One that is being deleted gets no
/// more pods.
pub fn namespaces(plan: &Plan, observed: &Observed) -> Vec<Write> {
    let of_namespace = |namespace: &Namespace| {
        let wanted = plan.namespaces.get(&namespace.name_any())?;
        let standing = namespace.annotations();
        let mut annotations = wanted.clone();
        annotations.retain(|key, value| standing.get(key) != value.as_ref());
        let differs = !annotations.is_empty() && namespace.metadata.deletion_timestamp.is_none();
        differs.then(|| Write::AnnotateNamespace { at: Identity::of(namespace), annotations })
    };
    observed.snapshot.namespaces.iter().filter_map(of_namespace).collect()
}

/// BGPPeers of ours that the plan does not hold.
pub fn surplus_peers(plan: &Plan, observed: &Observed) -> Vec<Write> {
    surplus(&plan.peers, &observed.peers).map(Write::DeletePeer).collect()
}

/// BGPFilters of ours that the plan does not hold and that no BGPPeer which still stands goes by: BIRD would talk to
/// such a peer without any filter.
pub fn surplus_filters(plan: &Plan, observed: &Observed) -> Vec<Write> {
    let in_use: BTreeSet<_> = observed.peers.values().flat_map(|peer| filters_of(peer)).collect();
    surplus(&plan.filters, &observed.filters)
        .filter(|at| !in_use.contains(&at.name))
        .map(Write::DeleteFilter)
        .collect()
}

fn surplus<T>(
    wanted: &BTreeMap<String, T>,
    standing: &BTreeMap<String, Arc<DynamicObject>>,
) -> impl Iterator<Item = Identity> {
    standing
        .values()
        .filter(|object| {
            is_ours(object)
                && !wanted.contains_key(&object.name_any())
                && object.metadata.deletion_timestamp.is_none()
        })
        .map(|object| Identity::of(object.as_ref()))
}

/// BGPFilters that are missing or not as they should be.
pub fn filters(plan: &Plan, observed: &Observed, settled: &Settled) -> Puts {
    let mut puts = Puts::default();
    for filter in plan.filters.values() {
        puts.compare("BGPFilter", filter, observed.filters.get(filter.name()), settled, |object| {
            Write::PutFilter(Box::new(object))
        });
    }
    puts
}

/// BGPPeers that are missing or not as they should be.
pub fn peers(plan: &Plan, observed: &Observed, settled: &Settled) -> Puts {
    let mut puts = Puts::default();
    for peer in plan.peers.values() {
        let filters: BTreeSet<_> = peer.spec.filters.iter().flatten().cloned().collect();
        puts.compare("BGPPeer", peer, observed.peers.get(peer.name()), settled, |object| Write::PutPeer {
            peer: Box::new(object),
            filters,
        });
    }
    puts
}

/// BGPPeers of ours that go by one of these filters, which do not stand: without them BIRD would say everything.
pub fn exposed_peers(observed: &Observed, filters: &BTreeSet<String>) -> Vec<Write> {
    let exposed = |peer: &&Arc<DynamicObject>| {
        is_ours(peer)
            && peer.metadata.deletion_timestamp.is_none()
            && filters_of(peer).iter().any(|name| filters.contains(name))
    };
    observed
        .peers
        .values()
        .filter(exposed)
        .map(|peer| Write::DeletePeer(Identity::of(peer.as_ref())))
        .collect()
}

/// Finalizers of Tenants that are finished.
pub fn releases(plan: &Plan, observed: &Observed) -> Vec<Write> {
    let finished = |tenant: &&Tenant| {
        plan.finished_tenants.contains(&tenant.name_any())
            && tenant.finalizers().iter().any(|f| f == keys::FINALIZER)
    };
    let release = |tenant: &Tenant| {
        let finalizers = tenant.finalizers().iter().filter(|f| *f != keys::FINALIZER).cloned().collect();
        Write::SetFinalizers { at: Version::of(tenant), finalizers, held: false }
    };
    observed.snapshot.tenants.iter().filter(finished).map(release).collect()
}

/// Tenants that no pool names any more.
pub fn surplus_tenants(plan: &Plan, observed: &Observed) -> Vec<Write> {
    let surplus = |tenant: &&Tenant| {
        plan.tenants_to_delete.contains(&tenant.name_any()) && tenant.metadata.deletion_timestamp.is_none()
    };
    observed
        .snapshot
        .tenants
        .iter()
        .filter(surplus)
        .map(|tenant| Write::DeleteTenant(Identity::of(tenant)))
        .collect()
}

/// Names of the filters that a BGPPeer goes by.
pub fn filters_of(peer: &DynamicObject) -> Vec<String> {
    let names = peer.data.pointer("/spec/filters").and_then(Value::as_array);
    names.into_iter().flatten().filter_map(|name| name.as_str().map(ToOwned::to_owned)).collect()
}

/// Whether the controller made it. The name alone says nothing: users may begin names as they like.
pub fn is_ours(object: &DynamicObject) -> bool {
    labels_as_calico_reads(object).get(keys::MANAGED_BY).is_some_and(|by| by == keys::MANAGED_BY_TENANT)
}

fn labels_as_calico_reads(object: &DynamicObject) -> BTreeMap<String, String> {
    // The kind makes no difference to where Calico keeps labels.
    BgpPeer { types: None, metadata: object.metadata.clone(), spec: BgpPeerSpec::default() }.labels()
}

/// Writes for objects that are wholly ours.
#[derive(Debug, Default)]
pub struct Puts {
    /// What is missing.
    pub writes: Vec<Write>,
    /// Objects that will not be written now: somebody else's has the name, or the one that has it is being deleted.
    pub blocked: BTreeSet<String>,
    /// Objects that do not stand at all yet.
    pub missing: BTreeSet<String>,
    /// What users have to be told of them.
    pub notices: BTreeSet<Notice>,
}

impl Puts {
    fn compare<S: CalicoSpec + Serialize>(
        &mut self,
        kind: &'static str,
        wanted: &Calico<S>,
        standing: Option<&Arc<DynamicObject>>,
        settled: &Settled,
        write: impl FnOnce(DynamicObject) -> Write,
    ) {
        let name = wanted.name();
        let spec = serde_json::to_value(&wanted.spec).expect("a spec is plain data");
        let mut object = DynamicObject {
            types: wanted.types.clone(),
            metadata: wanted.metadata.clone(),
            data: json!({ "spec": spec }),
        };
        let Some(standing) = standing else {
            self.missing.insert(name.to_owned());
            self.writes.push(write(object));
            return;
        };
        if !is_ours(standing) {
            self.blocked.insert(name.to_owned());
            self.notices.extend(name_taken(kind, name, wanted.metadata.labels.as_ref()));
            return;
        }
        // It comes again when it is gone.
        if standing.metadata.deletion_timestamp.is_some() {
            self.blocked.insert(name.to_owned());
            return;
        }
        let (wanted_form, held) = (form(&object), form(standing));
        let right = wanted_form == held
            || settled
                .get(&(kind, name.to_owned()))
                .is_some_and(|(from, to)| *from == wanted_form && *to == held);
        if right {
            return;
        }
        // What others keep in the metadata stays, but for Calico's JSON, which would win over the labels beside it.
        let ours = std::mem::replace(&mut object.metadata, standing.metadata.clone());
        object.labels_mut().extend(ours.labels.unwrap_or_default());
        object.metadata.owner_references = ours.owner_references;
        object.metadata.managed_fields = None;
        object.annotations_mut().remove(keys::CALICO_METADATA);
        self.writes.push(write(object));
    }
}

/// What is compared of an object: its spec, its owners, and the labels by which it is ours.
pub fn form(object: &DynamicObject) -> Value {
    let mut labels = labels_as_calico_reads(object);
    labels.retain(|key, _| key == keys::MANAGED_BY || key == keys::OWNER);
    json!({ "spec": object.data.get("spec"), "labels": labels, "owners": object.owner_references() })
}

fn name_taken(kind: &str, name: &str, labels: Option<&BTreeMap<String, String>>) -> Option<Notice> {
    let tenant = labels?.get(keys::OWNER)?.clone();
    let message = format!(
        "{kind} {name} exists and was not made by calico-vni (label {}={} is missing): it is left alone, and the tenant is not announced; rename it or delete it",
        keys::MANAGED_BY,
        keys::MANAGED_BY_TENANT
    );
    Some(Notice { about: About::Tenant(tenant), reason: "NameTaken".to_owned(), message })
}
