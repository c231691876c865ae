//! Who may ask the routers: a real API server and a real controller over TLS, and a user with fewer and with more rights. No
//! kubelet is here, so a port-forward ends where the API server would reach for one (`make kind-e2e` goes all the way). Run after
//! a build of the whole workspace, which makes the programs.

use std::{env, path::PathBuf, time::Duration};

use anyhow::ensure;
use calico_vni_e2e::{
    api::{ApiSide, Process, User},
    paths,
    site::free_ports,
    wait,
};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use serde_json::json;
use tokio::process::Command;

const PATIENCE: Duration = Duration::from_mins(1);

struct Cluster {
    api: ApiSide,
    controller: String,
}

impl Cluster {
    /// `kubectl vni` of the viewer's.
    async fn vni(&self, arguments: &[&str]) -> (i32, String) {
        let mut command = Command::new(paths::programs().unwrap().join("kubectl-vni"));
        command.env("KUBECONFIG", self.api.kubeconfig(User::Viewer)).args(arguments).kill_on_drop(true);
        let output = command.output().await.unwrap();
        let text = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).concat();
        (output.status.code().unwrap(), text)
    }

    /// The same, at the controller's address.
    async fn ask(&self, arguments: &[&str]) -> (i32, String) {
        self.vni(&[arguments, &["--controller", &self.controller]].concat()).await
    }

    async fn apply_text(&self, text: &str) {
        let file = self.api.dir().join("objects.json");
        std::fs::write(&file, text).unwrap();
        self.api.kubectl(&["apply", "-f", file.to_str().unwrap()]).await.unwrap();
    }

    /// What a port-forward of the viewer's comes to.
    async fn forward(&self, pod: &str) -> String {
        let pods: Api<Pod> = Api::namespaced(self.api.client(User::Viewer).await.unwrap(), "calico-vni");
        match pods.portforward(pod, &[9443]).await {
            Ok(_) => panic!("there is no kubelet"),
            Err(error) => error.to_string(),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_the_roles_may_look_and_nobody_else() {
    rustls::crypto::ring::default_provider().install_default().ok();
    let dir = tempfile::tempdir().unwrap();
    let kube =
        env::var_os("KUBEBUILDER_ASSETS").map_or_else(|| paths::target("kube").unwrap(), PathBuf::from);
    let api = ApiSide::start(dir.path(), &kube).await.unwrap();
    let [port] = free_ports().unwrap();
    let cluster = Cluster { api, controller: format!("https://127.0.0.1:{port}") };
    for folder in ["crds/generated", "e2e/calico-crds/v3", "deploy/rbac.yaml"] {
        let path = paths::checkout().join(folder);
        cluster.api.kubectl(&["apply", "-f", path.to_str().unwrap()]).await.unwrap();
    }
    let established = ["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"];
    cluster.api.kubectl(&established).await.unwrap();
    for file in ["deploy/admission.yaml", "examples/ipam.yaml", "examples/underlay.yaml"] {
        let path = paths::checkout().join(file);
        cluster.api.kubectl(&["apply", "-f", path.to_str().unwrap()]).await.unwrap();
    }
    cluster
        .apply_text(&json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1" } }).to_string())
        .await;
    let mut command = Command::new(paths::programs().unwrap().join("calico-vni-controller"));
    command
        .env("KUBECONFIG", cluster.api.kubeconfig(User::Controller))
        .env("POD_NAME", "calico-vni-controller-0")
        .args([
            "--grpc-listen",
            &format!("127.0.0.1:{port}"),
            "--http-listen",
            "127.0.0.1:0",
            "--tls",
            "--leader-elect",
            "--namespace",
            "calico-vni",
        ]);
    let _controller = Process::start("calico-vni-controller", &command, cluster.api.dir()).unwrap();

    // Without a role nothing is read, with the cluster's alone no router is asked.
    let (code, text) = cluster.ask(&["sessions"]).await;
    assert!(code == 2 && text.contains("forbidden"), "{code}: {text}");
    let role = ["create", "clusterrolebinding", "viewer", "--clusterrole=calico-vni-viewer", "--user=viewer"];
    cluster.api.kubectl(&role).await.unwrap();
    let (code, text) = wait::until("the controller's authority to be there", PATIENCE, async || {
        let (code, text) = cluster.ask(&["sessions"]).await;
        // There has to be a router to ask, too.
        ensure!(code == 2 && text.contains("no router was asked"), "{code}: {text}");
        Ok((code, text))
    })
    .await
    .unwrap();
    assert!(code == 2 && text.contains("WITH THE FABRIC") && text.contains("forbidden"), "{code}: {text}");
    let (code, text) = cluster.vni(&["sessions", "--no-ask"]).await;
    assert!(code < 2 && text.contains("no router was asked.\n"), "{code}: {text}");

    let role =
        ["-n", "calico-vni", "create", "rolebinding", "viewer", "--role=calico-vni-viewer", "--user=viewer"];
    cluster.api.kubectl(&role).await.unwrap();
    let text = wait::until("the controller to answer", PATIENCE, async || {
        let (code, text) = cluster.ask(&["sessions"]).await;
        ensure!(code == 1, "{code}: {text}");
        Ok(text)
    })
    .await
    .unwrap();
    assert!(text.contains("NO ANSWER from n1: its agent is not connected"), "{text}");

    // Nor is a controller believed that does not prove itself, and then it is shown no token.
    let stranger = cluster.api.ca().unwrap();
    let file = dir.path().join("stranger.crt");
    std::fs::write(&file, stranger).unwrap();
    let (code, text) = cluster.ask(&["sessions", "--ca-file", file.to_str().unwrap()]).await;
    assert!(code == 2 && text.contains("UnknownIssuer"), "{code}: {text}");

    // The way by the API server: to the controller's pods, and to no router.
    for name in ["calico-vni-controller-0", "calico-vni-router-x"] {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": "calico-vni" },
            "spec": { "nodeName": "n1", "automountServiceAccountToken": false, "containers": [{ "name": "c", "image": "c" }] },
        });
        cluster.apply_text(&pod.to_string()).await;
    }
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "calico-vni-controller", "namespace": "calico-vni" },
        "spec": { "ports": [{ "name": "grpc", "port": port }] },
    });
    cluster.apply_text(&service.to_string()).await;
    let text = wait::until("the policy to be in force", PATIENCE, async || {
        let text = cluster.forward("calico-vni-router-x").await;
        ensure!(text.contains("calico-vni-port-forward"), "{text}");
        Ok(text)
    })
    .await
    .unwrap();
    assert!(text.contains("for the controller alone"), "{text}");
    let text = cluster.forward("calico-vni-controller-0").await;
    assert!(
        text.contains("no preferred addresses found"),
        "the API server would reach for its kubelet: {text}"
    );
    let (code, text) = cluster.vni(&["sessions"]).await;
    assert!(
        code == 2 && text.contains("port-forward to pod calico-vni/calico-vni-controller-0"),
        "{code}: {text}"
    );
    assert!(text.contains("no preferred addresses found"), "{text}");
    // Who may run programs there is held up by nothing.
    let pods: Api<Pod> = Api::namespaced(cluster.api.client(User::Admin).await.unwrap(), "calico-vni");
    let error = pods.portforward("calico-vni-router-x", &[9443]).await.err().unwrap().to_string();
    assert!(error.contains("no preferred addresses found"), "{error}");

    // These and nothing else are theirs.
    for (may, verb, what, subresource) in [
        (true, "create", "serviceaccounts/calico-vni-viewer", "token"),
        (false, "create", "serviceaccounts/calico-vni-router", "token"),
        (false, "create", "serviceaccounts/calico-vni-controller", "token"),
        (true, "create", "pods", "portforward"),
        (false, "create", "pods", "exec"),
        (true, "get", "configmaps/calico-vni-authority", ""),
        (false, "get", "secrets/calico-vni-authority", ""),
        (true, "get", "leases/calico-vni-controller", ""),
        (false, "update", "leases/calico-vni-controller", ""),
        (false, "list", "pods", ""),
        (true, "list", "tenants.calico-vni.io", ""),
        (false, "patch", "tenants.calico-vni.io", ""),
    ] {
        let subresource = format!("--subresource={subresource}");
        let args = ["-n", "calico-vni", "auth", "can-i", "--as=viewer", verb, what, &subresource];
        let said = cluster.api.kubectl(&args).await;
        assert_eq!(said.is_ok(), may, "{verb} {what} {subresource}: {said:?}");
    }
}
