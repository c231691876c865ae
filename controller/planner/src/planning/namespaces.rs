//! Calico's pool annotations on the Namespaces that Tenants select.
//!
//! What somebody else wrote is never overwritten. An annotation of ours beside Calico's says what we wrote, so that
//! this can be followed by the next planning, in whatever process: our own value is renewed and taken away, any other is
//! told and left.

use std::collections::{BTreeMap, BTreeSet};

use calico_vni_crds::keys;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Namespace;
use kube::core::SelectorExt;
use serde::{Deserialize, Serialize};

use super::told::{Told, some_of};
use crate::{
    Snapshot,
    plan::{About, Notice},
    reason,
    validate::{Claim, Pool, Tenant, Validated},
};

/// What follows for the Namespaces.
#[derive(Debug, Default)]
pub(super) struct Namespaces {
    /// As in [`crate::Plan::namespaces`].
    pub annotations: BTreeMap<String, BTreeMap<String, Option<String>>>,
    /// What has to be told of them.
    pub notices: BTreeSet<Notice>,
    /// What has to be told of each tenant that has a selector.
    pub told: Vec<Option<Told>>,
}

/// Our own annotation: the tenant, and the lists we wrote for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Assigned {
    tenant: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ipv4pools: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ipv6pools: Option<Vec<String>>,
}

impl Assigned {
    fn read(namespace: &Namespace) -> Option<Self> {
        serde_json::from_str(annotation(namespace, keys::ASSIGNED)?).ok()
    }

    fn families(&self) -> [(&'static str, &Option<Vec<String>>); 2] {
        [(keys::CALICO_POOLS_V4, &self.ipv4pools), (keys::CALICO_POOLS_V6, &self.ipv6pools)]
    }
}

/// How a tenant's Namespaces come to its pools.
enum Way {
    /// By these annotations. The second is whether a family is closed, for the tenant has no pool of it and others' pools
    /// would be taken.
    Annotations(Assigned, Option<&'static str>),
    /// Calico chooses by the pools' own selectors.
    Calico,
    /// Its pools are refused for now: what stands stays, lest its pods begin on the flat network.
    Held,
    /// It has no pool.
    Nothing,
}

/// What has been found of one tenant.
#[derive(Default)]
struct Findings {
    selected: Vec<String>,
    conflicts: Vec<String>,
    taken: Vec<String>,
}

/// Plans all Namespaces. One that is being deleted is left as it is.
pub(super) fn assign(snapshot: &Snapshot, valid: &Validated<'_>) -> Namespaces {
    let index = Index::of(valid);
    let automatic: Vec<&Pool<'_>> = valid
        .pools
        .iter()
        .filter(|pool| {
            // Of a pool that is quarantined nothing is reached anyway, and no bad pool changes what others get.
            (pool.claim == Claim::Plain || pool.accepted().is_some()) && is_automatic(pool)
        })
        .collect();
    let ways: Vec<Way> = (0..valid.tenants.len())
        .map(|t| if index.selects(t) { way(valid, &automatic, t) } else { Way::Nothing })
        .collect();
    let by_name: BTreeMap<&str, usize> =
        valid.tenants.iter().enumerate().map(|(t, tenant)| (tenant.name.as_str(), t)).collect();
    let mut findings: BTreeMap<usize, Findings> = BTreeMap::new();
    let mut result = Namespaces::default();
    let live = snapshot.namespaces.iter().filter(|n| n.metadata.deletion_timestamp.is_none());
    let mut live: Vec<&Namespace> = live.collect();
    live.sort_by_key(|n| &n.metadata.name);
    for namespace in live {
        let name = namespace.metadata.name.clone().unwrap_or_default();
        let assigned = Assigned::read(namespace);
        let mut claimants = index.matching(namespace, valid);
        // A Tenant that is refused for now lets go of nothing.
        claimants.extend(assigned.as_ref().and_then(|a| by_name.get(a.tenant.as_str())).filter(|&&t| {
            let tenant = &valid.tenants[t];
            !tenant.deleting && tenant.verdict.is_some()
        }));
        claimants.sort_by(|&a, &b| valid.tenants[a].age().cmp(&valid.tenants[b].age()));
        let (winner, losers) = match claimants.split_first() {
            Some((winner, losers)) => (Some(*winner), losers),
            None => (None, &[][..]),
        };
        for &loser in losers {
            let holder = winner.map(|w| valid.tenants[w].name.as_str()).unwrap_or_default();
            findings.entry(loser).or_default().taken.push(format!(
                "namespace `{name}` is selected by Tenant `{holder}` too, which is older; take it out of one of the two spec.namespaceSelector"
            ));
        }
        let wanted = match winner.map(|t| (t, &ways[t])) {
            Some((t, _)) if !valid.tenants[t].is_accepted() => continue,
            Some((_, Way::Held)) => continue,
            Some((t, Way::Annotations(wanted, _))) => Ok((t, wanted)),
            Some((t, Way::Calico | Way::Nothing)) => Err(Some(t)),
            None => Err(None),
        };
        if let Some(t) = winner {
            findings.entry(t).or_default().selected.push(name.clone());
        }
        let entry = match wanted {
            Err(_) => taken_away(namespace, assigned.as_ref()),
            Ok((t, wanted)) => match written(namespace, assigned.as_ref(), wanted) {
                Ok(entry) => entry,
                Err(conflict) => {
                    let tenant = &valid.tenants[t].name;
                    findings.entry(t).or_default().conflicts.push(format!("namespace `{name}`: {conflict}"));
                    result.notices.insert(Notice {
                        about: About::Namespace(name.clone()),
                        reason: reason::NAMESPACE_CONFLICT.to_owned(),
                        message: format!("Tenant `{tenant}` selects this Namespace; {conflict}"),
                    });
                    continue;
                }
            },
        };
        if !entry.is_empty() {
            result.annotations.insert(name, entry);
        }
    }
    result.told = (0..valid.tenants.len())
        .map(|t| {
            let found = findings.remove(&t).unwrap_or_default();
            index.selects(t).then(|| told(valid, &automatic, t, &ways[t], found))
        })
        .collect();
    result
}

fn annotation<'a>(namespace: &'a Namespace, key: &str) -> Option<&'a str> {
    namespace.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

fn json(list: &impl Serialize) -> String {
    serde_json::to_string(list).expect("names are plain text")
}

/// Whether two values name the same pools.
fn same(value: &str, list: &[String]) -> bool {
    let names = |list: &[String]| list.iter().cloned().collect::<BTreeSet<_>>();
    serde_json::from_str::<Vec<String>>(value).is_ok_and(|value| names(&value) == names(list))
}

/// What is ours goes; what somebody has changed after us stays.
fn taken_away(namespace: &Namespace, assigned: Option<&Assigned>) -> BTreeMap<String, Option<String>> {
    let Some(assigned) = assigned else { return BTreeMap::new() };
    let ours = assigned.families().into_iter().filter(|(key, list)| {
        list.as_ref().is_some_and(|list| annotation(namespace, key) == Some(json(list).as_str()))
    });
    ours.map(|(key, _)| key).chain([keys::ASSIGNED]).map(|key| (key.to_owned(), None)).collect()
}

/// The annotations to hold, or why they cannot be written.
fn written(
    namespace: &Namespace,
    assigned: Option<&Assigned>,
    wanted: &Assigned,
) -> Result<BTreeMap<String, Option<String>>, String> {
    let mut entry = BTreeMap::new();
    let mut ours = Assigned { tenant: wanted.tenant.clone(), ..Assigned::default() };
    let nothing = Assigned::default();
    let before = assigned.unwrap_or(&nothing).families();
    for ((key, wanted), (_, before)) in wanted.families().into_iter().zip(before) {
        let current = annotation(namespace, key);
        let is_ours = before.as_ref().is_some_and(|before| current == Some(json(before).as_str()));
        match (wanted, current) {
            (Some(list), None) => {
                entry.insert(key.to_owned(), Some(json(list)));
            }
            (Some(list), Some(_)) if is_ours => {
                entry.insert(key.to_owned(), Some(json(list)));
            }
            (None, Some(_)) if is_ours => {
                entry.insert(key.to_owned(), None);
                continue;
            }
            (None, None) => continue,
            // Somebody has said the same already.
            (Some(list), Some(value)) if same(value, list) => continue,
            (list, Some(value)) => {
                let would = match list {
                    Some(list) => format!("not the tenant's {}", json(list)),
                    None => "and the tenant has no pool of that family".to_owned(),
                };
                return Err(format!(
                    "its annotation {key}: `{value}` is somebody else's, {would}; take it off, or keep the namespace out of spec.namespaceSelector"
                ));
            }
        }
        match key {
            keys::CALICO_POOLS_V4 => ours.ipv4pools.clone_from(wanted),
            _ => ours.ipv6pools.clone_from(wanted),
        }
    }
    if ours.ipv4pools.is_some() || ours.ipv6pools.is_some() {
        entry.insert(keys::ASSIGNED.to_owned(), Some(json(&ours)));
    } else if annotation(namespace, keys::ASSIGNED).is_some() {
        entry.insert(keys::ASSIGNED.to_owned(), None);
    }
    Ok(entry)
}

/// Whether Calico gives pods addresses of it unasked.
fn is_automatic(pool: &Pool<'_>) -> bool {
    let spec = &pool.object.spec;
    let uses = spec.allowed_uses.as_deref().unwrap_or_default();
    spec.assignment_mode.as_deref() != Some("Manual")
        && spec.disabled != Some(true)
        && pool.object.metadata.deletion_timestamp.is_none()
        && (uses.is_empty() || uses.iter().any(|used| used == "Workload"))
}

/// Whether it says itself whose pods get its addresses.
fn has_selector(pool: &Pool<'_>) -> bool {
    pool.object.spec.namespace_selector.as_deref().is_some_and(|s| !matches!(s.trim(), "" | "all()"))
}

fn is_v6(pool: &Pool<'_>) -> bool {
    matches!(pool.cidr, Some(IpNet::V6(_)))
}

fn way(valid: &Validated<'_>, automatic: &[&Pool<'_>], t: usize) -> Way {
    let tenant = &valid.tenants[t];
    let pools: Vec<&Pool<'_>> =
        tenant.pools.iter().map(|&p| &valid.pools[p]).filter(|pool| !pool.leaving).collect();
    if pools.is_empty() {
        let refused = valid.pools.iter().any(|p| p.claim == Claim::Tenant(t) && !p.leaving);
        return if refused { Way::Held } else { Way::Nothing };
    }
    if pools.iter().all(|pool| is_automatic(pool) && has_selector(pool)) {
        return Way::Calico;
    }
    let names = |v6: bool| -> Vec<String> {
        pools.iter().filter(|p| is_v6(p) == v6).map(|p| p.name.to_owned()).collect()
    };
    let mut closed = None;
    let mut family = |v6: bool, word: &'static str| match names(v6) {
        // Calico would take another's pool for the family that the tenant lacks, and the pod would be in two networks. No
        // pool has such a name, so its CNI plugin refuses the pod with these words. An empty list it takes for none.
        names if names.is_empty() && others(automatic, t, v6).next().is_some() => {
            closed = Some(word);
            Some(vec![format!("Tenant {} has no {word} pool", tenant.name)])
        }
        names => (!names.is_empty()).then_some(names),
    };
    let (ipv4pools, ipv6pools) = (family(false, "IPv4"), family(true, "IPv6"));
    Way::Annotations(Assigned { tenant: tenant.name.clone(), ipv4pools, ipv6pools }, closed)
}

/// Pools of that family that Calico would take for a pod of the tenant's, and are not the tenant's.
fn others<'v>(automatic: &'v [&'v Pool<'v>], t: usize, v6: bool) -> impl Iterator<Item = &'v Pool<'v>> {
    let fits = move |pool: &&Pool<'_>| pool.cidr.is_some() && is_v6(pool) == v6 && pool.accepted() != Some(t);
    automatic.iter().copied().filter(fits)
}

fn told(valid: &Validated<'_>, automatic: &[&Pool<'_>], t: usize, way: &Way, found: Findings) -> Told {
    let tenant = &valid.tenants[t];
    let told = |holds, reason, message| Told { holds, reason, message };
    if let Some(verdict) = &tenant.verdict {
        let message = format!("is not accepted, so annotations stay as they are: {}", verdict.message);
        return told(false, reason::NOT_ACCEPTED, message);
    }
    if tenant.deleting {
        return told(false, reason::TERMINATING, "its annotations are taken off its namespaces".to_owned());
    }
    if !found.conflicts.is_empty() {
        return told(false, reason::NAMESPACE_CONFLICT, some_of(found.conflicts.into_iter()));
    }
    if !found.taken.is_empty() {
        return told(false, reason::NAMESPACE_TAKEN, some_of(found.taken.into_iter()));
    }
    let names = match found.selected.len() {
        1 => format!("namespace {}", found.selected[0]),
        _ => format!("{} namespaces", found.selected.len()),
    };
    match way {
        Way::Held => told(
            false,
            reason::POOLS_NOT_ACCEPTED,
            "none of its pools is accepted, so annotations stay as they are; see status.pools".to_owned(),
        ),
        Way::Nothing => told(
            false,
            reason::NO_POOLS,
            "no IPPool names it, so its namespaces get no annotation; annotate one".to_owned(),
        ),
        Way::Calico => {
            let open = [false, true].into_iter().flat_map(|v6| others(automatic, t, v6));
            let open: Vec<String> =
                open.filter(|p| !has_selector(p)).map(|p| format!("`{}`", p.name)).collect();
            let warning = if open.is_empty() {
                String::new()
            } else {
                format!(
                    ". They do not keep pods out of {}, which Calico chooses from too: give such a pool a namespaceSelector or assignmentMode Manual",
                    some_of(open.into_iter())
                )
            };
            let message = format!(
                "its pools are automatic and have a spec.namespaceSelector of their own, so Calico chooses by those (3.31 and later) and no annotation is written for {names}{warning}"
            );
            told(true, reason::CHOSEN_BY_CALICO, message)
        }
        Way::Annotations(_, Some(family)) => told(
            false,
            reason::FAMILY_CLOSED,
            format!(
                "it has no {family} pool, but other {family} pools are assigned automatically, and a pod with one of those addresses would be in two networks; so pods of {names} do not start where Calico assigns {family}: give the tenant an {family} pool, or set assignmentMode Manual on the others"
            ),
        ),
        Way::Annotations(..) if found.selected.is_empty() => {
            told(true, reason::NO_NAMESPACES, "spec.namespaceSelector matches no namespace yet".to_owned())
        }
        Way::Annotations(..) => told(
            true,
            reason::ANNOTATED,
            format!("pods of {names} get addresses from its pools by Calico's annotations"),
        ),
    }
}

/// Tenants with a selector, by one label that it demands, so that a Namespace need not be compared with all.
struct Index<'v> {
    by_label: BTreeMap<(&'v str, &'v str), Vec<usize>>,
    rest: Vec<usize>,
    with_selector: Vec<bool>,
}

impl<'v> Index<'v> {
    fn of(valid: &'v Validated<'_>) -> Self {
        let spec = |tenant: &'v Tenant<'_>| tenant.object.and_then(|o| o.spec.namespace_selector.as_ref());
        let mut index = Self {
            by_label: BTreeMap::new(),
            rest: Vec::new(),
            with_selector: valid.tenants.iter().map(|t| spec(t).is_some()).collect(),
        };
        for (t, tenant) in valid.tenants.iter().enumerate().filter(|(_, t)| t.is_accepted()) {
            let Some(selector) = spec(tenant) else { continue };
            match selector.match_labels.as_ref().and_then(|labels| labels.iter().next()) {
                Some((key, value)) => index.by_label.entry((key, value)).or_default().push(t),
                None => index.rest.push(t),
            }
        }
        index
    }

    fn selects(&self, t: usize) -> bool {
        self.with_selector[t]
    }

    /// Accepted tenants that select it.
    fn matching(&self, namespace: &Namespace, valid: &Validated<'_>) -> Vec<usize> {
        let none = BTreeMap::new();
        let labels = namespace.metadata.labels.as_ref().unwrap_or(&none);
        let by_label =
            labels.iter().filter_map(|(k, v)| self.by_label.get(&(k.as_str(), v.as_str()))).flatten();
        let matches = |t: &usize| {
            valid.tenants[*t].settings.namespace_selector.as_ref().is_some_and(|s| s.matches(labels))
        };
        by_label.chain(&self.rest).copied().filter(matches).collect()
    }
}
