//! Tenants: parsed, and their claims on VNIs and links settled among them.

use std::collections::{BTreeMap, BTreeSet};

use calico_vni_crds::{
    self as crds, keys,
    limits::NAME_MAX,
    tenant::{Advertise, MAX_PREFIXES, Placement},
};
use calico_vni_proto::{model::RouteTarget, names::VNI_MAX};
use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::Selector;

use super::{Age, Verdict, age};
use crate::{Snapshot, plan::TenantAllocation, prefix, reason};

/// A Tenant.
#[derive(Debug)]
pub struct Tenant<'a> {
    /// As it stands; absent for one that is to be made.
    pub object: Option<&'a crds::Tenant>,
    /// Its name.
    pub name: String,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Whether it was made for an annotation.
    pub managed: bool,
    /// What is wrong with it.
    pub verdict: Option<Verdict>,
    /// What it says; of one with a verdict, what can be understood of it.
    pub settings: Settings,
    /// Its VNI: given, or kept from an allocation. Nobody else's.
    pub vni: Option<u32>,
    /// Its link index, kept from an allocation. Nobody else's.
    pub link_index: Option<u32>,
    /// Whether some pool names it.
    pub named: bool,
    /// Its accepted pools, by CIDR.
    pub pools: Vec<usize>,
}

/// What a Tenant says, in types that hold nothing else.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Nodes that may carry it; `None` for all.
    pub node_selector: Option<Selector>,
    /// Namespaces that get their pods from its pools; `None` for none.
    pub namespace_selector: Option<Selector>,
    /// Which of them do.
    pub placement: Placement,
    /// What they announce.
    pub advertise: Advertise,
    /// Route targets to import, in order.
    pub import: Vec<RouteTarget>,
    /// Route targets to export, in order.
    pub export: Vec<RouteTarget>,
    /// What its pods reach by the main table, in order.
    pub shared: Vec<IpNet>,
    /// Services that its pods reach outside their VRF, as `namespace/name`, in order.
    pub services: Vec<String>,
    /// Limit of routes from BIRD.
    pub max_prefixes: u32,
}

impl Tenant<'_> {
    /// One to be made for this VNI.
    pub(super) fn to_be_made(vni: u32) -> Self {
        Self {
            object: None,
            name: keys::annotated_tenant(vni),
            deleting: false,
            managed: true,
            verdict: None,
            // As it will be when it is made and read again.
            settings: settings(
                &keys::annotated_tenant(vni),
                &crds::TenantSpec {
                    vni: Some(vni),
                    max_prefixes: MAX_PREFIXES,
                    ..crds::TenantSpec::default()
                },
            )
            .0,
            vni: Some(vni),
            link_index: None,
            named: true,
            pools: Vec::new(),
        }
    }

    /// Its age.
    pub fn age(&self) -> Age<'_> {
        self.object.map_or((true, None, &self.name), |object| age(&object.metadata))
    }

    /// Whether pods may live in it.
    pub fn is_accepted(&self) -> bool {
        self.verdict.is_none() && !self.deleting
    }

    /// VNI as the spec gives it, where that is one.
    pub fn given_vni(&self) -> Option<u32> {
        self.object.and_then(|t| t.spec.vni).filter(|vni| is_vni(*vni))
    }

    /// VNI as the status keeps it, where that is one.
    pub fn kept_vni(&self) -> Option<u32> {
        self.object.and_then(|t| t.status.as_ref()?.vni).filter(|vni| is_vni(*vni))
    }

    /// Link index as the status keeps it.
    pub fn kept_link(&self) -> Option<u32> {
        self.object.and_then(|t| t.status.as_ref()?.link_index)
    }

    /// What may be used: its own, and in the cluster.
    pub fn standing(&self) -> Option<TenantAllocation> {
        let vni = self.vni.filter(|vni| self.kept_vni() == Some(*vni))?;
        Some(TenantAllocation { vni, link_index: self.link_index? })
    }
}

fn is_vni(vni: u32) -> bool {
    (1..=VNI_MAX).contains(&vni)
}

/// All Tenants, by name.
pub(super) fn parse(snapshot: &Snapshot) -> Vec<Tenant<'_>> {
    let mut tenants: Vec<Tenant<'_>> = snapshot.tenants.iter().map(tenant).collect();
    tenants.sort_by(|a, b| a.name.cmp(&b.name));
    tenants
}

fn tenant(object: &crds::Tenant) -> Tenant<'_> {
    let meta = &object.metadata;
    let name = meta.name.clone().unwrap_or_default();
    let (settings, verdict) = settings(&name, &object.spec);
    let managed = meta
        .labels
        .as_ref()
        .and_then(|l| l.get(keys::MANAGED_BY))
        .is_some_and(|v| v == keys::MANAGED_BY_ANNOTATION);
    let mut tenant = Tenant {
        object: Some(object),
        name,
        deleting: meta.deletion_timestamp.is_some(),
        managed,
        verdict,
        settings,
        vni: None,
        link_index: None,
        named: false,
        pools: Vec::new(),
    };
    // A VNI that is none asks for no allocation: the verdict stands until somebody puts it right.
    tenant.vni = if object.spec.vni.is_some() { tenant.given_vni() } else { tenant.kept_vni() };
    tenant
}

/// What the spec says, as far as it can be understood, and the first thing that is wrong with it.
fn settings(name: &str, spec: &crds::TenantSpec) -> (Settings, Option<Verdict>) {
    let mut wrong = bad_name(name);
    let mut note = |verdict: Verdict| {
        wrong.get_or_insert(verdict);
    };
    if let Some(vni) = spec.vni.filter(|vni| !is_vni(*vni)) {
        note(Verdict::new(
            reason::INVALID_VNI,
            format!("spec.vni: {vni} is no VNI; write a number from 1 to {VNI_MAX}"),
        ));
    }
    let mut targets = |field: &str, texts: &[String], wildcard: bool| {
        let mut targets = Vec::with_capacity(texts.len());
        for text in texts {
            match text.parse::<RouteTarget>() {
                Ok(rt) if wildcard || !rt.is_wildcard() => targets.push(rt),
                Ok(rt) => note(Verdict::new(
                    reason::INVALID_ROUTE_TARGET,
                    format!(
                        "spec.routeTargets.{field}: `{rt}` matches any ASN and so cannot be put on a route; write ASN:NUMBER"
                    ),
                )),
                Err(error) => {
                    note(Verdict::new(
                        reason::INVALID_ROUTE_TARGET,
                        format!("spec.routeTargets.{field}: {error}"),
                    ));
                }
            }
        }
        targets.sort_unstable();
        targets.dedup();
        targets
    };
    let import = targets("import", &spec.route_targets.import, true);
    let export = targets("export", &spec.route_targets.export, false);
    let mut selector = |field: &str, selector: &Option<LabelSelector>| match selector
        .clone()
        .map(Selector::try_from)
        .transpose()
    {
        Ok(selector) => selector,
        Err(error) => {
            note(Verdict::new(
                reason::INVALID_SELECTOR,
                format!("spec.{field}: {error}; write matchLabels or matchExpressions as in a Deployment"),
            ));
            None
        }
    };
    let node_selector = selector("nodeSelector", &spec.node_selector).filter(|s| !s.selects_all());
    let namespace_selector = selector("namespaceSelector", &spec.namespace_selector);
    let mut services = Vec::with_capacity(spec.shared_services.services.len());
    for name in &spec.shared_services.services {
        match name.split_once('/') {
            Some((namespace, service))
                if !namespace.is_empty() && !service.is_empty() && !service.contains('/') =>
            {
                services.push(name.clone());
            }
            _ => note(Verdict::new(
                reason::INVALID_SERVICE,
                format!(
                    "spec.sharedServices.services: `{name}` is no Service; write NAMESPACE/NAME, as in kube-system/kube-dns"
                ),
            )),
        }
    }
    services.sort_unstable();
    services.dedup();
    let mut shared = Vec::with_capacity(spec.shared_services.cidrs.len());
    for text in &spec.shared_services.cidrs {
        let why_not = match prefix::parse(text) {
            Ok(net) if net.prefix_len() > 0 => {
                shared.push(net);
                continue;
            }
            Ok(_) => "would lead everything past the VRF; name the services' prefixes".to_owned(),
            Err(error) => error.to_string(),
        };
        note(Verdict::new(
            reason::INVALID_SHARED_CIDR,
            format!("spec.sharedServices.cidrs: `{text}` {why_not}"),
        ));
    }
    shared.sort_unstable();
    shared.dedup();
    if spec.max_prefixes == 0 {
        note(Verdict::new(
            reason::INVALID_MAX_PREFIXES,
            "spec.maxPrefixes: 0 would close every session; write 1 or more",
        ));
    }
    let settings = Settings {
        node_selector,
        namespace_selector,
        placement: spec.placement,
        advertise: spec.advertise,
        import,
        export,
        shared,
        services,
        max_prefixes: spec.max_prefixes,
    };
    (settings, wrong)
}

fn bad_name(name: &str) -> Option<Verdict> {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let fits = (1..=NAME_MAX).contains(&name.len())
        && name.chars().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-');
    let why_not = if !fits {
        format!(
            "has to be at most {NAME_MAX} lower-case letters, digits and '-', for it becomes part of a Node label"
        )
    } else if name.ends_with("-v6") {
        "ends in -v6, as the names of the BGPPeers for IPv6 do".to_owned()
    } else {
        return None;
    };
    Some(Verdict::new(
        reason::INVALID_NAME,
        format!("metadata.name: `{name}` {why_not}; make a Tenant of another name and move the pools to it"),
    ))
}

/// Settles who has each VNI: who has it in use, then the oldest, then by name. A tenant that already carries traffic
/// is thus never pushed out by one that was given its VNI later.
pub(super) fn settle_vnis(tenants: &mut [Tenant<'_>]) {
    let mut claims: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for (t, tenant) in tenants.iter().enumerate() {
        // Also one that it is to give up, for its routers may still run with it.
        for vni in BTreeSet::from([tenant.vni, tenant.kept_vni()]).into_iter().flatten() {
            claims.entry(vni).or_default().push(t);
        }
    }
    for (vni, mut claimants) in claims {
        claimants.sort_by_key(|&t| {
            (tenants[t].kept_vni() != Some(vni), tenants[t].vni != Some(vni), tenants[t].age())
        });
        let (winner, losers) = claimants.split_first().expect("a claim has a claimant");
        let (holder, going) = (tenants[*winner].name.clone(), tenants[*winner].deleting);
        for &t in losers {
            if tenants[t].vni != Some(vni) {
                continue;
            }
            tenants[t].vni = None;
            // One that was only allocated can have another.
            if tenants[t].given_vni().is_some() {
                let way_out = if going {
                    "which is being deleted; this one follows when it is gone"
                } else {
                    "so give this one another VNI, or delete one of them and move its pools to the other"
                };
                tenants[t].verdict.get_or_insert_with(|| {
                    Verdict::new(
                        reason::VNI_CONFLICT,
                        format!("spec.vni: {vni} is in use by Tenant `{holder}`, {way_out}"),
                    )
                });
            }
        }
    }
}

/// Settles who has each link: the oldest, then by name. An index beyond the capacity is nobody's.
pub(super) fn settle_links(tenants: &mut [Tenant<'_>], capacity: Option<u32>) {
    let mut claims: BTreeMap<u32, usize> = BTreeMap::new();
    for (t, tenant) in tenants.iter().enumerate() {
        let Some(index) = tenant.kept_link().filter(|i| (1..=capacity.unwrap_or(u32::MAX)).contains(i))
        else {
            continue;
        };
        let holder = claims.entry(index).or_insert(t);
        if tenant.age() < tenants[*holder].age() {
            *holder = t;
        }
    }
    for (index, t) in claims {
        tenants[t].link_index = Some(index);
    }
}
