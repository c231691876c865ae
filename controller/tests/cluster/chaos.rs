//! Whatever users, Calico and failures do, in any order: in the end the cluster is what a plan from scratch says.
//!
//! A seeded run of random steps against a real API server: tenants, pools, nodes, blocks and namespaces come, change
//! and go; agents come and go; the controller is killed in the middle of what it does. At quiet points the cluster's
//! objects are compared with the plan that the pure planner makes of them: nothing is missing, nothing is left over.
//!
//! Runs are the same on each machine but for time: `CALICO_VNI_SEED` takes other steps, and a failure names its seed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use crate::support::{
    agent::{FakeAgent, Held},
    server::{create, try_create},
    stage::{Controller, Stage},
};
use calico_vni_crds::{
    Tenant, Underlay,
    calico::{
        BgpConfiguration, BgpFilter, BgpPeer, BlockAffinity, Calico, CalicoApi, CalicoSpec,
        FelixConfiguration, IpPool, IpamConfig,
    },
    keys,
};
use calico_vni_planner::{
    Plan, Snapshot,
    snapshot::{Agent, Block},
};
use k8s_openapi::api::core::v1::{Namespace, Node};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::Instant;

/// The long run and the short ones.
const STEPS: u32 = 500;
const FEW: u32 = 100;
/// Steps between two comparisons.
const QUIET: u32 = 100;
/// The controller is killed once in so many steps, on average.
const KILL: u64 = 45;
const DEADLINE: Duration = Duration::from_secs(90);

const TENANTS: [&str; 5] = ["amber", "blue", "coral", "dune", "ecru"];
const POOLS: [&str; 8] = ["p0", "p1", "p2", "p3", "p4", "p5", "p6", "p7"];
const NODES: [&str; 4] = ["n1", "n2", "n3", "n4"];
const TEAMS: [&str; 3] = ["team-a", "team-b", "team-c"];

/// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators): a few lines, and the same run for
/// the same seed for ever.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.roll() % n
    }

    fn of<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[usize::try_from(self.below(list.len() as u64)).unwrap()]
    }
}

struct Run {
    stage: Stage,
    controller: Option<Controller>,
    agents: BTreeMap<&'static str, FakeAgent>,
    dice: Dice,
    seed: u64,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_is_what_a_plan_from_scratch_says() {
    run(1, STEPS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn and_so_it_is_after_other_steps() {
    run(2, FEW).await;
    run(3, FEW).await;
}

async fn run(seed: u64, steps: u32) {
    let seed = std::env::var("CALICO_VNI_SEED")
        .map_or(seed, |seed| seed.parse().expect("CALICO_VNI_SEED is a number"));
    let began = Instant::now();
    let stage = Stage::set(CalicoApi::V3).await;
    stage.definitions().await;
    stage.basics().await;
    let controller = Some(Controller::start(&stage.server).await);
    let mut run = Run { stage, controller, agents: BTreeMap::new(), dice: Dice(seed), seed };
    let mut kills = 0;
    for step in 1..=steps {
        if run.dice.below(KILL) == 0 {
            kills += 1;
            run.kill().await;
        }
        run.step().await;
        if step % QUIET == 0 {
            run.compare(step).await;
        }
    }
    println!(
        "CALICO_VNI_SEED={seed}: {steps} steps in {:.1?}, the controller was killed {kills} times",
        began.elapsed()
    );
    run.controller.take().unwrap().stop().await;
}

impl Run {
    /// Without a word to anybody, in the middle of whatever it does; and another one at once.
    async fn kill(&mut self) {
        self.controller.take().unwrap().kill().await;
        let controller = Controller::start(&self.stage.server).await;
        // Agents find the new one as they would find it behind a Service, and hold what they held.
        let held: Vec<_> = self.agents.iter().map(|(node, agent)| (*node, agent.held())).collect();
        self.agents.clear();
        for (node, held) in held {
            self.agents.insert(node, FakeAgent::start(node, controller.address, true, held, None));
        }
        self.controller = Some(controller);
    }

    async fn step(&mut self) {
        match self.dice.below(11) {
            0 | 1 => self.tenant().await,
            2 => {
                let name = self.dice.of(&TENANTS);
                self.delete::<Tenant>(&(), name).await;
            }
            3 | 4 => self.pool().await,
            5 => {
                let name = self.dice.of(&POOLS);
                self.delete::<IpPool>(&CalicoApi::V3, name).await;
            }
            6 | 7 => self.block().await,
            8 => self.node().await,
            9 => self.namespace().await,
            _ => self.agent(),
        }
    }

    async fn tenant(&mut self) {
        let name = self.dice.of(&TENANTS);
        let vni = 2000 + self.dice.below(4);
        let mut spec = match self.dice.below(3) {
            0 => json!({}),
            _ => json!({ "vni": vni }),
        };
        if self.dice.below(3) == 0 {
            spec["placement"] = json!("AllNodes");
        }
        if self.dice.below(2) == 0 {
            let team = self.dice.of(&TEAMS);
            spec["namespaceSelector"] = json!({ "matchLabels": { "kubernetes.io/metadata.name": team } });
        }
        self.put::<Tenant>(&(), "calico-vni.io/v1alpha1", "Tenant", name, json!({}), spec).await;
    }

    async fn pool(&mut self) {
        let name = self.dice.of(&POOLS);
        let tenant = self.dice.of(&TENANTS);
        let number = (2000 + self.dice.below(6)).to_string();
        let annotations = match self.dice.below(6) {
            0 => json!({ keys::VNI: number, keys::TENANT: null }),
            1 => json!({ keys::VNI: "abc", keys::TENANT: null }),
            2 => json!({ keys::VNI: null, keys::TENANT: null }),
            _ => json!({ keys::VNI: null, keys::TENANT: tenant }),
        };
        // Neighbours of which some overlap.
        let cidr = match self.dice.below(5) {
            0 => "10.64.0.0/14".to_owned(),
            _ => format!("10.{}.0.0/16", 64 + name[1..].parse::<u32>().unwrap()),
        };
        let spec = json!({ "cidr": cidr, "vxlanMode": "Never", "ipipMode": "Never", "natOutgoing": false });
        self.put::<IpPool>(&CalicoApi::V3, "projectcalico.org/v3", "IPPool", name, annotations, spec).await;
    }

    async fn block(&mut self) {
        let node = self.dice.of(&NODES);
        let third = self.dice.below(2);
        let cidr = format!("10.{}.{third}.0/26", 64 + self.dice.below(8));
        let name = format!("{node}-{}", cidr.replace(['.', '/'], "-"));
        if self.dice.below(2) == 0 {
            self.delete::<BlockAffinity>(&CalicoApi::V3, &name).await;
        } else {
            let spec =
                json!({ "node": node, "cidr": cidr, "state": "confirmed", "type": "host", "deleted": false });
            self.put::<BlockAffinity>(
                &CalicoApi::V3,
                "projectcalico.org/v3",
                "BlockAffinity",
                &name,
                json!({}),
                spec,
            )
            .await;
        }
    }

    async fn node(&mut self) {
        let node = self.dice.of(&NODES);
        if self.dice.below(3) == 0 {
            self.agents.remove(node);
            self.delete::<Node>(&(), node).await;
        } else {
            self.ignore_taken(json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": node } }))
                .await;
            self.agent_of(node);
        }
    }

    async fn namespace(&mut self) {
        let team = self.dice.of(&TEAMS);
        self.ignore_taken(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": team } }))
            .await;
        // Somebody clears what stands there, or says something of their own.
        let value = [Value::Null, json!("[\"mine\"]")][usize::try_from(self.dice.below(2)).unwrap()].clone();
        let patch = json!({ "metadata": { "annotations": { "cni.projectcalico.org/ipv4pools": value } } });
        let api = self.stage.of::<Namespace>();
        api.patch(team, &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    }

    /// One goes away, or comes.
    fn agent(&mut self) {
        let node = self.dice.of(&NODES);
        if self.agents.remove(node).is_none() {
            self.agent_of(node);
        }
    }

    fn agent_of(&mut self, node: &'static str) {
        let address = self.controller.as_ref().unwrap().address;
        self.agents
            .entry(node)
            .or_insert_with(|| FakeAgent::start(node, address, true, Held::default(), None));
    }

    async fn ignore_taken(&self, object: Value) {
        let _ = try_create(&self.stage.client, object).await;
    }

    /// Creates it, or changes the one there is as far as that is allowed.
    async fn put<K>(
        &self,
        types: &K::DynamicType,
        version: &str,
        kind: &str,
        name: &str,
        annotations: Value,
        spec: Value,
    ) where
        K: Resource + Clone + DeserializeOwned + std::fmt::Debug,
    {
        let api: Api<K> = Api::all_with(self.stage.client.clone(), types);
        let patch = json!({ "metadata": { "annotations": annotations }, "spec": spec });
        if api.get_opt(name).await.unwrap().is_some() {
            // A VNI that is set cannot change, and who is gone meanwhile cannot be changed.
            let _ = api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await;
            return;
        }
        let mut annotations = annotations;
        if let Some(map) = annotations.as_object_mut() {
            map.retain(|_, value| !value.is_null());
        }
        let meta = json!({ "name": name, "annotations": annotations });
        create(
            &self.stage.client,
            json!({ "apiVersion": version, "kind": kind, "metadata": meta, "spec": spec }),
        )
        .await;
    }

    async fn delete<K>(&self, types: &K::DynamicType, name: &str)
    where
        K: Resource + Clone + DeserializeOwned + std::fmt::Debug,
    {
        let api: Api<K> = Api::all_with(self.stage.client.clone(), types);
        let _ = api.delete(name, &DeleteParams::default()).await;
    }

    /// Waits until the cluster is what the plan of itself says; with every agent there, as nothing is known of others.
    async fn compare(&mut self, step: u32) {
        for node in NODES {
            if self.stage.of::<Node>().get_opt(node).await.unwrap().is_some() {
                self.agent_of(node);
            }
        }
        let deadline = Instant::now() + DEADLINE;
        loop {
            let differences = self.differences().await;
            if differences.is_empty() {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "after {step} steps of CALICO_VNI_SEED={} the cluster is not as planned:\n{}",
                self.seed,
                differences.join("\n")
            );
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    async fn list<K>(&self, types: &K::DynamicType) -> Vec<K>
    where
        K: Resource + Clone + DeserializeOwned + std::fmt::Debug,
    {
        let api: Api<K> = Api::all_with(self.stage.client.clone(), types);
        api.list(&ListParams::default()).await.unwrap().items
    }

    async fn differences(&self) -> Vec<String> {
        let v3 = CalicoApi::V3;
        let agents: BTreeMap<String, Arc<Agent>> = self
            .agents
            .iter()
            .map(|(node, agent)| {
                let held = agent.held();
                let programmed = held.tenants().into_iter().map(|(name, vni, _)| (name, vni)).collect();
                let asn = held.config.and_then(|config| Some(config.underlay?.asn));
                let agent = Agent { programmed, frr_running: true, asn, ..Agent::default() };
                ((*node).to_owned(), agent.into())
            })
            .collect();
        let snapshot = Snapshot {
            calico_api: v3,
            tenants: self.list::<Tenant>(&()).await,
            underlays: self.list::<Underlay>(&()).await,
            pools: self.list::<IpPool>(&v3).await,
            blocks: Arc::new(
                self.list::<BlockAffinity>(&v3).await.into_iter().filter_map(Block::of).collect(),
            ),
            nodes: self.list::<Node>(&()).await.into_iter().map(Arc::new).collect(),
            bgp_configurations: self.list::<BgpConfiguration>(&v3).await,
            ipam_configs: self.list::<IpamConfig>(&v3).await,
            felix_configurations: self.list::<FelixConfiguration>(&v3).await,
            namespaces: self.list::<Namespace>(&()).await,
            peers: self.list::<BgpPeer>(&v3).await,
            filters: self.list::<BgpFilter>(&v3).await,
            agents,
            ..Snapshot::default()
        };
        // Who lingers does so for no time here.
        let first = calico_vni_planner::plan(&snapshot);
        let snapshot = Snapshot { lingered: first.lingering.clone(), ..snapshot };
        let plan = calico_vni_planner::plan(&snapshot);
        let mut found = laws(&snapshot);
        found.extend(self.against(&snapshot, &plan));
        found
    }

    fn against(&self, snapshot: &Snapshot, plan: &Plan) -> Vec<String> {
        let mut found = Vec::new();
        let mut expect = |what: String, holds: bool| {
            if !holds {
                found.push(what);
            }
        };
        expect(format!("tenants to make: {:?}", plan.tenants.keys()), plan.tenants.is_empty());
        expect(format!("tenants to delete: {:?}", plan.tenants_to_delete), plan.tenants_to_delete.is_empty());
        expect(format!("tenants finished: {:?}", plan.finished_tenants), plan.finished_tenants.is_empty());
        expect(format!("not kept: {:?}", plan.allocations), plan.allocations.is_empty());
        expect("filters differ".into(), specs(&snapshot.filters) == specs(plan.filters.values()));
        expect("peers differ".into(), specs(&snapshot.peers) == specs(plan.peers.values()));
        for node in &snapshot.nodes {
            let name = node.name_any();
            let labels = node.labels().keys().filter_map(|key| key.strip_prefix(keys::READY_LABEL_PREFIX));
            let labels: BTreeSet<Arc<str>> = labels.map(Arc::from).collect();
            let wanted = plan.labels.get(&name).cloned().unwrap_or_default();
            expect(format!("{name}: labels {labels:?}, wanted {wanted:?}"), labels == wanted);
            if let (Some(agent), Some(config)) = (self.agents.get(name.as_str()), plan.nodes.get(&name)) {
                let held = agent.held();
                expect(
                    format!(
                        "{name} holds {:?}, wanted {:?}",
                        held.tenants(),
                        config.tenants.iter().map(|t| &t.name).collect::<Vec<_>>()
                    ),
                    held.config == Some(config.config()),
                );
                expect(format!("{name} holds another guard"), held.guard == plan.guard);
            }
        }
        for namespace in &snapshot.namespaces {
            for (key, value) in plan.namespaces.get(&namespace.name_any()).into_iter().flatten() {
                let stands = namespace.annotations().get(key);
                expect(
                    format!("{} {key}: {stands:?}, wanted {value:?}", namespace.name_any()),
                    stands == value.as_ref(),
                );
            }
        }
        for tenant in &snapshot.tenants {
            let name = tenant.name_any();
            let held = tenant.finalizers().iter().any(|f| f == keys::FINALIZER);
            expect(format!("{name} is not held"), held || !plan.finalizers.contains(&name));
            let mut status = tenant.status.clone().unwrap_or_default();
            let mut wanted = plan.tenant_status.get(&name).cloned().unwrap_or_default();
            for condition in status.conditions.iter_mut().chain(&mut wanted.conditions) {
                condition.last_transition_time.0 = jiff::Timestamp::UNIX_EPOCH;
            }
            // The planner knows nothing of roll-outs; by now all have ended.
            status.conditions.retain(|c| c.type_ != "RolledOut" || c.status != "True");
            wanted.vni = wanted.vni.or(status.vni);
            wanted.link_index = wanted.link_index.or(status.link_index);
            expect(format!("{name}: status {status:?}\n  wanted {wanted:?}"), status == wanted);
        }
        found
    }
}

/// No two tenants share a number, and no two nodes.
fn laws(snapshot: &Snapshot) -> Vec<String> {
    let mut found = Vec::new();
    let mut seen = BTreeMap::new();
    for tenant in &snapshot.tenants {
        let Some(status) = &tenant.status else { continue };
        if let Some(link) = status.link_index
            && let Some(other) = seen.insert(format!("link {link}"), tenant.name_any())
        {
            found.push(format!("{} and {other} both have link {link}", tenant.name_any()));
        }
        let accepted = status.conditions.iter().any(|c| c.type_ == "Accepted" && c.status == "True");
        if let Some(vni) = status.vni.filter(|_| accepted)
            && let Some(other) = seen.insert(format!("vni {vni}"), tenant.name_any())
        {
            found.push(format!("{} and {other} both have VNI {vni}", tenant.name_any()));
        }
    }
    for node in &snapshot.nodes {
        if let Some(index) = node.annotations().get(keys::ROUTER_INDEX)
            && let Some(other) = seen.insert(format!("router {index}"), node.name_any())
        {
            found.push(format!("{} and {other} are both router {index}", node.name_any()));
        }
    }
    found
}

fn specs<'a, S: CalicoSpec + PartialEq + 'a>(
    objects: impl IntoIterator<Item = &'a Calico<S>>,
) -> BTreeMap<String, S> {
    objects.into_iter().map(|object| (object.name().to_owned(), object.spec.clone())).collect()
}
