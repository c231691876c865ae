//! `kubectl vni doctor` in broken situations: each is made, its one cause is found with the remedy and nothing else is,
//! it is undone, and nothing is found any more. Before the first, nothing is found either.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::demo::{RED_TENANT, all_cells};
use crate::{
    api::User,
    leaf, step,
    topology::{LEAF_ASN, ROUTER_ASN},
    wait,
    world::{ADMISSION, World},
};

/// How long it may take until what was broken is seen: an agent trusts a silent FRR for a minute, and a look of the
/// doctor's is two where something is on its way.
const SEEN: Duration = Duration::from_mins(4);

/// Octets of the fabric's links in the lab.
const FABRIC_MTU: u32 = 9_000;

/// A finding that there has to be.
struct Expected {
    about: String,
    reason: &'static str,
    /// All of these are in cause, remedy or commands.
    words: &'static [&'static str],
}

fn expected(about: impl Into<String>, reason: &'static str, words: &'static [&'static str]) -> Expected {
    Expected { about: about.into(), reason, words }
}

/// Makes one after the other.
pub async fn play(world: &mut World) -> Result<()> {
    services(world, true).await?;
    well(world, "before anything is broken").await?;
    let played = async {
        settings(world).await?;
        pools(world).await?;
        tenants(world).await?;
        underlays(world).await?;
        installation(world).await?;
        rights(world).await?;
        nodes(world).await?;
        without_controller(world).await
    };
    let played = played.await;
    services(world, false).await?;
    played?;
    all_cells(world, &["red", "blue"]).await
}

/// Endpoints of the two Services that every tenant reaches: in the lab nobody makes them.
pub async fn services(world: &World, there: bool) -> Result<()> {
    for (namespace, name, port, protocol) in
        [("default", "kubernetes", 6443, "TCP"), ("kube-system", "kube-dns", 53, "UDP")]
    {
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "name": "doctor", "namespace": namespace, "labels": { "kubernetes.io/service-name": name } },
            "addressType": "IPv4",
            "ports": [{ "name": "p", "protocol": protocol, "port": port }],
            "endpoints": [{ "addresses": ["172.18.0.200"], "conditions": { "ready": true } }],
        });
        if there {
            world.apply(&slice).await?;
        } else {
            world
                .kubectl(&["-n", namespace, "delete", "endpointslice", "doctor", "--ignore-not-found"])
                .await?;
        }
    }
    Ok(())
}

/// Settings of Calico and of kube-proxy.
async fn settings(world: &World) -> Result<()> {
    let ipam = match world.calico {
        calico_vni_crds::calico::CalicoApi::V3 => world.resource("ipamconfigurations"),
        calico_vni_crds::calico::CalicoApi::CrdV1 => world.resource("ipamconfigs"),
    };
    let strict = async |strict: bool| {
        let patch = json!({ "spec": { "strictAffinity": strict } }).to_string();
        world.kubectl(&["patch", &ipam, "default", "--type=merge", "-p", &patch]).await
    };
    strict(false).await?;
    let about = format!("Calico's IPAM ({ipam} default)");
    found(
        world,
        "strict affinity off",
        &[expected(about, "NotStrict", &["calicoctl ipam configure --strictaffinity=true"])],
    )
    .await?;
    strict(true).await?;
    well(world, "strict affinity on").await?;

    let felix = world.resource("felixconfigurations");
    world.apply(&world.manifest("FelixConfiguration", "default", &json!({ "bpfEnabled": true }))).await?;
    found(
        world,
        "eBPF data plane",
        &[expected("Underlay fabric", "EBPFDataPlane", &["spec.bpfEnabled: true", "\"bpfEnabled\":false"])],
    )
    .await?;
    world.kubectl(&["delete", &felix, "default"]).await?;
    well(world, "no eBPF data plane").await?;

    for (map, data, want) in [
        (
            "kube-proxy",
            json!({ "config.conf": "mode: ipvs\n" }),
            expected(
                "ConfigMap kube-system/kube-proxy",
                "IPVS",
                &["not proven", "edit configmap kube-proxy"],
            ),
        ),
        (
            "calico-config",
            json!({ "calico_backend": "vxlan" }),
            expected(
                "ConfigMap kube-system/calico-config",
                "BGPDisabled",
                &["`vxlan`", "\"calico_backend\":\"bird\""],
            ),
        ),
    ] {
        world.apply(&json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": map, "namespace": "kube-system" }, "data": data })).await?;
        found(world, &format!("ConfigMap {map}"), &[want]).await?;
        world.kubectl(&["-n", "kube-system", "delete", "configmap", map]).await?;
        well(world, &format!("no ConfigMap {map}")).await?;
    }
    Ok(())
}

/// A pool `bad` in one wrong way after the other.
async fn pools(world: &World) -> Result<()> {
    struct Bad {
        what: &'static str,
        annotation: (&'static str, &'static str),
        spec: Value,
        reason: &'static str,
        words: &'static [&'static str],
    }
    let plain =
        json!({ "cidr": "10.210.0.0/16", "vxlanMode": "Never", "ipipMode": "Never", "natOutgoing": false });
    let with = |field: &str, value: Value| {
        let mut spec = plain.clone();
        spec[field] = value;
        spec
    };
    let vni = ("calico-vni.io/vni", "3001");
    // The policy would refuse the last one; its own absence is a finding too.
    for bad in [
        Bad {
            what: "encapsulated pool",
            annotation: vni,
            spec: with("vxlanMode", json!("Always")),
            reason: "Encapsulated",
            words: &["spec.vxlanMode: Always", "\"vxlanMode\":\"Never\""],
        },
        Bad {
            what: "natOutgoing",
            annotation: vni,
            spec: with("natOutgoing", json!(true)),
            reason: "NatOutgoing",
            words: &["spec.natOutgoing", "\"natOutgoing\":false"],
        },
        Bad {
            what: "overlapping pool",
            annotation: vni,
            spec: with("cidr", json!("10.200.128.0/17")),
            reason: "PoolOverlap",
            words: &["10.200.0.0/16", "`red`", "delete"],
        },
        Bad {
            what: "pool of nobody",
            annotation: ("calico-vni.io/tenant", "nobody"),
            spec: plain.clone(),
            reason: "TenantNotFound",
            words: &["`nobody`", "calico-vni.io/tenant=NAME"],
        },
        Bad {
            what: "annotation that is no VNI",
            annotation: ("calico-vni.io/vni", "abc"),
            spec: plain.clone(),
            reason: "InvalidVNI",
            words: &["`abc`", "calico-vni.io/vni=NUMBER"],
        },
    ] {
        let refused = bad.reason == "InvalidVNI";
        let policy = expected(
            "ValidatingAdmissionPolicy calico-vni-pool-annotations",
            "PolicyMissing",
            &["no binding", "kubectl apply -f deploy/admission.yaml"],
        );
        let mut wanted = vec![expected("IPPool bad", bad.reason, bad.words)];
        if refused {
            world
                .kubectl(&["delete", "validatingadmissionpolicybinding", "calico-vni-pool-annotations"])
                .await?;
            found(world, "admission policy not bound", &[policy]).await?;
            wanted.push(expected(
                "ValidatingAdmissionPolicy calico-vni-pool-annotations",
                "PolicyMissing",
                &[],
            ));
        }
        let mut pool = world.manifest("IPPool", "bad", &bad.spec);
        pool["metadata"]["annotations"] = json!({ bad.annotation.0: bad.annotation.1 });
        // It may be a moment until the API server has heard that the policy no longer holds.
        wait::until("the pool to be taken", SEEN, async || world.apply(&pool).await).await?;
        found(world, bad.what, &wanted).await?;
        world.kubectl(&["delete", &world.resource("ippools"), "bad"]).await?;
        if refused {
            world.apply_file(ADMISSION).await?;
        }
        well(world, &format!("no {}", bad.what)).await?;
    }
    Ok(())
}

/// Tenants that have nothing, or what is another's.
async fn tenants(world: &World) -> Result<()> {
    let tenant = |name: &str, vni: u32| json!({ "apiVersion": "calico-vni.io/v1alpha1", "kind": "Tenant", "metadata": { "name": name }, "spec": { "vni": vni } });
    for (what, object, want) in [
        (
            "two Tenants of one VNI",
            tenant("thief", 1002),
            expected(
                "Tenant thief",
                "VNIConflict",
                &["1002", "`blue`", "kubectl delete tenants.calico-vni.io thief"],
            ),
        ),
        (
            "Tenant without pools",
            tenant("empty", 3005),
            expected("Tenant empty", "NoPools", &["no IPPool names it", "calico-vni.io/tenant=empty"]),
        ),
    ] {
        let name = object["metadata"]["name"].as_str().context("a name")?.to_owned();
        world.apply(&object).await?;
        found(world, what, &[want]).await?;
        world.kubectl(&["delete", "tenants.calico-vni.io", &name]).await?;
        well(world, &format!("no {what}")).await?;
    }

    // A person's BGPPeer is where that of the next tenant would be; its pool is one that nobody uses.
    let (peers, taken) = (world.resource("bgppeers"), "calico-vni-vni-3006");
    let spec = json!({ "peerIP": "192.0.2.200", "asNumber": 65200, "nodeSelector": "nobody == 'here'" });
    world.apply(&world.manifest("BGPPeer", taken, &spec)).await?;
    world.put_pool("lonely", "10.211.0.0/16").await?;
    world.annotate_pools(&["lonely"], "calico-vni.io/vni", "3006").await?;
    found(
        world,
        "a person's BGPPeer with our name",
        &[
            expected(
                format!("BGPPeer {taken}"),
                "NameTaken",
                &["Tenant vni-3006", "left alone", "kubectl delete bgppeers"],
            ),
            expected("IPPool lonely", "PoolUnused", &["no node has a block", "assignmentMode is Manual"]),
        ],
    )
    .await?;
    world.kubectl(&["delete", &world.resource("ippools"), "lonely"]).await?;
    world.kubectl(&["delete", &peers, taken]).await?;
    well(world, "no such BGPPeer").await
}

/// Underlays beside the one of the lab, and that one with a mistake.
async fn underlays(world: &World) -> Result<()> {
    let underlay = |name: &str, asn: u32, selector: Value| {
        json!({
            "apiVersion": "calico-vni.io/v1alpha1", "kind": "Underlay", "metadata": { "name": name },
            "spec": { "asn": asn, "vtepCIDR": "10.254.0.0/24", "neighbors": [{ "address": "192.0.2.1", "asn": LEAF_ASN }],
                "interfaces": [{ "name": "eth1" }], "nodeSelector": selector },
        })
    };
    world.apply(&underlay("second", ROUTER_ASN, json!({}))).await?;
    let ambiguous = world.lab.members.iter().map(|node| {
        expected(
            format!("Node {}", node.name),
            "UnderlayAmbiguous",
            &["`fabric`, `second`", "kubectl edit underlays.calico-vni.io"],
        )
    });
    found(world, "two Underlays select the nodes", &ambiguous.collect::<Vec<_>>()).await?;
    world.kubectl(&["delete", "underlays.calico-vni.io", "second"]).await?;
    well(world, "one Underlay").await?;

    world.apply(&underlay("wrong", 64512, json!({ "matchLabels": { "no": "node" } }))).await?;
    found(
        world,
        "an Underlay with Calico's ASN",
        &[expected("Underlay wrong", "ASNConflict", &["64512 is Calico's own", "an ASN of their own"])],
    )
    .await?;
    world.kubectl(&["delete", "underlays.calico-vni.io", "wrong"]).await?;
    well(world, "no ASN of Calico's").await
}

/// What is installed, by objects whose pods nobody starts in the lab.
async fn installation(world: &World) -> Result<()> {
    let template = |account: &str| json!({ "metadata": { "labels": { "app": "x" } }, "spec": { "serviceAccountName": account, "containers": [{ "name": "c", "image": "i" }] } });
    let workload = |kind: &str, name: &str| {
        json!({
            "apiVersion": "apps/v1", "kind": kind, "metadata": { "name": name, "namespace": "calico-vni" },
            "spec": { "selector": { "matchLabels": { "app": "x" } }, "template": template(name) },
        })
    };
    world.apply(&workload("DaemonSet", "calico-vni-agent")).await?;
    let agents = world.lab.members.iter().map(|node| {
        expected(
            format!("Node {}", node.name),
            "AgentNotRunning",
            &["no pod of DaemonSet calico-vni/calico-vni-agent", "describe daemonset"],
        )
    });
    found(world, "routers without pods", &agents.collect::<Vec<_>>()).await?;
    world.kubectl(&["-n", "calico-vni", "delete", "daemonset", "calico-vni-agent"]).await?;
    well(world, "no DaemonSet").await?;

    world.apply(&workload("Deployment", "calico-vni-controller")).await?;
    let about = "Deployment calico-vni/calico-vni-controller";
    found(
        world,
        "controller without pods",
        &[expected(about, "ControllerNotRunning", &["no pod of 1 is available", "logs"])],
    )
    .await?;
    world.kubectl(&["-n", "calico-vni", "delete", "deployment", "calico-vni-controller"]).await?;
    well(world, "no Deployment").await
}

/// With the rights of the controller the doctor sees less, and says so instead of saying that all is well.
async fn rights(world: &World) -> Result<()> {
    let (code, text) = doctor(world, User::Controller, &[]).await?;
    ensure!(
        code == 2 && text.contains("NOT CHECKED") && text.contains("validatingadmissionpolicies"),
        "{code}: {text}"
    );
    ensure!(text.contains("No problem was found in what could be read"), "{text}");
    step!("with fewer rights: what cannot be read is named, exit code 2");
    Ok(())
}

/// Routers, their FRR, their sessions, their interfaces.
async fn nodes(world: &World) -> Result<()> {
    let node = &world.lab.members[0];
    let about = format!("Node {}", node.name);

    world.router(node).kill_agent(world).await?;
    found(
        world,
        "agent down",
        &[expected(
            "Underlay fabric",
            "AgentNotConnected",
            &["of 1 of the Nodes n1, n2", "calico-vni-router run"],
        )],
    )
    .await?;
    world.router(node).start_agent(world).await?;
    well(world, "agent up").await?;

    let nodes = world.lab.nodes();
    let enter = ["enable".to_owned(), "configure terminal".into(), format!("router bgp {LEAF_ASN}")];
    let neighbor = |asn: u32| format!("neighbor {} remote-as {asn}", node.fabric_address());
    let on_leaf = async |asn: u32| {
        let lines: Vec<String> = enter.iter().cloned().chain([neighbor(asn)]).collect();
        nodes.vty(leaf::BGPD, &lines.iter().map(String::as_str).collect::<Vec<_>>()).await
    };
    on_leaf(ROUTER_ASN + 8).await?;
    found(
        world,
        "the switch expects another ASN",
        &[expected(
            "Underlay fabric",
            "SessionsDown",
            &["1 of 2", "(AS 65100)", "spec.neighbors[].asn", "kubectl vni sessions"],
        )],
    )
    .await?;
    on_leaf(ROUTER_ASN).await?;
    well(world, "the switch expects the right ASN").await?;

    world.router(node).kill_frr(world).await?;
    found(
        world,
        "FRR down",
        &[expected(&about, "FRRDown", &["FRR does not answer", "calico-vni-router frr"])],
    )
    .await?;
    world.router(node).start_frr(world).await?;
    well(world, "FRR up").await?;

    let mtu = async |mtu: Value| {
        let patch = json!({ "spec": { "mtu": mtu } }).to_string();
        world.kubectl(&["patch", "underlays.calico-vni.io", "fabric", "--type=merge", "-p", &patch]).await
    };
    mtu(json!(1500)).await?;
    let wide = world.lab.members.iter().map(|node| {
        expected(
            format!("Node {}", node.name),
            "PodMtu",
            &["an MTU of 1500, the tenant carries 1450", "lower Calico's MTU"],
        )
    });
    found(world, "pods wider than the tenant", &wide.collect::<Vec<_>>()).await?;
    // Absent it would be that of the interface, which is narrow now.
    mtu(json!(FABRIC_MTU)).await?;
    well(world, "the fabric as wide as before").await?;
    mtu(Value::Null).await?;

    let interfaces = async |names: &[&str]| {
        let names: Vec<Value> = names.iter().map(|name| json!({ "name": name })).collect();
        let patch = json!({ "spec": { "interfaces": names } }).to_string();
        world.kubectl(&["patch", "underlays.calico-vni.io", "fabric", "--type=merge", "-p", &patch]).await
    };
    interfaces(&["eth1", "eth9"]).await?;
    // The change goes to one node first, and no further.
    let missing = [
        expected(
            &about,
            "UplinkMissing",
            &["`eth9`", "spec.interfaces", "kubectl edit underlays.calico-vni.io fabric"],
        ),
        expected("Underlay fabric", "RollOutStopped", &["n1", "undo the change"]),
    ];
    found(world, "an interface that is not there", &missing).await?;
    interfaces(&["eth1"]).await?;
    well(world, "all interfaces there").await
}

/// What nobody puts right while the controller is gone, and that it is gone.
async fn without_controller(world: &mut World) -> Result<()> {
    let peers = world.resource("bgppeers");
    world.kill_controller().await?;
    let peer = format!("calico-vni-{RED_TENANT}");
    world.kubectl(&["delete", &peers, &peer]).await?;
    let label = format!("tenant.calico-vni.io/{RED_TENANT}");
    world.kubectl(&["label", "node", "n2", &format!("{label}-")]).await?;
    world.kubectl(&["label", "node", "n1", "tenant.calico-vni.io/nobody=ready"]).await?;
    let edited = || {
        vec![
            expected(format!("BGPPeer {peer}"), "PeerMissing", &["BIRD meets no router"]),
            expected(format!("Tenant {RED_TENANT}"), "LabelMissing", &["is on n1", "kubectl get nodes -l"]),
            expected("Node n1", "LabelEdited", &["tenant.calico-vni.io/nobody=ready", "calico-vni-marks"]),
        ]
    };
    found(world, "a BGPPeer deleted, a label taken off, a label put on", &edited()).await?;

    let patch = r#"{"spec":{"maxPrefixes":501}}"#;
    world.kubectl(&["patch", "tenant", "blue", "--type=merge", "-p", patch]).await?;
    let mut wanted = edited();
    wanted.push(expected(
        "controller",
        "ControllerBehind",
        &[
            "no controller does what is wanted",
            "the status of Tenant blue",
            "calico-vni-controller --grpc-listen",
        ],
    ));
    found(world, "no controller", &wanted).await?;

    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": { "name": "calico-vni-controller", "namespace": "calico-vni" },
        "spec": { "holderIdentity": "one-that-is-gone", "leaseDurationSeconds": 15, "renewTime": "2020-01-01T00:00:00.000000Z" },
    });
    world.apply(&lease).await?;
    let mut wanted = edited();
    let about = "Lease calico-vni/calico-vni-controller";
    wanted.push(expected(
        about,
        "ControllerNotLeading",
        &["one-that-is-gone", "nobody leads", "the status of Tenant blue"],
    ));
    found(world, "a Lease that nobody renews", &wanted).await?;
    world.kubectl(&["-n", "calico-vni", "delete", "lease", "calico-vni-controller"]).await?;

    world.start_controller().await?;
    well(world, "with a controller").await?;
    world
        .kubectl(&["patch", "tenant", "blue", "--type=merge", "-p", r#"{"spec":{"maxPrefixes":500}}"#])
        .await?;
    well(world, "blue as it was").await
}

/// Waits until the doctor finds exactly this, and reads how it says so.
async fn found(world: &World, what: &str, wanted: &[Expected]) -> Result<()> {
    let (findings, text) = wait::until(&format!("the doctor to find: {what}"), SEEN, async || {
        let (code, text) = doctor(world, User::Admin, &["-o", "json"]).await?;
        let answer: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
        let findings = answer["findings"].as_array().context("no findings")?.clone();
        let names = |f: &Value| {
            format!(
                "{}: {}",
                f["about"].as_str().unwrap_or_default(),
                f["reason"].as_str().unwrap_or_default()
            )
        };
        let mut seen: Vec<String> = findings.iter().map(names).collect();
        let mut all: Vec<String> = wanted.iter().map(|w| format!("{}: {}", w.about, w.reason)).collect();
        seen.sort();
        all.sort();
        ensure!(seen == all, "{seen:?}, not {all:?}");
        ensure!(code == 1, "exit code {code}");
        let (_, text) = doctor(world, User::Admin, &[]).await?;
        for want in wanted {
            ensure!(
                text.contains(&format!("  {}: {}\n    cause: ", want.about, want.reason)),
                "not in: {text}"
            );
        }
        Ok((findings, text))
    })
    .await?;
    for want in wanted {
        let of = |f: &&Value| f["about"] == *want.about && f["reason"] == want.reason;
        let finding = findings.iter().find(of).context("a finding that was there")?;
        let commands = finding["commands"].as_array().into_iter().flatten();
        let said: Vec<&str> = [&finding["cause"], &finding["remedy"]]
            .into_iter()
            .chain(commands)
            .filter_map(Value::as_str)
            .collect();
        let said = said.join("\n");
        for word in want.words {
            ensure!(said.contains(word), "{what}: `{word}` is not in: {said}");
            ensure!(text.contains(word), "{what}: `{word}` is not in: {text}");
        }
        step!("{what}: {}: {}: {}", want.about, want.reason, finding["cause"].as_str().unwrap_or_default());
    }
    Ok(())
}

/// Waits until it finds nothing.
async fn well(world: &World, what: &str) -> Result<()> {
    wait::until(&format!("the doctor to find nothing: {what}"), SEEN, async || {
        let (code, text) = doctor(world, User::Admin, &[]).await?;
        ensure!(code == 0 && text == "No problem was found (0 hints).\n", "{code}: {text}");
        Ok(())
    })
    .await?;
    step!("{what}: nothing is found");
    Ok(())
}

/// Runs it with somebody's rights: exit code, and what it prints.
async fn doctor(world: &World, user: User, arguments: &[&str]) -> Result<(i32, String)> {
    let mut command = world.vni(user, &[&["doctor"], arguments].concat())?;
    let output = command.output().await.context("kubectl-vni does not start")?;
    let code = output.status.code().context("kubectl-vni was killed")?;
    let text = String::from_utf8(output.stdout).context("what kubectl-vni prints")?;
    ensure!(!text.is_empty(), "exit code {code}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok((code, text))
}
