//! Laws that every plan obeys, on clusters drawn at random.

mod world;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use calico_vni_crds::{
    calico::{BgpFilterRule, CalicoApi, FilterAction, IpPool, MatchOperator},
    keys,
};
use calico_vni_planner::{
    Plan, Snapshot, plan,
    plan::NodePlan,
    simulate::{carry_out, settle},
};
use calico_vni_proto::names;
use ipnet::IpNet;
use proptest::prelude::*;
use serde_json::Value;

fn injective<K: Ord + std::fmt::Debug, V: Eq + std::fmt::Debug>(
    pairs: impl IntoIterator<Item = (K, V)>,
    what: &str,
) {
    let mut seen: BTreeMap<K, V> = BTreeMap::new();
    for (key, value) in pairs {
        if let Some(other) = seen.get(&key) {
            assert_eq!(other, &value, "{what} {key:?} belongs to two");
        }
        seen.insert(key, value);
    }
}

fn tenants(plan: &Plan) -> impl Iterator<Item = &calico_vni_proto::model::Tenant> {
    plan.nodes.values().flat_map(|n| &n.tenants).map(AsRef::as_ref)
}

fn nothing_is_shared(plan: &Plan) {
    let allocated = plan.allocations.tenants.iter().map(|(name, a)| (name.as_str(), a.vni, a.link_index));
    let used = tenants(plan).map(|t| (t.name.as_str(), t.vni, t.link_index));
    let numbers: Vec<_> = used.chain(allocated).collect();
    injective(numbers.iter().map(|(name, vni, _)| (*vni, *name)), "VNI");
    injective(numbers.iter().map(|(name, vni, _)| (names::table(*vni), *name)), "table");
    injective(numbers.iter().map(|(name, _, link)| (*link, *name)), "link index");
    injective(numbers.iter().map(|(name, vni, link)| (*name, (*vni, *link))), "tenant");
    injective(plan.guard.tenants.iter().map(|t| (t.vni, t.name.as_str())), "VNI in the guard");
    injective(plan.guard.tenants.iter().map(|t| (t.name.as_str(), t.vni)), "tenant in the guard");
    injective(
        tenants(plan).flat_map(|t| [t.host_v4, t.router_v4()].map(|a| (a, t.name.as_str()))),
        "address",
    );
    injective(
        tenants(plan).flat_map(|t| [t.host_v6, t.router_v6()].map(|a| (a, t.name.as_str()))),
        "address",
    );
    injective(
        plan.peers.values().map(|p| ((p.spec.peer_ip.as_ref(), p.spec.node_selector.as_ref()), p.name())),
        "peer",
    );
    let routers = plan.nodes.values().filter_map(|n| Some((n.underlay.as_ref()?.vtep, n.node.as_str())));
    injective(routers, "VTEP");
    let distinguishers = plan.nodes.values().flat_map(|n| {
        let vtep = n.underlay.as_ref().map(|u| u.vtep);
        n.tenants.iter().map(move |t| ((vtep, t.link_index), (n.node.as_str(), t.name.as_str())))
    });
    injective(distinguishers, "route distinguisher");
    for node in plan.nodes.values() {
        let mut vnis: Vec<u32> = node.tenants.iter().map(|t| t.vni).collect();
        assert!(vnis.is_sorted(), "{vnis:?} on {}", node.node);
        vnis.dedup();
        assert_eq!(vnis.len(), node.tenants.len(), "twice on {}", node.node);
        assert!(
            node.underlay.is_some() || node.tenants.is_empty(),
            "tenants without an underlay on {}",
            node.node
        );
    }
}

fn rules_are_sound(rules: &[BgpFilterRule], v6: bool) {
    assert!(!rules.is_empty(), "no rule leaves the family open");
    for rule in rules {
        assert_eq!(rule.cidr.is_some(), rule.match_operator.is_some(), "{rule:?}");
        let cidr: Option<IpNet> = rule.cidr.as_ref().map(|cidr| cidr.parse().unwrap());
        if let Some(cidr) = cidr {
            assert_eq!(matches!(cidr, IpNet::V6(_)), v6, "{rule:?}");
            assert_eq!(cidr, cidr.trunc(), "{rule:?}");
        }
        if let Some(length) = rule.prefix_length {
            let cidr = cidr.expect("a length goes with a prefix");
            let (min, max) = (length.min.unwrap(), length.max.unwrap());
            assert!(cidr.prefix_len() <= min && min <= max && max <= cidr.max_prefix_len(), "{rule:?}");
        }
        if rule.action == FilterAction::Accept {
            assert!(
                rule.match_operator == Some(MatchOperator::In) && rule.prefix_length.is_some(),
                "{rule:?}"
            );
        }
    }
}

fn filters_are_sound(plan: &Plan) {
    for filter in plan.filters.values() {
        let spec = &filter.spec;
        rules_are_sound(&spec.export_v4, false);
        rules_are_sound(&spec.export_v6, true);
        for import in [&spec.import_v4, &spec.import_v6] {
            assert_eq!(import, &[BgpFilterRule::default()], "an import is always refused");
        }
    }
    for peer in plan.peers.values() {
        let filters = peer.spec.filters.as_ref().expect("a peer has a filter");
        assert!(filters.iter().all(|f| plan.filters.contains_key(f)), "{} lacks its filter", peer.name());
        assert!(
            peer.spec.node_selector.is_some() && peer.spec.as_number.is_some_and(|asn| asn > 0),
            "{peer:?}"
        );
    }
}

fn the_guard_knows_all(snapshot: &Snapshot, plan: &Plan) {
    let guarded: BTreeSet<(&str, u32, IpNet)> = plan
        .guard
        .tenants
        .iter()
        .flat_map(|t| t.pools.iter().map(|p| (t.name.as_str(), t.vni, *p)))
        .collect();
    // One whose VNI was edited leaves with the number that it was programmed with; where that is not the guard's, the
    // node quarantines it.
    let edited = |name: &str| {
        let tenant = snapshot.tenants.iter().find(|t| t.metadata.name.as_deref() == Some(name));
        tenant.is_some_and(|t| t.spec.vni.is_some() && t.spec.vni != t.status.as_ref().and_then(|s| s.vni))
    };
    for tenant in tenants(plan) {
        for pool in &tenant.pools {
            assert!(
                guarded.contains(&(&tenant.name, tenant.vni, pool.cidr)) || edited(&tenant.name),
                "{} of {} is not guarded",
                pool.cidr,
                tenant.name
            );
        }
    }
    let overlap = |a: &IpNet, b: &IpNet| a.contains(b) || b.contains(a);
    let mut open: Vec<IpNet> = guarded.iter().map(|(_, _, net)| *net).collect();
    for (i, net) in open.iter().enumerate() {
        assert!(!open[i + 1..].iter().any(|other| overlap(net, other)), "{net} is shared by pools");
    }
    // An older pool keeps its addresses, and so does one whose pods have not gone yet.
    let age = |pool: &IpPool| {
        let created = pool.metadata.creation_timestamp.as_ref().map(|t| t.0);
        (created.is_none(), created, pool.name().to_owned())
    };
    let leaving: Vec<IpNet> = (plan.tenant_status.values().flat_map(|s| &s.pools))
        .filter(|p| p.reason.as_deref() == Some("Leaving"))
        .filter_map(|p| p.cidr.parse::<IpNet>().ok())
        .collect();
    for pool in snapshot.pools.iter().filter(|p| p.annotations().is_empty()) {
        let Ok(net) = pool.spec.cidr.parse::<IpNet>() else { continue };
        let elders = snapshot.pools.iter().filter(|p| !p.annotations().is_empty() && age(p) < age(pool));
        let elders: Vec<IpNet> = elders.filter_map(|p| p.spec.cidr.parse::<IpNet>().ok()).collect();
        for open in open.iter().filter(|o| overlap(o, &net.trunc()) && !leaving.contains(o)) {
            assert!(elders.iter().any(|e| e.trunc() == *open), "{net} is no tenant's");
        }
    }
    for closed in &plan.guard.quarantined {
        assert!(!open.iter().any(|o| overlap(o, closed)), "{closed} is quarantined and open");
    }
    open.extend(&plan.guard.quarantined);
    open.extend(
        snapshot
            .pools
            .iter()
            .filter(|p| p.annotations().is_empty())
            .filter_map(|p| p.spec.cidr.parse::<IpNet>().ok()),
    );
    for underlay in &snapshot.underlays {
        open.extend(
            [&underlay.spec.vtep_cidr, &underlay.spec.host_link_cidr]
                .iter()
                .filter_map(|c| c.parse::<IpNet>().ok()),
        );
    }
    let annotated = snapshot.pools.iter().filter(|p| !p.annotations().is_empty());
    for net in annotated.filter_map(|p| p.spec.cidr.parse::<IpNet>().ok()) {
        assert!(open.iter().any(|o| overlap(o, &net.trunc())), "{net} is annotated and goes anywhere");
    }
}

/// On the storage group a tenant's pool may lie in a plain one. It is never open to the flat network, whatever is wrong
/// with it, but for blocks that were there before.
fn no_tenants_pool_is_flat(snapshot: &Snapshot, plan: &Plan) {
    if snapshot.calico_api != CalicoApi::CrdV1 {
        return;
    }
    let mut known: Vec<IpNet> = plan.guard.quarantined.clone();
    known.extend(plan.guard.tenants.iter().flat_map(|t| &t.pools));
    // These are open to all, and a pool that overlaps them is refused.
    for underlay in &snapshot.underlays {
        let spec = &underlay.spec;
        known.extend(
            [&spec.vtep_cidr, &spec.host_link_cidr].into_iter().filter_map(|c| c.parse::<IpNet>().ok()),
        );
    }
    let parsed = |pool: &IpPool| pool.spec.cidr.parse::<IpNet>().ok().map(|net| net.trunc());
    let (plain, annotated): (Vec<_>, Vec<_>) =
        snapshot.pools.iter().partition(|p| p.annotations().is_empty());
    let plain: Vec<IpNet> = plain.into_iter().filter_map(parsed).collect();
    for net in annotated.into_iter().filter_map(parsed) {
        let inside_alone = !plain.iter().any(|p| net.contains(p));
        let first = IpNet::from(net.network());
        assert!(!inside_alone || known.iter().any(|k| k.contains(&first)), "{first} of {net} is flat");
    }
}

fn json(value: Option<&String>) -> Value {
    value.map_or(Value::Null, |text| serde_json::from_str(text).unwrap_or(Value::Null))
}

fn what_a_person_wrote_stays(snapshot: &Snapshot, plan: &Plan) {
    for namespace in &snapshot.namespaces {
        let name = namespace.metadata.name.as_deref().unwrap();
        let Some(entry) = plan.namespaces.get(name) else { continue };
        assert!(namespace.metadata.deletion_timestamp.is_none(), "{name} is going");
        let stands = namespace.metadata.annotations.clone().unwrap_or_default();
        let ours = json(stands.get(keys::ASSIGNED));
        for (key, field) in [(keys::CALICO_POOLS_V4, "ipv4pools"), (keys::CALICO_POOLS_V6, "ipv6pools")] {
            let (Some(planned), Some(standing)) = (entry.get(key), stands.get(key)) else { continue };
            assert!(
                ours[field].is_array() && ours[field] == json(Some(standing)),
                "{name}: {key} `{standing}` becomes {planned:?}"
            );
        }
        for key in entry.keys() {
            assert!([keys::CALICO_POOLS_V4, keys::CALICO_POOLS_V6, keys::ASSIGNED].contains(&key.as_str()));
        }
    }
}

/// What is ours on a Namespace names accepted pools of one tenant that selects it, or nothing that there could be.
fn namespaces_get_their_own_tenants_pools(snapshot: &Snapshot, plan: &Plan) {
    let labels = |name: &str| {
        let namespace = snapshot.namespaces.iter().find(|n| n.metadata.name.as_deref() == Some(name));
        namespace.and_then(|n| n.metadata.labels.clone()).unwrap_or_default()
    };
    for (name, entry) in &plan.namespaces {
        let marker = entry.get(keys::ASSIGNED).expect("ours is always told from others'");
        let Some(marker) = marker else {
            assert!(entry.values().all(Option::is_none), "{name}: {entry:?}");
            continue;
        };
        let marker = json(Some(marker));
        let tenant = marker["tenant"].as_str().unwrap();
        let object = snapshot.tenants.iter().find(|t| t.metadata.name.as_deref() == Some(tenant)).unwrap();
        let wanted =
            object.spec.namespace_selector.as_ref().unwrap().match_labels.clone().unwrap_or_default();
        assert!(wanted.iter().all(|(k, v)| labels(name).get(k) == Some(v)), "{name} is none of {tenant}'s");
        let accepted: BTreeSet<&str> =
            plan.tenant_status[tenant].pools.iter().filter(|p| p.accepted).map(|p| p.name.as_str()).collect();
        for value in
            [keys::CALICO_POOLS_V4, keys::CALICO_POOLS_V6].iter().filter_map(|key| entry.get(*key)?.as_ref())
        {
            for pool in json(Some(value)).as_array().unwrap().iter().map(|pool| pool.as_str().unwrap()) {
                assert!(accepted.contains(pool) || pool.contains(' '), "{name}: {pool} is not {tenant}'s");
            }
        }
    }
}

fn no_service_opens_a_tenant(snapshot: &Snapshot, plan: &Plan) {
    let named: BTreeSet<&String> =
        snapshot.tenants.iter().flat_map(|t| &t.spec.shared_services.services).collect();
    let everybodys = calico_vni_crds::tenant::SERVICES;
    for service in &plan.guard.services {
        assert!(
            named.contains(&service.name) || everybodys.contains(&service.name.as_str()),
            "{}",
            service.name
        );
        assert!(!service.endpoints.is_empty() && service.endpoints.is_sorted());
        for endpoint in &service.endpoints {
            let holder =
                plan.guard.tenants.iter().find(|t| t.pools.iter().any(|p| p.contains(&endpoint.address)));
            assert!(holder.is_none(), "{} opens {:?}", service.name, holder);
        }
    }
}

fn labels_go_before_what_they_admit(snapshot: &Snapshot, plan: &Plan) {
    for node in &snapshot.nodes {
        let name = node.metadata.name.as_deref().unwrap();
        let labels = &plan.labels[name];
        if let Some(config) = plan.nodes.get(name) {
            let carried: BTreeSet<&str> = config.tenants.iter().map(|t| t.name.as_str()).collect();
            assert!(
                labels.iter().all(|label| carried.contains(&**label)),
                "{name} is labelled for more than it carries"
            );
        }
        for label in labels {
            assert!(
                plan.filters.contains_key(&format!("calico-vni-{label}")),
                "{name}: {label} is ready and has no filter"
            );
        }
    }
}

fn what_is_labelled_is_carried(snapshot: &Snapshot, plan: &Plan) {
    // Numbers that are this tenant's alone and in the cluster: what its router was programmed with.
    let kept: BTreeMap<&str, (Option<u32>, Option<u32>)> = (snapshot.tenants.iter())
        .filter_map(|t| {
            Some((t.metadata.name.as_deref()?, t.status.as_ref().map(|s| (s.vni, s.link_index))?))
        })
        .collect();
    let alone = |name: &str| {
        let (vni, link) = kept.get(name).copied().unwrap_or_default();
        let asked = snapshot
            .tenants
            .iter()
            .filter(|t| t.spec.vni == vni || t.status.as_ref().and_then(|s| s.vni) == vni);
        let linked = kept.values().filter(|(_, other)| *other == link);
        let spec = snapshot
            .tenants
            .iter()
            .find(|t| t.metadata.name.as_deref() == Some(name))
            .and_then(|t| t.spec.vni);
        vni.is_some_and(|v| v > 0)
            && spec.is_none_or(|s| Some(s) == vni)
            && link.is_some_and(|l| (1..=3).contains(&l))
            && asked.count() == 1
            && linked.count() == 1
    };
    for node in &snapshot.nodes {
        let labels = node.metadata.labels.iter().flatten();
        for tenant in
            labels.filter_map(|(key, _)| key.strip_prefix("tenant.calico-vni.io/")).filter(|t| alone(t))
        {
            if let Some(config) = plan.nodes.get(node.metadata.name.as_deref().unwrap()) {
                assert!(
                    config.tenants.iter().any(|t| t.name == tenant),
                    "{tenant} goes from {} before its label",
                    config.node
                );
            }
        }
    }
}

fn without<'a, V>(map: &'a BTreeMap<String, V>, tenant: Option<&str>) -> BTreeMap<&'a str, &'a V> {
    map.iter().map(|(k, v)| (k.as_str(), v)).filter(|(k, _)| tenant.is_none_or(|t| !k.ends_with(t))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_plan_is_sound(snapshot in world::any_snapshot()) {
        let mut now = snapshot;
        // Also on the way to where it comes to rest.
        for _ in 0..4 {
            let planned = plan(&now);
            nothing_is_shared(&planned);
            filters_are_sound(&planned);
            the_guard_knows_all(&now, &planned);
            no_tenants_pool_is_flat(&now, &planned);
            what_a_person_wrote_stays(&now, &planned);
            namespaces_get_their_own_tenants_pools(&now, &planned);
            no_service_opens_a_tenant(&now, &planned);
            labels_go_before_what_they_admit(&now, &planned);
            what_is_labelled_is_carried(&now, &planned);
            now = carry_out(&now, &planned);
        }
    }

    #[test]
    fn a_plan_that_is_carried_out_comes_to_rest(snapshot in world::any_snapshot()) {
        let (rest, planned) = settle(&snapshot).expect("it comes to rest");
        prop_assert!(planned.allocations.is_empty() && planned.tenants.is_empty());
        prop_assert!(planned.tenants_to_delete.is_empty() && planned.finished_tenants.is_empty());
        let again = carry_out(&rest, &planned);
        prop_assert_eq!(&again.tenants, &rest.tenants);
        prop_assert_eq!(&again.nodes, &rest.nodes);
        prop_assert_eq!(&again.agents, &rest.agents);
        prop_assert_eq!(&again.namespaces, &rest.namespaces);
        prop_assert_eq!(plan(&again), planned);
    }

    #[test]
    fn the_order_of_the_input_never_matters(
        (snapshot, shuffled) in world::any_snapshot().prop_flat_map(|s| {
            let shuffled = (
                Just(s.tenants.clone()).prop_shuffle(), Just(s.underlays.clone()).prop_shuffle(),
                Just(s.pools.clone()).prop_shuffle(), Just(s.blocks.to_vec()).prop_shuffle(), Just(s.nodes.clone()).prop_shuffle(),
                Just(s.namespaces.clone()).prop_shuffle(), Just(s.endpoint_slices.clone()).prop_shuffle(),
                Just(s.felix_configurations.clone()).prop_shuffle(),
            );
            (Just(s), shuffled)
        })
    ) {
        let (tenants, underlays, pools, blocks, nodes, namespaces, endpoint_slices, felix_configurations) = shuffled;
        let other = Snapshot {
            tenants, underlays, pools, blocks: blocks.into(), nodes, namespaces, endpoint_slices, felix_configurations, ..snapshot.clone()
        };
        prop_assert_eq!(plan(&other), plan(&snapshot));
    }

    #[test]
    fn a_bad_object_changes_no_other_tenants_plan(mut snapshot in world::any_snapshot()) {
        // A service whose pods have a bad pool's addresses is in quarantine with them, and that is told.
        let blocks: Vec<IpNet> = snapshot.blocks.iter().map(|block| block.net).collect();
        let in_no_block = |address: &String| {
            let address = address.parse::<IpAddr>();
            address.is_ok_and(|address| !blocks.iter().any(|block| block.contains(&address)))
        };
        snapshot.endpoint_slices.retain(|slice| slice.endpoints.iter().flatten().flat_map(|e| &e.addresses).all(in_no_block));
        let (rest, before) = settle(&snapshot).expect("it comes to rest");
        for (what, objects, touched) in world::bad_objects() {
            // Where nobody has that VNI there is nothing bad about asking for it.
            if what.contains("another's VNI") && !before.guard.tenants.iter().any(|t| t.vni == 1001) {
                continue;
            }
            let bad = Snapshot::from_objects(objects).unwrap();
            let mut with = rest.clone();
            with.tenants.extend(bad.tenants);
            with.pools.extend(bad.pools);
            with.underlays.extend(bad.underlays);
            with.service_cidrs.extend(bad.service_cidrs);
            let after = plan(&with);
            prop_assert_eq!(without(&after.peers, touched), without(&before.peers, touched), "{}", what);
            prop_assert_eq!(without(&after.filters, touched), without(&before.filters, touched), "{}", what);
            prop_assert_eq!(without(&after.tenant_status, touched), without(&before.tenant_status, touched), "{}", what);
            prop_assert_eq!(&after.guard.tenants, &before.guard.tenants, "{}", what);
            prop_assert_eq!(&after.guard.services, &before.guard.services, "{}", what);
            prop_assert_eq!(&after.labels, &before.labels, "{}", what);
            prop_assert_eq!(&after.namespaces, &before.namespaces, "{}", what);
            // A node of no underlay that a refused one selects is no longer cleared, but left as it is.
            let cleared = |node: &&NodePlan| node.underlay.is_none() && what.contains("underlay");
            let kept = |plan: &Plan| plan.nodes.values().filter(|n| !cleared(n)).cloned().collect::<Vec<_>>();
            prop_assert_eq!(kept(&after), kept(&before), "{}", what);
            prop_assert!(!after.notices.is_subset(&before.notices), "{} is not told", what);
        }
    }
}
