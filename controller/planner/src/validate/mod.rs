//! The snapshot's objects parsed into types that cannot be wrong, and a verdict on each that is.
//!
//! Underlays come first, for their prefixes and ranges are what the others are measured by; then nodes, tenants and
//! pools. What is allocated is settled here too, since a tenant without a VNI, or a node without an index, cannot be
//! used. All lists are in the order of names, so nothing below depends on the order of the snapshot.

mod allocate;
mod nodes;
mod pools;
pub(crate) mod preconditions;
mod services;
mod tenants;
mod underlays;

use std::{borrow::Cow, collections::BTreeMap};

use calico_vni_crds::keys;
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::ObjectMeta, jiff::Timestamp};

pub(crate) use self::underlays::asn_of;
pub use self::{
    nodes::{Node, Seat},
    pools::{Claim, Pool},
    services::ServicePrefix,
    tenants::Tenant,
    underlays::Underlay,
};
use crate::{
    Snapshot,
    plan::{Allocations, TenantAllocation},
};

/// Why an object is not honoured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// One word, of [`crate::reason`].
    pub reason: &'static str,
    /// The field, the value and the way out.
    pub message: String,
}

impl Verdict {
    /// A verdict.
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// The snapshot, understood.
#[derive(Debug)]
pub struct Validated<'a> {
    /// ASN of Calico's nodes that do not say otherwise.
    pub calico_asn: u32,
    /// Underlays that are not being deleted.
    pub underlays: Vec<Underlay<'a>>,
    /// The accepted underlay of which the whole cluster's settings are taken: the oldest.
    pub fabric: Option<usize>,
    /// Nodes.
    pub nodes: Vec<Node<'a>>,
    /// Tenants, and after them those that are to be made.
    pub tenants: Vec<Tenant<'a>>,
    /// Numbers with which routers may run each tenant.
    pub running: Vec<Option<TenantAllocation>>,
    /// The ASN that names and labels do without.
    pub plain_asn: Option<u32>,
    /// Pools.
    pub pools: Vec<Pool<'a>>,
    /// Where Services have their addresses.
    pub services: Vec<ServicePrefix<'a>>,
    /// What has to be kept before it may be used.
    pub allocations: Allocations,
}

impl Validated<'_> {
    /// Settings of the underlay that the whole cluster's settings are taken of.
    pub fn fabric(&self) -> Option<&underlays::Settings> {
        self.fabric.and_then(|u| self.underlays[u].accepted())
    }

    /// Value of the ready labels of nodes whose routers have this ASN.
    pub fn ready_value(&self, asn: u32) -> Cow<'static, str> {
        if self.plain_asn == Some(asn) { keys::READY.into() } else { format!("{}-{asn}", keys::READY).into() }
    }
}

/// Parses and judges everything.
pub fn validate(snapshot: &Snapshot) -> Validated<'_> {
    let calico_asn = underlays::calico_asn(snapshot);
    let mut nodes = nodes::parse(snapshot, calico_asn);
    let mut underlays = underlays::parse(snapshot);
    underlays::select(&mut underlays, &nodes);
    preconditions::refuse(snapshot, &mut underlays);
    let services = services::parse(snapshot);
    let fabric = underlays::judge(&mut underlays, &nodes, &services, calico_asn);
    let mut allocations =
        Allocations { nodes: nodes::seat(&mut nodes, &underlays), tenants: BTreeMap::new() };

    let mut tenants = tenants::parse(snapshot);
    tenants::settle_vnis(&mut tenants);
    let link_capacity = fabric.and_then(|u| underlays[u].accepted()).map(underlays::Settings::link_capacity);
    tenants::settle_links(&mut tenants, link_capacity);
    let mut pools = pools::parse(snapshot);
    pools::remember(snapshot, &mut pools, &mut tenants);
    pools::name_tenants(&mut pools, &mut tenants);
    let ranges: Vec<_> =
        underlays.iter().filter_map(Underlay::accepted).filter_map(|s| s.vni_range).collect();
    let carried = |tenant: &str| {
        nodes.iter().any(|node| {
            let agent = snapshot.agents.get(node.name);
            node.ready.contains(&tenant)
                || agent.is_some_and(|a| a.programmed.iter().any(|(name, _)| name == tenant))
        })
    };
    allocations.tenants = allocate::tenants(&mut tenants, &pools, &ranges, link_capacity, carried);
    let running = allocate::running(&tenants);
    pools::judge(&mut pools, &mut tenants, &underlays, &services);
    let plain_asn = underlays::plain_asn(snapshot, &underlays, &nodes);
    Validated {
        calico_asn,
        underlays,
        fabric,
        nodes,
        tenants,
        running,
        plain_asn,
        pools,
        services,
        allocations,
    }
}

/// Who was first: by creation, then by name. An object that is not in a cluster yet comes after all that are.
pub type Age<'a> = (bool, Option<Timestamp>, &'a str);

fn age(meta: &ObjectMeta) -> Age<'_> {
    let created = meta.creation_timestamp.as_ref().map(|t| t.0);
    (created.is_none(), created, meta.name.as_deref().unwrap_or_default())
}
