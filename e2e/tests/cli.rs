//! `kubectl vni` on a real API server that has no controller: what it reads, what it may not read, and what it leaves as it
//! was. Run after a build of the whole workspace, which makes the program.

use std::{env, path::PathBuf, process::Output};

use calico_vni_e2e::{
    api::{ApiSide, User},
    paths,
};
use serde_json::{Value, json};
use tokio::process::Command;

struct Cluster {
    api: ApiSide,
    programs: PathBuf,
}

impl Cluster {
    async fn start(dir: &std::path::Path) -> Self {
        let kube =
            env::var_os("KUBEBUILDER_ASSETS").map_or_else(|| paths::target("kube").unwrap(), PathBuf::from);
        let programs = paths::programs().unwrap();
        assert!(programs.join("kubectl-vni").exists(), "kubectl-vni is missing: run `make build`");
        Self { api: ApiSide::start(dir, &kube).await.unwrap(), programs }
    }

    async fn vni(&self, user: User, arguments: &[&str]) -> (i32, String) {
        let mut command = Command::new(self.programs.join("kubectl-vni"));
        command.env("KUBECONFIG", self.api.kubeconfig(user)).args(arguments).kill_on_drop(true);
        let Output { status, stdout, stderr } = command.output().await.unwrap();
        (status.code().unwrap(), String::from_utf8(stdout).unwrap() + &String::from_utf8(stderr).unwrap())
    }

    /// What the doctor finds, in order.
    async fn findings(&self) -> Vec<String> {
        let (code, text) = self.vni(User::Admin, &["doctor", "-o", "json"]).await;
        let answer: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"));
        assert_eq!(answer["notChecked"], json!([]), "an administrator may read everything");
        let findings = answer["findings"].as_array().unwrap();
        assert_eq!(code, i32::from(!findings.is_empty()), "{text}");
        let word = |finding: &Value, field: &str| finding[field].as_str().unwrap().to_owned();
        let mut names: Vec<String> =
            findings.iter().map(|f| format!("{}: {}", word(f, "about"), word(f, "reason"))).collect();
        names.sort();
        names
    }

    async fn apply(&self, path: &str) {
        let path = paths::checkout().join(path);
        self.api.kubectl(&["apply", "-f", path.to_str().unwrap()]).await.unwrap();
    }

    async fn apply_object(&self, object: &Value) {
        let file = self.api.dir().join("object.json");
        std::fs::write(&file, object.to_string()).unwrap();
        self.api.kubectl(&["apply", "-f", file.to_str().unwrap()]).await.unwrap();
    }
}

fn underlay() -> Value {
    json!({
        "apiVersion": "calico-vni.io/v1alpha1", "kind": "Underlay", "metadata": { "name": "fabric" },
        "spec": {
            "asn": 65001, "vtepCIDR": "10.255.0.0/24", "interfaces": [{ "name": "eth1" }],
            "neighbors": [{ "address": "192.0.2.1", "asn": 65100, "passwordSecretRef": { "name": "leaf" } }],
        },
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_on_an_api_server() {
    rustls::crypto::ring::default_provider().install_default().ok();
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path()).await;

    // Step by step from a bare cluster to one that lacks only its controller.
    let [tenants, underlays] = ["tenants", "underlays"]
        .map(|kind| format!("CustomResourceDefinition {kind}.calico-vni.io: DefinitionMissing"));
    let policies = ["marks", "pool-annotations", "port-forward", "tenant-pools"]
        .map(|name| format!("ValidatingAdmissionPolicy calico-vni-{name}: PolicyMissing"));
    let mut bare = vec![tenants, underlays];
    bare.extend(policies.clone());
    bare.push("cluster: CalicoMissing".to_owned());
    assert_eq!(cluster.findings().await, bare);
    let (code, text) = cluster.vni(User::Admin, &["status"]).await;
    assert!(code == 2 && text.contains("is Calico installed?"), "{code}: {text}");

    for folder in ["crds/generated", "e2e/calico-crds/v1", "deploy/rbac.yaml"] {
        cluster.apply(folder).await;
    }
    cluster
        .api
        .kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"])
        .await
        .unwrap();
    let mut wanted = policies.to_vec();
    wanted.push("cluster: NoUnderlay".to_owned());
    assert_eq!(cluster.findings().await, wanted);
    cluster.apply("deploy/admission.yaml").await;
    assert_eq!(cluster.findings().await, ["cluster: NoUnderlay"]);

    // Nobody follows; the password is looked for, and never read.
    cluster.apply_object(&underlay()).await;
    let node = |name: &str| json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name } });
    cluster.apply_object(&node("n1")).await;
    let lax = "Calico's IPAM (ipamconfigs.crd.projectcalico.org default): NotStrict";
    let behind = "controller: ControllerBehind";
    assert_eq!(cluster.findings().await, [lax, "Underlay fabric: PasswordNotFound", behind]);
    let secret =
        ["-n", "calico-vni", "create", "secret", "generic", "leaf", "--from-literal=password=hidden-word"];
    cluster.api.kubectl(&secret).await.unwrap();
    assert_eq!(cluster.findings().await, [lax, "Underlay fabric: PasswordNotFound", behind]);
    let label = ["-n", "calico-vni", "label", "secret", "leaf", "calico-vni.io/bgp-password=true"];
    cluster.api.kubectl(&label).await.unwrap();
    assert_eq!(cluster.findings().await, [lax, behind]);
    for arguments in [&["doctor", "-o", "yaml"][..], &["plan", "-o", "yaml"], &["status", "-o", "yaml"]] {
        let (_, text) = cluster.vni(User::Admin, arguments).await;
        assert!(text.contains("fabric") && !text.contains("hidden-word"), "{arguments:?}: {text}");
    }

    // With fewer rights.
    let (code, text) = cluster.vni(User::Controller, &["doctor"]).await;
    assert_eq!(code, 1, "{text}");
    assert!(
        text.contains("  controller: ControllerBehind\n") && text.contains("could not be read"),
        "{text}"
    );
    let unread: Vec<&str> =
        text.lines().skip_while(|line| *line != "NOT CHECKED").take_while(|line| !line.is_empty()).collect();
    assert!(
        unread.iter().any(|line| line
            .starts_with("  leases of namespace calico-vni: leases.coordination.k8s.io is forbidden")),
        "{text}"
    );
    // The API server's sentence, and not the message that it came in.
    assert!(!text.contains("Status {"), "{text}");

    // What would come of manifests that nobody has applied.
    let pool = json!({
        "apiVersion": "crd.projectcalico.org/v1", "kind": "IPPool",
        "metadata": { "name": "red", "annotations": { "calico-vni.io/vni": "1001" } },
        "spec": { "cidr": "10.200.0.0/16", "natOutgoing": false },
    });
    let folder = dir.path().join("manifests");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("pool.json"), pool.to_string()).unwrap();
    let (code, text) = cluster.vni(User::Admin, &["plan", "--cluster", "-f", folder.to_str().unwrap()]).await;
    assert_eq!(code, 0, "{text}");
    for change in ["  BGPPeer calico-vni-vni-1001 (comes)\n", "  Tenant vni-1001 (comes)\n", "  Node n1\n"] {
        assert!(text.contains(change), "{change} is not in {text}");
    }
    assert_eq!(
        cluster.api.kubectl(&["get", "ippools.crd.projectcalico.org,tenants", "-o", "name"]).await.unwrap(),
        ""
    );

    // kubectl itself asks for what may follow.
    let tenant = |name: &str| json!({ "apiVersion": "calico-vni.io/v1alpha1", "kind": "Tenant", "metadata": { "name": name }, "spec": { "vni": 1001 } });
    cluster.apply_object(&tenant("red")).await;
    for (words, answer) in [
        (&["vni", "status", ""][..], "red\n:4\n"),
        (&["vni", "routes", "red", "--node", ""], "n1\n:4\n"),
        (&["vni", "doctor", "--output", "j"], "json\tFor programs\n:4\n"),
    ] {
        assert_eq!(completed(&cluster, words).await, answer, "{words:?}");
    }
}

/// What kubectl says that may follow these words, by the program and its `kubectl_complete-vni` on the `PATH`.
async fn completed(cluster: &Cluster, words: &[&str]) -> String {
    let script = paths::checkout().join("controller/kubectl-vni");
    let path = env::join_paths([cluster.programs.clone(), script, "/usr/bin".into(), "/bin".into()]).unwrap();
    let kube =
        env::var_os("KUBEBUILDER_ASSETS").map_or_else(|| paths::target("kube").unwrap(), PathBuf::from);
    let mut command = Command::new(kube.join("kubectl"));
    command
        .env("PATH", path)
        .env("KUBECONFIG", cluster.api.kubeconfig(User::Admin))
        .arg("__complete")
        .args(words);
    String::from_utf8(command.output().await.unwrap().stdout).unwrap()
}
