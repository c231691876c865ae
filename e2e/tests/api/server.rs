//! One API server for the tests of a file, those who use it, and requests as kubectl makes them: strict about fields.

use std::{collections::BTreeMap, fs, path::Path};

use calico_vni_e2e::{
    api::{ApiSide, User},
    paths,
};
use kube::{
    Client, Config,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::{DynamicObject, Request, TypeMeta},
    discovery::{Discovery, Scope},
};
use serde::Deserialize;
use serde_json::{Value, json};

/// A running API server with our definitions and Calico's.
pub struct Server {
    /// The processes.
    pub api: ApiSide,
    discovery: Discovery,
    clients: BTreeMap<&'static str, Client>,
}

/// Names, groups.
const USERS: [(&str, &str, &[&str]); 5] = [
    ("break-glass", "root", &["system:masters"]),
    ("cluster-admin", "carol", &["cluster-admins"]),
    ("alice", "alice", &[]),
    ("kubelet", "system:node:fixture", &["system:nodes"]),
    ("controller", User::Controller.name(), &["system:serviceaccounts", "system:serviceaccounts:calico-vni"]),
];

impl Server {
    /// Starts it and applies these files or folders, from the top of the checkout.
    pub async fn start(dir: &Path, files: &[&str]) -> Self {
        rustls::crypto::ring::default_provider().install_default().ok();
        let programs =
            std::env::var_os("KUBEBUILDER_ASSETS").map_or_else(|| paths::target("kube").unwrap(), Into::into);
        let api = ApiSide::start(dir, &programs).await.unwrap();
        for folder in ["crds/generated", "e2e/calico-crds/v3", "e2e/calico-crds/v1"] {
            let folder = paths::checkout().join(folder);
            let printed = api.kubectl(&["apply", "-f", folder.to_str().unwrap()]).await.unwrap();
            assert_eq!(printed.lines().count(), fs::read_dir(&folder).unwrap().count(), "{printed}");
        }
        api.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"]).await.unwrap();
        for file in files {
            let file = paths::checkout().join(file);
            api.kubectl(&["apply", "-f", file.to_str().unwrap()]).await.unwrap();
        }
        let admin = api.client(User::Admin).await.unwrap();
        let discovery = Discovery::new(admin).run().await.unwrap();
        let mut clients = BTreeMap::new();
        for (who, name, groups) in USERS {
            let mut config = Kubeconfig::read_from(api.kubeconfig(User::Admin)).unwrap();
            let user = config.auth_infos[0].auth_info.as_mut().unwrap();
            user.impersonate = Some(name.to_owned());
            user.impersonate_groups =
                Some(groups.iter().chain(&["system:authenticated"]).map(|g| (*g).to_owned()).collect());
            let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await.unwrap();
            clients.insert(who, Client::try_from(config).unwrap());
        }
        Self { api, discovery, clients }
    }

    /// Creates an object, in earnest or as a dry run; an error is what the user reads.
    pub async fn create(&self, who: &str, object: &Value, dry_run: bool) -> Result<Value, String> {
        self.ask(who, object, Verb::Create { dry_run }).await
    }

    /// Merges a change into an object, or into a subresource of it.
    pub async fn merge(
        &self,
        who: &str,
        object: &Value,
        subresource: Option<&str>,
        change: &Value,
        dry_run: bool,
    ) -> Result<Value, String> {
        self.ask(who, object, Verb::Merge { subresource, change, dry_run }).await
    }

    /// Deletes an object.
    pub async fn delete(&self, object: &Value) {
        self.ask("break-glass", object, Verb::Delete).await.unwrap();
    }

    async fn ask(&self, who: &str, object: &Value, verb: Verb<'_>) -> Result<Value, String> {
        let (request, name) = (Request::new(self.url(object)), object["metadata"]["name"].as_str().unwrap());
        let mut request = match verb {
            Verb::Create { dry_run } => {
                let params = PostParams { dry_run, ..PostParams::default() };
                request.create(&params, object.to_string().into_bytes())
            }
            Verb::Merge { subresource, change, dry_run } => {
                let params = PatchParams { dry_run, ..PatchParams::default() };
                let patch = Patch::Merge(change);
                match subresource {
                    None => request.patch(name, &params, &patch),
                    Some(subresource) => request.patch_subresource(subresource, name, &params, &patch),
                }
            }
            Verb::Delete => request.delete(name, &DeleteParams::default().grace_period(0)),
        }
        .unwrap();
        *request.uri_mut() = format!("{}&fieldValidation=Strict", request.uri()).parse().unwrap();
        let client = self.clients.get(who).unwrap_or_else(|| panic!("there is no user {who}"));
        match client.request(request).await {
            Ok(answer) => Ok(answer),
            Err(kube::Error::Api(status)) => Err(status.message.clone()),
            Err(error) => panic!("{error}"),
        }
    }

    fn url(&self, object: &Value) -> String {
        let types: TypeMeta = serde_json::from_value(object.clone()).unwrap();
        let gvk = (&types).try_into().unwrap();
        let (resource, capabilities) =
            self.discovery.resolve_gvk(&gvk).unwrap_or_else(|| panic!("{gvk:?} is not served"));
        let namespace = match capabilities.scope {
            Scope::Cluster => None,
            Scope::Namespaced => Some(object["metadata"]["namespace"].as_str().unwrap()),
        };
        <DynamicObject as kube::Resource>::url_path(&resource, namespace)
    }
}

enum Verb<'a> {
    Create { dry_run: bool },
    Merge { subresource: Option<&'a str>, change: &'a Value, dry_run: bool },
    Delete,
}

/// RFC 7386.
pub fn merged(mut object: Value, change: &Value) -> Value {
    match change {
        Value::Object(change) => {
            if !object.is_object() {
                object = json!({});
            }
            for (key, value) in change {
                let old = object.as_object_mut().and_then(|o| o.remove(key)).unwrap_or(Value::Null);
                if !value.is_null() {
                    object[key] = merged(old, value);
                }
            }
            object
        }
        other => other.clone(),
    }
}

/// Fixtures in a folder beside this file, by name.
pub fn fixtures<T: for<'a> Deserialize<'a>>(folder: &str) -> BTreeMap<String, T> {
    let folder = paths::checkout().join("e2e/tests/api").join(folder);
    let read = |path: &Path| {
        serde_yaml::from_str(&fs::read_to_string(path).unwrap())
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files.map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), read(&path))).collect()
}

/// The objects that fixtures start from.
pub fn bases() -> BTreeMap<String, Value> {
    let path = paths::checkout().join("e2e/tests/api/bases.yaml");
    serde_yaml::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}
