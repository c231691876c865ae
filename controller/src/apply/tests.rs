//! The order of writes and what failures do to it, against a cluster that can fail.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use calico_vni_crds::{
    Tenant, TenantSpec, TenantStatus,
    calico::{BgpFilter, BgpFilterSpec, BgpPeer, BgpPeerSpec, CalicoApi},
    keys,
    tenant::PoolStatus,
};
use calico_vni_planner::{
    Snapshot,
    plan::{About, TenantAllocation},
};
use k8s_openapi::{
    api::core::v1::{Namespace, Node},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::core::{DynamicObject, ObjectMeta};
use serde_json::json;

use super::{write::Stored, *};

/// Notes what it is asked for, and fails what it is told to fail.
#[derive(Clone, Default)]
struct Fake {
    asked: Arc<Mutex<Vec<String>>>,
    fails: Arc<Mutex<BTreeMap<String, WriteError>>>,
    /// What the server adds to each spec.
    default: Option<(&'static str, &'static str)>,
}

impl Fake {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    fn fail(&self, what: &str, error: WriteError) {
        self.fails.lock().unwrap().insert(what.to_owned(), error);
    }

    fn heal(&self) {
        self.fails.lock().unwrap().clear();
    }

    fn stored(&self, object: &DynamicObject) -> DynamicObject {
        let mut object = object.clone();
        if let Some((key, value)) = self.default {
            object.data["spec"][key] = value.into();
        }
        object
    }
}

impl Cluster for Fake {
    async fn write(&self, write: &Write) -> Result<Stored, WriteError> {
        let Key { kind, name, op } = write.key();
        let what = format!("{op} {kind} {name}");
        self.asked.lock().unwrap().push(what.clone());
        if let Some(error) = self.fails.lock().unwrap().get(&what) {
            return Err(error.clone());
        }
        let object = match write {
            Write::PutFilter(object) | Write::PutPeer { peer: object, .. } => Some(self.stored(object)),
            _ => None,
        };
        Ok(Stored { version: Some("new".to_owned()), object })
    }
}

fn meta(name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        uid: Some(format!("uid-{name}")),
        resource_version: Some("1".to_owned()),
        ..ObjectMeta::default()
    }
}

fn tenant(name: &str) -> Tenant {
    Tenant { metadata: meta(name), spec: TenantSpec::default(), status: None }
}

fn node(name: &str) -> Node {
    Node { metadata: meta(name), ..Node::default() }
}

fn ours(tenant: &str) -> BTreeMap<String, String> {
    [
        (keys::MANAGED_BY.to_owned(), keys::MANAGED_BY_TENANT.to_owned()),
        (keys::OWNER.to_owned(), tenant.to_owned()),
    ]
    .into()
}

/// A filter and a peer for each of these tenants.
fn planned(tenants: &[&str]) -> Plan {
    let mut plan = Plan::default();
    for tenant in tenants {
        let name = format!("calico-vni-{tenant}");
        let mut filter = BgpFilter::new(CalicoApi::V3, &name, BgpFilterSpec::default());
        filter.metadata.labels = Some(ours(tenant));
        let spec = BgpPeerSpec { filters: Some(vec![name.clone()]), ..BgpPeerSpec::default() };
        let mut peer = BgpPeer::new(CalicoApi::V3, &name, spec);
        peer.metadata.labels = Some(ours(tenant));
        plan.filters.insert(name.clone(), filter);
        plan.peers.insert(name, peer);
    }
    plan
}

/// That plan's objects, as they stand when it was carried out.
fn standing(plan: &Plan) -> Observed {
    let mut observed = empty();
    for write in diff::filters(plan, &observed, &Settled::new()).writes {
        let Write::PutFilter(filter) = write else { unreachable!() };
        observed.filters.insert(filter.name_any(), Arc::new(stand(*filter)));
    }
    for write in diff::peers(plan, &observed, &Settled::new()).writes {
        let Write::PutPeer { peer, .. } = write else { unreachable!() };
        observed.peers.insert(peer.name_any(), Arc::new(stand(*peer)));
    }
    observed
}

fn stand(mut object: DynamicObject) -> DynamicObject {
    let name = object.name_any();
    object.metadata = ObjectMeta { labels: object.metadata.labels, ..meta(&name) };
    object
}

fn empty() -> Observed {
    Observed { snapshot: Snapshot::default(), peers: BTreeMap::new(), filters: BTreeMap::new() }
}

async fn carry_out(applier: &mut Applier<Fake>, plan: &Plan, observed: &Observed) -> BTreeSet<Notice> {
    let mut pass = Pass::new(plan, observed);
    applier.prepare(&mut pass).await;
    applier.withdraw(&mut pass).await;
    applier.establish(pass, Timestamp::UNIX_EPOCH, false).await
}

#[tokio::test]
async fn what_is_right_is_left_alone() {
    let plan = planned(&["red", "blue"]);
    let fake = Fake::default();
    carry_out(&mut Applier::new(fake.clone(), Arc::default()), &plan, &standing(&plan)).await;
    assert_eq!(fake.take(), [""; 0]);
}

#[tokio::test]
async fn everything_in_its_order() {
    let mut plan = planned(&["red"]);
    plan.tenants.insert("vni-7".into(), tenant("vni-7"));
    plan.allocations.tenants.insert("red".into(), TenantAllocation { vni: 1001, link_index: 1 });
    plan.allocations.nodes.insert("n1".into(), 4);
    plan.finalizers.insert("held".into());
    plan.finished_tenants.insert("done".into());
    plan.tenants_to_delete.insert("vni-8".into());
    plan.labels.insert("n1".into(), ["red".into()].into());
    plan.namespaces.insert("team".into(), [("pools".to_owned(), Some("[]".to_owned()))].into());
    for name in ["red", "vni-8"] {
        plan.tenant_status.insert(name.into(), TenantStatus { prefixes: Some(1), ..TenantStatus::default() });
    }
    let mut observed = standing(&planned(&["gone"]));
    observed.snapshot.tenants = ["red", "held", "done", "vni-8"].map(tenant).into();
    observed.snapshot.tenants[2].metadata.finalizers = Some(vec![keys::FINALIZER.to_owned()]);
    observed.snapshot.nodes = vec![Arc::new(node("n1"))];
    observed.snapshot.namespaces = vec![Namespace { metadata: meta("team"), ..Namespace::default() }];

    let fake = Fake::default();
    let mut applier = Applier::new(fake.clone(), Arc::default());
    carry_out(&mut applier, &plan, &observed).await;
    // Of one Tenant each thing waits until the one before was seen.
    let expected = [
        "create Tenant vni-7",
        "hold Tenant held",
        "allocate Tenant red",
        "allocate Node n1",
        "delete BGPPeer calico-vni-gone",
        "put BGPFilter calico-vni-red",
        "put BGPPeer calico-vni-red",
        "annotate Namespace team",
        "release Tenant done",
        "delete Tenant vni-8",
    ];
    assert_eq!(fake.take(), expected);

    // The label follows when the Node's number was seen.
    plan.allocations.nodes.clear();
    let seen = Arc::make_mut(&mut observed.snapshot.nodes[0]);
    seen.metadata.resource_version = Some("2".into());
    seen.annotations_mut().insert(keys::ROUTER_INDEX.into(), "4".into());
    // The filter goes when its peer is seen gone, not before.
    observed.peers.clear();
    carry_out(&mut applier, &plan, &observed).await;
    let asked = fake.take();
    assert!(asked.contains(&"delete BGPFilter calico-vni-gone".to_owned()), "{asked:?}");
    assert!(asked.contains(&"label Node n1".to_owned()), "{asked:?}");
}

#[tokio::test]
async fn a_peer_waits_for_its_filter_and_for_nobody_elses() {
    let plan = planned(&["red", "blue"]);
    let fake = Fake::default();
    let mut applier = Applier::new(fake.clone(), Arc::default());
    fake.fail("put BGPFilter calico-vni-red", WriteError::Refused("no".into()));
    carry_out(&mut applier, &plan, &empty()).await;
    let asked = fake.take();
    assert!(asked.contains(&"put BGPPeer calico-vni-blue".to_owned()), "{asked:?}");
    assert!(!asked.contains(&"put BGPPeer calico-vni-red".to_owned()), "{asked:?}");

    // While it rests the peer waits too.
    let due = applier.next_due().expect("it is tried again");
    fake.heal();
    carry_out(&mut applier, &plan, &empty()).await;
    assert!(!fake.take().iter().any(|what| what.contains("red")));
    tokio::time::sleep_until(due).await;
    carry_out(&mut applier, &plan, &empty()).await;
    let asked = fake.take();
    assert!(asked.contains(&"put BGPPeer calico-vni-red".to_owned()), "{asked:?}");
    assert_eq!(applier.retries.next_due(), None);
}

#[tokio::test]
async fn what_is_not_wanted_any_more_is_not_tried_again() {
    let fake = Fake::default();
    let mut applier = Applier::new(fake.clone(), Arc::default());
    fake.fail("put BGPFilter calico-vni-red", WriteError::Unclear("down".into()));
    carry_out(&mut applier, &planned(&["red"]), &empty()).await;
    assert!(applier.next_due().is_some());
    carry_out(&mut applier, &planned(&[]), &empty()).await;
    assert_eq!(applier.next_due(), None);
}

#[tokio::test]
async fn a_users_own_object_is_told_of_and_left_alone() {
    let plan = planned(&["red"]);
    let mut observed = standing(&plan);
    let name = "calico-vni-red".to_owned();
    let mut own = DynamicObject::clone(&observed.filters[&name]);
    own.metadata.labels = None;
    own.data = json!({ "spec": { "exportV4": [] } });
    observed.filters.insert(name, Arc::new(own));
    observed.peers.clear();
    let fake = Fake::default();
    let notices = carry_out(&mut Applier::new(fake.clone(), Arc::default()), &plan, &observed).await;
    assert_eq!(fake.take(), [""; 0], "nor is there a peer that would go by somebody else's filter");
    let notice = notices.first().expect("told");
    assert_eq!((&notice.about, notice.reason.as_str()), (&About::Tenant("red".into()), "NameTaken"));

    // Nor is it collected when nobody wants its name.
    carry_out(&mut Applier::new(fake.clone(), Arc::default()), &Plan::default(), &observed).await;
    assert_eq!(fake.take(), [""; 0]);
}

#[tokio::test]
async fn edits_are_put_right_and_servers_defaults_are_not_edits() {
    let plan = planned(&["red"]);
    let mut observed = standing(&plan);
    let name = "calico-vni-red".to_owned();
    let mut edited = DynamicObject::clone(&observed.peers[&name]);
    edited.data["spec"]["nextHopMode"] = "Auto".into();
    edited.metadata.annotations = Some([("theirs".to_owned(), "kept".to_owned())].into());
    observed.peers.insert(name.clone(), Arc::new(edited));

    // A server that takes no for no answer: once is enough.
    let fake = Fake { default: Some(("nextHopMode", "Auto")), ..Fake::default() };
    let mut applier = Applier::new(fake.clone(), Arc::default());
    for expected in [vec!["put BGPPeer calico-vni-red"], vec![]] {
        carry_out(&mut applier, &plan, &observed).await;
        assert_eq!(fake.take(), expected);
    }
    // Anything else is an edit still.
    let mut edited = DynamicObject::clone(&observed.peers[&name]);
    edited.metadata.resource_version = Some("2".into());
    edited.data["spec"]["peerIP"] = "192.0.2.1".into();
    observed.peers.insert(name.clone(), Arc::new(edited));
    carry_out(&mut applier, &plan, &observed).await;
    assert_eq!(fake.take(), ["put BGPPeer calico-vni-red"]);

    let puts = diff::peers(&plan, &observed, &Settled::new());
    let Write::PutPeer { peer, .. } = &puts.writes[0] else { panic!("{puts:?}") };
    assert_eq!(peer.data["spec"], json!({ "filters": [name] }));
    assert_eq!(peer.metadata.resource_version.as_deref(), Some("2"), "bound to what was compared");
    assert_eq!(peer.annotations()["theirs"], "kept");
}

#[test]
fn labels_of_a_node_are_set_and_removed_in_one_write() {
    let mut plan = Plan::default();
    plan.labels.insert("n1".into(), ["red", "blue"].map(Into::into).into());
    let mut observed = empty();
    let mut labelled = node("n1");
    labelled.metadata.labels = Some(
        [("red", "ready"), ("blue", "maybe"), ("gone", "ready")]
            .map(|(tenant, value)| (keys::ready_label(tenant), value.to_owned()))
            .into(),
    );
    labelled.labels_mut().insert("kubernetes.io/hostname".into(), "n1".into());
    observed.snapshot.nodes = [labelled, node("unknown")].map(Arc::new).into();
    let [Write::LabelNode { at, labels }] = &diff::labels(&plan, &observed)[..] else { panic!("one write") };
    assert_eq!(at.uid, "uid-n1");
    let expected = [(keys::ready_label("blue"), Some("ready".to_owned())), (keys::ready_label("gone"), None)];
    assert_eq!(*labels, expected.into());
}

#[tokio::test]
async fn an_allocation_is_known_before_it_is_seen() {
    let mut plan = Plan::default();
    plan.allocations.tenants.insert("red".into(), TenantAllocation { vni: 1001, link_index: 1 });
    plan.allocations.nodes.insert("n1".into(), 4);
    let observe = || {
        let mut observed = empty();
        observed.snapshot.tenants = vec![tenant("red")];
        observed.snapshot.nodes = vec![Arc::new(node("n1"))];
        observed
    };
    let mut applier = Applier::new(Fake::default(), Arc::default());
    carry_out(&mut applier, &plan, &observe()).await;

    let mut stale = observe();
    applier.complete(&mut stale);
    let status = stale.snapshot.tenants[0].status.clone().unwrap();
    assert_eq!((status.vni, status.link_index), (Some(1001), Some(1)));
    assert_eq!(stale.snapshot.nodes[0].annotations()[keys::ROUTER_INDEX], "4");

    // Another Tenant of that name has nothing yet.
    let mut new = observe();
    new.snapshot.tenants[0].metadata.uid = Some("another".into());
    applier.complete(&mut new);
    assert_eq!(new.snapshot.tenants[0].status, None);
}

#[tokio::test]
async fn nothing_is_allocated_while_it_is_unclear_what_was() {
    let fake = Fake::default();
    let mut applier = Applier::new(fake.clone(), Arc::default());
    let mut plan = Plan::default();
    plan.allocations.tenants.insert("red".into(), TenantAllocation { vni: 1001, link_index: 1 });
    let mut observed = empty();
    observed.snapshot.tenants = vec![tenant("red"), tenant("blue")];
    fake.fail("allocate Tenant red", WriteError::Unclear("timeout".into()));
    carry_out(&mut applier, &plan, &observed).await;
    fake.take();

    // A plan from a store that shows nothing would give the same link to another.
    let mut other = Plan::default();
    other.allocations.tenants.insert("blue".into(), TenantAllocation { vni: 1002, link_index: 1 });
    // It had been written after all, so trying again conflicts with itself.
    fake.fail("allocate Tenant red", WriteError::Conflict);
    for _ in 0..2 {
        tokio::time::sleep_until(applier.next_due().unwrap()).await;
        applier.complete(&mut observed);
        carry_out(&mut applier, &other, &observed).await;
        assert_eq!(fake.take(), ["allocate Tenant red"]);
    }

    // Once it is seen, allocation goes on.
    observed.snapshot.tenants[0].metadata.resource_version = Some("2".into());
    applier.complete(&mut observed);
    carry_out(&mut applier, &other, &observed).await;
    assert_eq!(fake.take(), ["allocate Tenant blue"]);
}

#[tokio::test]
async fn what_was_written_is_not_written_again_before_it_is_seen() {
    let plan = planned(&["red"]);
    let fake = Fake::default();
    let mut applier = Applier::new(fake.clone(), Arc::default());
    carry_out(&mut applier, &plan, &empty()).await;
    assert_eq!(fake.take(), ["put BGPFilter calico-vni-red", "put BGPPeer calico-vni-red"]);
    carry_out(&mut applier, &plan, &empty()).await;
    assert_eq!(fake.take(), [""; 0]);
    assert!(applier.next_due().is_some(), "what never is seen is looked at again");
}

#[tokio::test]
async fn a_peer_goes_when_its_filter_cannot_be_made_to_stand() {
    let plan = planned(&["red", "blue"]);
    let name = "calico-vni-red".to_owned();
    let without = |change: &dyn Fn(&mut Observed)| {
        let mut observed = standing(&plan);
        change(&mut observed);
        observed
    };
    let gone = without(&|observed| drop(observed.filters.remove(&name)));
    let going = without(&|observed| {
        let mut filter = DynamicObject::clone(&observed.filters[&name]);
        filter.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        observed.filters.insert(name.clone(), Arc::new(filter));
    });
    for (what, observed) in [("gone", gone), ("going", going)] {
        let fake = Fake::default();
        fake.fail("put BGPFilter calico-vni-red", WriteError::Refused("no".into()));
        let mut applier = Applier::new(fake.clone(), Arc::default());
        let notices = carry_out(&mut applier, &plan, &observed).await;
        let asked = fake.take();
        assert!(asked.contains(&"delete BGPPeer calico-vni-red".to_owned()), "{what}: {asked:?}");
        assert!(!asked.iter().any(|what| what.contains("blue")), "{what}: {asked:?}");
        assert!(notices.iter().any(|n| n.reason == "FilterNotWritten"), "{what}: {notices:?}");
    }

    // One that can be made again at once costs no session, nor does one attempt that fails.
    let fake = Fake::default();
    let mut applier = Applier::new(fake.clone(), Arc::default());
    carry_out(&mut applier, &plan, &without(&|observed| drop(observed.filters.remove(&name)))).await;
    assert_eq!(fake.take(), ["put BGPFilter calico-vni-red"]);
    let edited = without(&|observed| {
        let mut filter = DynamicObject::clone(&observed.filters[&name]);
        filter.data = json!({ "spec": { "exportV4": [{ "action": "Accept" }] } });
        observed.filters.insert(name.clone(), Arc::new(filter));
    });
    fake.fail("put BGPFilter calico-vni-red", WriteError::Conflict);
    let mut applier = Applier::new(fake.clone(), Arc::default());
    for attempt in 0..=ATTEMPTS {
        carry_out(&mut applier, &plan, &edited).await;
        let asked = fake.take();
        let closed = asked.contains(&"delete BGPPeer calico-vni-red".to_owned());
        assert_eq!(closed, attempt == ATTEMPTS, "attempt {attempt}: {asked:?}");
        tokio::time::sleep_until(applier.next_due().unwrap()).await;
    }
}

#[tokio::test]
async fn whoever_undoes_a_write_again_and_again_is_named_and_not_raced() {
    let plan = planned(&["red"]);
    let name = "calico-vni-red".to_owned();
    let fake = Fake::default();
    let mut applier = Applier::new(fake.clone(), Arc::default());
    let (mut writes, mut told) = (0, BTreeSet::new());
    // Somebody answers each write within a moment.
    for version in 1..20 {
        let mut observed = standing(&plan);
        let mut peer = DynamicObject::clone(&observed.peers[&name]);
        peer.metadata.resource_version = Some(version.to_string());
        peer.metadata.managed_fields =
            serde_json::from_value(json!([{ "manager": "argocd-controller" }])).unwrap();
        peer.data["spec"]["peerIP"] = "192.0.2.1".into();
        observed.peers.insert(name.clone(), Arc::new(peer));
        told.extend(carry_out(&mut applier, &plan, &observed).await);
        writes += fake.take().len();
    }
    assert!((3..=8).contains(&writes), "{writes} writes");
    let notice = told.iter().find(|n| n.reason == "Contended").expect("told");
    assert_eq!(notice.about, About::Tenant("red".into()));
    assert!(notice.message.contains("argocd-controller"), "{}", notice.message);
}

#[tokio::test]
async fn annotations_are_merged_and_bound_to_what_was_read() {
    let mut plan = Plan::default();
    let wanted = [("keep", Some("1")), ("set", Some("2")), ("gone", None), ("absent", None)];
    let wanted = wanted.map(|(key, value)| (key.to_owned(), value.map(str::to_owned)));
    plan.namespaces.insert("team".into(), wanted.into());
    let mut observed = empty();
    let mut namespace = Namespace { metadata: meta("team"), ..Namespace::default() };
    namespace.metadata.annotations = Some(
        [("keep", "1"), ("gone", "x"), ("theirs", "y")].map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
    );
    observed.snapshot.namespaces = vec![namespace];
    let [Write::AnnotateNamespace { at, annotations }] = &diff::namespaces(&plan, &observed)[..] else {
        panic!("one write")
    };
    assert_eq!((at.uid.as_str(), at.seen.as_str()), ("uid-team", "1"));
    assert_eq!(*annotations, [("set".to_owned(), Some("2".to_owned())), ("gone".to_owned(), None)].into());
    observed.snapshot.namespaces[0].metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    assert_eq!(diff::namespaces(&plan, &observed), []);
}

#[tokio::test]
async fn a_new_number_is_known_before_it_is_seen() {
    let mut plan = Plan::default();
    plan.allocations.tenants.insert("red".into(), TenantAllocation { vni: 1001, link_index: 2 });
    plan.allocations.nodes.insert("n1".into(), 4);
    let observe = || {
        let mut observed = empty();
        let mut red = tenant("red");
        red.status = Some(TenantStatus { vni: Some(1000), link_index: Some(1), ..TenantStatus::default() });
        observed.snapshot.tenants = vec![red];
        let mut n1 = node("n1");
        n1.annotations_mut().insert(keys::ROUTER_INDEX.into(), "x".into());
        observed.snapshot.nodes = vec![Arc::new(n1)];
        observed
    };
    let mut applier = Applier::new(Fake::default(), Arc::default());
    carry_out(&mut applier, &plan, &observe()).await;
    for _ in 0..2 {
        let mut stale = observe();
        applier.complete(&mut stale);
        let status = stale.snapshot.tenants[0].status.clone().unwrap();
        assert_eq!((status.vni, status.link_index), (Some(1001), Some(2)));
        assert_eq!(stale.snapshot.nodes[0].annotations()[keys::ROUTER_INDEX], "4");
    }
}

#[tokio::test]
async fn much_to_write_is_done_in_parts_and_nobody_is_cut_off_by_that() {
    let names: Vec<String> = (0..AT_ONCE + 50).map(|i| format!("t{i}")).collect();
    let plan = planned(&names.iter().map(String::as_str).collect::<Vec<_>>());
    // Somebody has deleted all filters: peers stand, and go only where a filter cannot be made.
    let mut observed = standing(&plan);
    observed.filters.clear();
    let fake = Fake::default();
    let mut applier = Applier::new(fake.clone(), Arc::default());
    let puts = |asked: &[String]| asked.iter().filter(|what| what.starts_with("put BGPFilter")).count();
    carry_out(&mut applier, &plan, &observed).await;
    let first = fake.take();
    assert_eq!((first.len(), puts(&first)), (AT_ONCE, AT_ONCE), "filters and nothing else");
    assert!(applier.next_due().is_some_and(|due| due <= Instant::now()), "the rest follows at once");
    carry_out(&mut applier, &plan, &observed).await;
    let second = fake.take();
    assert_eq!((second.len(), puts(&second)), (50, 50));

    // A peer that is new waits for a filter that is left to the next pass.
    let mut applier = Applier::new(fake.clone(), Arc::default());
    carry_out(&mut applier, &plan, &empty()).await;
    let asked = fake.take();
    let filters: BTreeSet<&str> =
        asked.iter().filter_map(|what| what.strip_prefix("put BGPFilter ")).collect();
    let peers: BTreeSet<&str> = asked.iter().filter_map(|what| what.strip_prefix("put BGPPeer ")).collect();
    assert_eq!((filters.len(), peers), (AT_ONCE, filters));
}

#[tokio::test]
async fn what_was_written_in_a_pass_is_not_written_upon_again_in_it() {
    let mut plan = Plan::default();
    plan.finalizers.insert("red".into());
    // One that is urgent.
    let pools = vec![PoolStatus { name: "red".into(), ..PoolStatus::default() }];
    plan.tenant_status.insert("red".into(), TenantStatus { pools, ..TenantStatus::default() });
    let mut observed = empty();
    observed.snapshot.tenants = vec![tenant("red")];
    let fake = Fake::default();
    let mut applier = Applier::new(fake.clone(), Arc::default());
    carry_out(&mut applier, &plan, &observed).await;
    assert_eq!(fake.take(), ["hold Tenant red"], "the status would follow from a version that is no more");

    observed.snapshot.tenants[0].metadata.finalizers = Some(vec![keys::FINALIZER.to_owned()]);
    observed.snapshot.tenants[0].metadata.resource_version = Some("2".into());
    carry_out(&mut applier, &plan, &observed).await;
    assert_eq!(fake.take(), ["status Tenant red"]);
}
