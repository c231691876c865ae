//! What users copy and follow: every example is taken by a real API server and planned without a word of complaint, and every
//! reason that an object can be refused for is explained.

use std::{collections::BTreeSet, fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use calico_vni_crds::calico::IpPool;
use calico_vni_e2e::{api::ApiSide, paths, wait};
use calico_vni_planner::{Plan, Snapshot, plan, simulate::settle, snapshot::Agent};
use ipnet::IpNet;
use serde::Deserialize as _;
use serde_json::{Value, json};

/// How long the API server may take to follow a new policy or definition.
const PATIENCE: Duration = Duration::from_mins(2);

/// Conditions that hold when something is wrong. All others hold when all is well.
const BAD: [&str; 1] = ["Degraded"];

/// Examples that are whole by themselves but for `ipam.yaml`, by file name; the others are parts of them.
const PARTS: [&str; 6] = [
    "ipam.yaml",
    "pool-blue-v6.yaml",
    "pool-blue.yaml",
    "pool-red.yaml",
    "tenant-blue.yaml",
    "underlay.yaml",
];

fn examples() -> Vec<PathBuf> {
    let folder = fs::read_dir(paths::checkout().join("examples")).unwrap();
    let mut files: Vec<PathBuf> = folder.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn documents(text: &str) -> Vec<Value> {
    let documents = serde_yaml::Deserializer::from_str(text).map(|d| Value::deserialize(d).unwrap());
    documents.filter(|d| !d.is_null()).collect()
}

/// What the examples take for granted: a node in each of two racks, and the Services that they name, which answer.
fn world() -> Vec<Value> {
    let node = |name: &str, rack: &str| json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name, "labels": { "rack": rack } } });
    let slice = |namespace: &str, service: &str, last: u8, port: u16| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": { "name": service, "namespace": namespace, "labels": { "kubernetes.io/service-name": service } },
            "endpoints": [{ "addresses": [format!("172.18.0.{last}")], "conditions": { "ready": true } }],
            "ports": [{ "name": "main", "protocol": "TCP", "port": port }],
        })
    };
    vec![
        node("n1", "a"),
        node("n2", "b"),
        slice("default", "kubernetes", 11, 6443),
        slice("kube-system", "kube-dns", 12, 53),
        slice("monitoring", "collector", 13, 4317),
    ]
}

/// A block of each pool on each node, as Calico's IPAM would make them for pods there.
fn blocks(snapshot: &Snapshot) -> Vec<Value> {
    let blocks_of = |pool: &IpPool| {
        let blocks: Vec<IpNet> = match pool.spec.cidr.parse().unwrap() {
            IpNet::V4(net) => net.subnets(26).unwrap().take(2).map(IpNet::from).collect(),
            IpNet::V6(net) => net.subnets(122).unwrap().take(2).map(IpNet::from).collect(),
        };
        let nodes = ["n1", "n2"].into_iter().zip(blocks);
        let affinity = |(node, cidr): (&str, IpNet)| {
            json!({
                "apiVersion": "projectcalico.org/v3", "kind": "BlockAffinity",
                "metadata": { "name": format!("{node}-{}", cidr.to_string().replace(['.', ':', '/'], "-")) },
                "spec": { "node": node, "cidr": cidr, "state": "confirmed", "type": "host" },
            })
        };
        nodes.map(affinity).collect::<Vec<_>>()
    };
    snapshot.pools.iter().flat_map(blocks_of).collect()
}

/// What these objects come to on two nodes whose routers obey.
fn planned(objects: &[Value]) -> Plan {
    let mut objects: Vec<Value> = world().into_iter().chain(objects.iter().cloned()).collect();
    objects.extend(blocks(&Snapshot::from_objects(objects.clone()).unwrap()));
    let mut snapshot = Snapshot::from_objects(objects).unwrap();
    for node in ["n1", "n2"] {
        let agent = Agent { frr_running: true, ..Agent::default() };
        snapshot.agents.insert(node.to_owned(), agent.into());
    }
    settle(&snapshot).map_or_else(|| plan(&snapshot), |(_, plan)| plan)
}

/// Everything that an operator would be told is wrong.
fn complaints(plan: &Plan) -> Vec<String> {
    let mut told: Vec<String> =
        plan.notices.iter().map(|n| format!("{:?}: {}: {}", n.about, n.reason, n.message)).collect();
    told.extend(plan.guard.quarantined.iter().map(|net| format!("{net} is quarantined")));
    let tenants = plan.tenant_status.iter().map(|(name, status)| (name, &status.conditions, &status.pools));
    let underlays = (plan.underlay_status.iter())
        .map(|(name, status)| (name, &status.conditions, &status.quarantined_pools));
    for (name, conditions, pools) in tenants.chain(underlays) {
        if conditions.is_empty() {
            told.push(format!("{name}: says nothing"));
        }
        let bad = conditions.iter().filter(|c| (c.status == "True") == BAD.contains(&c.type_.as_str()));
        told.extend(bad.map(|c| format!("{name}: {} {}: {}: {}", c.type_, c.status, c.reason, c.message)));
        let refused = pools.iter().filter(|p| !p.accepted || p.reason.is_some());
        told.extend(refused.map(|p| format!("{name}: {}: {:?}", p.name, p.message)));
    }
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn examples_are_taken_and_planned() -> Result<()> {
    rustls::crypto::ring::default_provider().install_default().ok();
    let dir = tempfile::tempdir()?;
    let programs =
        std::env::var_os("KUBEBUILDER_ASSETS").map_or_else(|| paths::target("kube"), |p| Ok(p.into()))?;
    let api = ApiSide::start(dir.path(), &programs).await?;
    let path = |file: &str| paths::checkout().join(file).to_str().expect("paths are plain").to_owned();
    for folder in ["crds/generated", "e2e/calico-crds/v3"] {
        api.kubectl(&["apply", "-f", &path(folder)]).await?;
    }
    api.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=120s"]).await?;
    for file in ["deploy/rbac.yaml", "deploy/admission.yaml"] {
        api.kubectl(&["apply", "-f", &path(file)]).await?;
    }
    let create = async |file: &str, dry_run: bool| {
        let dry_run = if dry_run { "--dry-run=server" } else { "--dry-run=none" };
        api.kubectl(&["create", "--validate=strict", dry_run, "-o", "json", "-f", file]).await
    };

    // A pool with a VNI that is none: once it is refused the policies are in force for what follows.
    let wrong = dir.path().join("wrong.yaml");
    let right = fs::read_to_string(path("examples/pool-red.yaml"))?;
    ensure!(right.contains("\"1001\""), "the wrong twin is made from the annotation of pool-red.yaml");
    fs::write(&wrong, right.replace("\"1001\"", "\"16777216\""))?;
    let wrong = wrong.to_str().context("a path")?;
    wait::until("the policies to be in force", PATIENCE, async || match create(wrong, true).await {
        Ok(_) => bail!("VNI 16777216 was taken"),
        Err(error) => {
            let text = format!("{error:#}");
            ensure!(text.contains("16777216 is no VNI"), "refused for something else: {text}");
            Ok(())
        }
    })
    .await?;
    // And one with a field that there is not.
    let misspelt = dir.path().join("misspelt.yaml");
    fs::write(
        &misspelt,
        fs::read_to_string(path("examples/underlay.yaml"))?.replace("vniRange:", "vniRanges:"),
    )?;
    let refused = create(misspelt.to_str().context("a path")?, true)
        .await
        .err()
        .context("a misspelt field was taken")?;
    ensure!(format!("{refused:#}").contains("vniRanges"), "{refused:#}");

    let ipam: Value = serde_json::from_str(&create(&path("examples/ipam.yaml"), true).await?)?;
    let mut parts = Vec::new();
    for file in examples() {
        let name = file.file_name().and_then(|n| n.to_str()).context("a file's name")?.to_owned();
        let file = file.to_str().context("a path")?;
        let printed = create(file, false).await.with_context(|| name.clone())?;
        // Objects are printed one after the other, each as the API server keeps it.
        let objects = serde_json::Deserializer::from_str(&printed)
            .into_iter::<Value>()
            .collect::<Result<Vec<_>, _>>()?;
        let written = documents(&fs::read_to_string(file)?).len();
        let taken: usize = objects.iter().map(|o| o["items"].as_array().map_or(1, Vec::len)).sum();
        ensure!(taken == written, "{name}: {taken} of {written} objects were taken");
        api.kubectl(&["delete", "--wait", "--timeout=300s", "-f", file])
            .await
            .with_context(|| name.clone())?;
        if PARTS.contains(&name.as_str()) {
            parts.extend(objects);
        } else {
            judge(&name, objects, &ipam)?;
        }
    }
    judge("the parts together", parts, &Value::Null)
}

/// Nothing is told of an example, and something is told of its wrong twin: one whose pools are encapsulated.
fn judge(name: &str, mut objects: Vec<Value>, ipam: &Value) -> Result<()> {
    if !objects.iter().any(|o| o.to_string().contains("\"IPAMConfiguration\"")) {
        objects.push(ipam.clone());
    }
    let plan = planned(&objects);
    let told = complaints(&plan);
    ensure!(told.is_empty(), "{name}:\n{}", told.join("\n"));
    for (tenant, status) in &plan.tenant_status {
        let nodes = status.nodes.as_ref().map(|n| n.ready.as_str());
        ensure!(nodes == Some("2/2"), "{name}: Tenant {tenant} stands on {nodes:?} of the nodes");
        ensure!(
            status.vni.is_some() && status.link_index.is_some(),
            "{name}: Tenant {tenant} has no numbers"
        );
    }
    ensure!(!plan.tenant_status.is_empty(), "{name}: there is no Tenant");

    let twin: Vec<Value> = (objects.iter())
        .map(|o| {
            serde_json::from_str(
                &o.to_string().replace("\"vxlanMode\":\"Never\"", "\"vxlanMode\":\"Always\""),
            )
        })
        .collect::<Result<_, _>>()?;
    ensure!(twin != objects, "{name}: has no pool whose vxlanMode is Never");
    let told = complaints(&planned(&twin)).join("\n");
    ensure!(
        told.contains("spec.vxlanMode: Always") && told.contains("is quarantined"),
        "{name}, wrong: {told}"
    );
    Ok(())
}

/// The words of these constants, as `pub const NAME: &str = "Word";`.
fn words(source: &str) -> BTreeSet<&str> {
    source.lines().filter_map(|line| line.strip_prefix("pub const ")?.split('"').nth(1)).collect()
}

/// Those that the page does not explain: each has a row of a table, which begins with it.
fn unexplained<'w>(words: &BTreeSet<&'w str>, page: &str) -> Vec<&'w str> {
    words.iter().copied().filter(|word| !page.contains(&format!("\n| `{word}` |"))).collect()
}

#[test]
fn every_reason_is_explained() {
    let read = |file: &str| fs::read_to_string(paths::checkout().join(file)).unwrap();
    let (source, page) = (read("controller/planner/src/reason.rs"), read("docs/troubleshooting.md"));
    let words = words(&source);
    assert!(words.contains("PoolOverlap") && words.len() > 50, "{words:?}");
    assert_eq!(unexplained(&words, &page), [""; 0], "docs/troubleshooting.md does not say what to do");
    let without = page.replace("\n| `PoolOverlap` |", "\n| `Overlap` |");
    assert_eq!(unexplained(&words, &without), ["PoolOverlap"]);
}
