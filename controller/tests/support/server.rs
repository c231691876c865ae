//! A real etcd and kube-apiserver on loopback, with an audit log; for one test, gone with it.

use std::{
    fs::File,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use jiff::Timestamp;
use k8s_openapi::api::{core::v1::Namespace, rbac::v1::ClusterRoleBinding};
use kube::{
    Api, Client, Config, ResourceExt,
    api::{DynamicObject, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::{ApiResource, GroupVersionKind},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::eventually;

/// The user that `deploy/rbac.yaml` is about.
const CONTROLLER: &str = "system:serviceaccount:calico-vni:calico-vni-controller";

/// What that user asks for is logged when it is answered; a watch when its answer begins, since it has no end.
const AUDIT_POLICY: &str = r"
apiVersion: audit.k8s.io/v1
kind: Policy
rules:
  - level: Metadata
    users: [system:serviceaccount:calico-vni:calico-vni-controller]
    verbs: [watch]
    omitStages: [RequestReceived, ResponseComplete, Panic]
  - level: Metadata
    users: [system:serviceaccount:calico-vni:calico-vni-controller]
    omitStages: [RequestReceived, ResponseStarted, Panic]
  - level: None
";

/// Verbs that change something.
const WRITES: [&str; 5] = ["create", "update", "patch", "delete", "deletecollection"];

pub struct ApiServer {
    dir: TempDir,
    port: u16,
    processes: Vec<Child>,
}

/// Something that the controller asked for and the API server has answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Audited {
    pub group: String,
    /// `create bgppeers calico-vni-red`, with the subresource after a slash.
    pub what: String,
    pub code: u64,
    /// When the API server received it.
    pub at: Timestamp,
}

impl Audited {
    pub fn verb(&self) -> &str {
        self.what.split(' ').next().unwrap()
    }

    /// The resource, with the subresource after a slash; empty for what is none, such as discovery.
    pub fn resource(&self) -> &str {
        self.what.split(' ').nth(1).unwrap()
    }
}

impl ApiServer {
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let [client, peer, port] = free_ports();
        keys_and_users(dir.path());

        let (client, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
        let data = dir.path().join("etcd");
        let etcd = [
            "--name=test",
            "--log-level=warn",
            "--unsafe-no-fsync",
            &format!("--data-dir={}", data.display()),
            &format!("--listen-client-urls={client}"),
            &format!("--advertise-client-urls={client}"),
            &format!("--listen-peer-urls={peer}"),
            &format!("--initial-advertise-peer-urls={peer}"),
            &format!("--initial-cluster=test={peer}"),
        ];
        let file = |name: &str| dir.path().join(name).display().to_string();
        let apiserver = [
            &format!("--etcd-servers={client}"),
            "--bind-address=127.0.0.1",
            &format!("--secure-port={port}"),
            &format!("--tls-cert-file={}", file("server.crt")),
            &format!("--tls-private-key-file={}", file("server.key")),
            &format!("--token-auth-file={}", file("tokens.csv")),
            "--service-account-issuer=https://kubernetes.default.svc",
            &format!("--service-account-key-file={}", file("accounts.pub")),
            &format!("--service-account-signing-key-file={}", file("accounts.key")),
            "--service-cluster-ip-range=10.96.0.0/16",
            "--endpoint-reconciler-type=none",
            "--authorization-mode=RBAC",
            &format!("--audit-policy-file={}", file("audit-policy.yaml")),
            &format!("--audit-log-path={}", file("audit.log")),
            // Entries are there when the answer is: the tests read them.
            "--audit-log-mode=blocking-strict",
        ];
        let processes = vec![
            start(dir.path(), &program("etcd"), None, &etcd),
            start(dir.path(), &program("kube"), Some("kube-apiserver"), &apiserver),
        ];
        let mut server = Self { dir, port, processes };
        server.ready().await;
        server
    }

    async fn ready(&mut self) {
        let client = self.admin().await;
        let (processes, dir) = (&mut self.processes, self.dir.path());
        eventually("kube-apiserver to be ready", async || {
            for process in processes.iter_mut() {
                if let Some(status) = process.try_wait().unwrap() {
                    let log = |name| std::fs::read_to_string(dir.join(name)).unwrap_or_default();
                    panic!("it ended: {status}\n{}\n{}", log("etcd.log"), log("kube.log"));
                }
            }
            // What it makes for itself at its start and the tests need: discovery for everybody, a place for Events.
            Api::<ClusterRoleBinding>::all(client.clone()).get("system:discovery").await?;
            Api::<Namespace>::all(client.clone()).get("default").await
        })
        .await;
    }

    /// May do everything.
    pub async fn admin(&self) -> Client {
        self.client("admin").await
    }

    /// May do what `deploy/rbac.yaml` grants.
    pub async fn controller(&self) -> Client {
        self.client("controller").await
    }

    async fn client(&self, token: &str) -> Client {
        let config: Kubeconfig = serde_json::from_value(self.kubeconfig(token)).unwrap();
        let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await.unwrap();
        Client::try_from(config).unwrap()
    }

    /// For `admin` or `controller`; what a program reads as a file.
    pub fn kubeconfig(&self, token: &str) -> Value {
        json!({
            "clusters": [{ "name": "test", "cluster": {
                "server": format!("https://127.0.0.1:{}", self.port),
                "certificate-authority": self.dir.path().join("ca.crt"),
            } }],
            "users": [{ "name": "test", "user": { "token": token } }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
            "current-context": "test",
        })
    }

    /// Creates the objects of that file or of all files of that folder.
    pub async fn create(&self, path: &str) {
        let path = workspace().join(path);
        let mut files = if path.is_dir() {
            std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect()
        } else {
            vec![path]
        };
        files.sort();
        let client = self.admin().await;
        for file in files {
            let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
            for document in serde_yaml::Deserializer::from_str(&text) {
                let value: Value = serde::Deserialize::deserialize(document).unwrap();
                create(&client, value).await;
            }
        }
    }

    /// All that the controller has asked for so far.
    pub fn audit(&self) -> Vec<Audited> {
        let text = std::fs::read_to_string(self.dir.path().join("audit.log")).unwrap_or_default();
        let parse = |line: &str| {
            // The last line may be half-written.
            let entry: Value = serde_json::from_str(line).ok()?;
            let field =
                |pointer: &str| entry.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
            let subresource = match field("/objectRef/subresource") {
                none if none.is_empty() => String::new(),
                some => format!("/{some}"),
            };
            let (verb, plural, name) =
                (field("/verb"), field("/objectRef/resource"), field("/objectRef/name"));
            Some(Audited {
                group: field("/objectRef/apiGroup"),
                what: format!("{verb} {plural}{subresource} {name}"),
                code: entry.pointer("/responseStatus/code").and_then(Value::as_u64).unwrap_or_default(),
                at: field("/requestReceivedTimestamp").parse().ok()?,
            })
        };
        text.lines().filter_map(parse).collect()
    }

    /// The controller's writes so far, but for Events.
    pub fn controller_writes(&self) -> Vec<Audited> {
        let mut writes = self.audit();
        writes.retain(|write| WRITES.contains(&write.verb()) && write.resource() != "events");
        writes
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        for process in self.processes.iter_mut().rev() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// Creates an object of any kind, once its kind is served.
pub async fn create(client: &Client, object: Value) {
    let what = format!("{} {}", object["kind"], object["metadata"]["name"]);
    if let Err(error) = try_create(client, object).await {
        panic!("{what}: {error}");
    }
}

/// The same, where it may be there already.
pub async fn try_create(client: &Client, object: Value) -> kube::Result<()> {
    let object: DynamicObject = serde_json::from_value(object).unwrap();
    let types = object.types.clone().unwrap();
    let gvk = GroupVersionKind::try_from(&types).unwrap();
    let resources = eventually(&format!("{} {} to be served", types.api_version, types.kind), async || {
        let version = if gvk.group.is_empty() {
            client.list_core_api_resources(&gvk.version).await
        } else {
            client.list_api_group_resources(&types.api_version).await
        };
        let list = version.map_err(|e| e.to_string())?;
        list.resources
            .into_iter()
            .find(|r| r.kind == gvk.kind && !r.name.contains('/'))
            .ok_or_else(|| "other kinds alone".to_owned())
    })
    .await;
    let resource = ApiResource::from_gvk_with_plural(&gvk, &resources.name);
    let api: Api<DynamicObject> = match (resources.namespaced, object.namespace()) {
        (true, Some(namespace)) => Api::namespaced_with(client.clone(), &namespace, &resource),
        _ => Api::all_with(client.clone(), &resource),
    };
    api.create(&PostParams::default(), &object).await.map(drop)
}

pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn program(name: &str) -> PathBuf {
    let dir =
        std::env::var_os("KUBEBUILDER_ASSETS").map_or_else(|| workspace().join("target/kube"), PathBuf::from);
    // Ready-made binaries come one by one, ours is one for all.
    let candidates = if name == "kube" { vec!["kube", "kube-apiserver"] } else { vec![name] };
    let found = candidates.into_iter().map(|name| dir.join(name)).find(|path| path.exists());
    found.unwrap_or_else(|| {
        panic!("{name} is not in {}: run `make kube`, or set KUBEBUILDER_ASSETS", dir.display())
    })
}

fn start(dir: &Path, program: &Path, as_name: Option<&str>, args: &[&str]) -> Child {
    use std::os::unix::process::CommandExt;
    let name = program.file_name().unwrap().to_string_lossy().into_owned();
    let log = File::create(dir.join(format!("{name}.log"))).unwrap();
    let mut command = Command::new(program);
    command.arg0(as_name.unwrap_or(&name)).args(args);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    command.spawn().unwrap_or_else(|e| panic!("{}: {e}", program.display()))
}

fn keys_and_users(dir: &Path) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let server = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &ca).unwrap();
    let write = |name: &str, contents: String| std::fs::write(dir.join(name), contents).unwrap();
    write("ca.crt", ca.pem());
    write("server.crt", server.pem());
    write("server.key", key.serialize_pem());
    let accounts = KeyPair::generate().unwrap();
    write("accounts.key", accounts.serialize_pem());
    write("accounts.pub", accounts.public_key_pem());
    write("audit-policy.yaml", AUDIT_POLICY.to_owned());
    // The folder is the test's own, and the server ends with the test.
    write(
        "tokens.csv",
        format!("admin,admin,admin,\"system:masters\"\ncontroller,{CONTROLLER},controller\n"),
    );
}

/// Ports that were free a moment ago.
fn free_ports() -> [u16; 3] {
    let listeners = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}
