//! A cluster with the controller running in it: what the tests' cases look at and change.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use calico_vni_controller::{
    replica::{self, Options},
    runtime::Settings,
};
use calico_vni_crds::{
    Tenant, Underlay,
    calico::{BgpFilter, BgpPeer, Calico, CalicoApi, CalicoSpec, IpPool},
    keys,
};
use k8s_openapi::api::{core::v1::Node, events::v1::Event};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, SemaphorePermit},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::{
    eventually,
    server::{ApiServer, Audited, create},
};

/// Who has it has the machine: two clusters at once on a small one are a test of patience.
static MACHINE: Semaphore = Semaphore::const_new(1);

pub struct Stage {
    pub server: ApiServer,
    pub client: Client,
    pub api: CalicoApi,
    _machine: SemaphorePermit<'static>,
}

/// A controller in this process.
pub struct Controller {
    pub address: SocketAddr,
    /// Of metrics and probes.
    pub http: SocketAddr,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Controller {
    /// As the user of `deploy/rbac.yaml`.
    pub async fn start(server: &ApiServer) -> Self {
        // No linger: a case about it sets its own.
        Self::start_with(server, Settings { linger: Duration::ZERO, ..Settings::default() }).await
    }

    pub async fn start_with(server: &ApiServer, settings: Settings) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let asked = http.local_addr().unwrap();
        let options = Options { http: Some(http), ..Options::alone(settings) };
        let running = replica::run(server.controller().await, listener, options, shutdown.clone());
        let task = tokio::spawn(async move { Box::pin(running).await.unwrap() });
        Self { address, http: asked, shutdown, task }
    }

    /// In the middle of whatever it does.
    pub async fn kill(self) {
        self.task.abort();
        assert!(self.task.await.is_err_and(|error| error.is_cancelled()), "it ran until it was killed");
    }

    /// In good order, within a deadline.
    pub async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(5), self.task).await.expect("stops when told").unwrap();
    }
}

impl Stage {
    /// An API server with our definitions and Calico's, and nobody else in it.
    pub async fn set(api: CalicoApi) -> Self {
        // Two tests in one process: the second finds it done.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let machine = MACHINE.acquire().await.unwrap();
        let server = ApiServer::start().await;
        server.create("deploy/rbac.yaml").await;
        let client = server.admin().await;
        Self { server, client, api, _machine: machine }
    }

    pub async fn definitions(&self) {
        self.server.create("crds/generated").await;
        let group = if self.api == CalicoApi::V3 { "v3" } else { "v1" };
        self.server.create(&format!("e2e/calico-crds/{group}")).await;
    }

    pub fn of<K: Resource<DynamicType = ()>>(&self) -> Api<K> {
        Api::all_with(self.client.clone(), &())
    }

    pub fn calico<S: CalicoSpec>(&self) -> Api<Calico<S>> {
        Api::all_with(self.client.clone(), &self.api)
    }

    pub async fn create(&self, object: Value) {
        create(&self.client, object).await;
    }

    fn calico_version(&self) -> String {
        format!("{}/{}", self.api.group(), self.api.version())
    }

    pub async fn node(&self, name: &str) {
        self.create(json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name } })).await;
    }

    pub async fn pool(&self, name: &str, cidr: &str, annotations: Value) {
        self.pool_with(
            name,
            json!({ "cidr": cidr, "vxlanMode": "Never", "ipipMode": "Never", "natOutgoing": false }),
            annotations,
        )
        .await;
    }

    pub async fn pool_with(&self, name: &str, spec: Value, annotations: Value) {
        self.create(json!({
            "apiVersion": self.calico_version(), "kind": "IPPool",
            "metadata": { "name": name, "annotations": annotations }, "spec": spec,
        }))
        .await;
    }

    pub async fn block(&self, node: &str, cidr: &str) {
        let name = format!("{node}-{}", cidr.replace(['.', '/'], "-"));
        let deleted = if self.api == CalicoApi::V3 { json!(false) } else { json!("false") };
        self.create(json!({
            "apiVersion": self.calico_version(), "kind": "BlockAffinity", "metadata": { "name": name },
            "spec": { "node": node, "cidr": cidr, "state": "confirmed", "type": "host", "deleted": deleted },
        }))
        .await;
    }

    pub async fn tenant(&self, name: &str, vni: u32) {
        self.create(json!({
            "apiVersion": "calico-vni.io/v1alpha1", "kind": "Tenant", "metadata": { "name": name }, "spec": { "vni": vni },
        }))
        .await;
    }

    /// Nodes n1 and n2, an Underlay, and Calico as it has to be set.
    pub async fn basics(&self) {
        self.server.create("examples/underlay.yaml").await;
        if self.api == CalicoApi::V3 {
            self.server.create("examples/ipam.yaml").await;
        } else {
            self.create(json!({
                "apiVersion": self.calico_version(), "kind": "IPAMConfig", "metadata": { "name": "default" },
                "spec": { "strictAffinity": true },
            }))
            .await;
        }
        self.node("n1").await;
        self.node("n2").await;
    }

    pub async fn annotate(&self, pool: &str, key: &str, value: Option<&str>) {
        let patch = json!({ "metadata": { "annotations": { key: value } } });
        self.patch(&self.calico::<calico_vni_crds::calico::IpPoolSpec>(), pool, patch).await;
    }

    pub async fn patch<K: Clone + DeserializeOwned + std::fmt::Debug>(
        &self,
        api: &Api<K>,
        name: &str,
        patch: Value,
    ) -> K {
        api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap()
    }

    pub async fn delete<K: Clone + DeserializeOwned + std::fmt::Debug>(&self, api: &Api<K>, name: &str) {
        api.delete(name, &DeleteParams::default()).await.unwrap();
    }

    pub async fn filter(&self, name: &str) -> Option<BgpFilter> {
        self.calico().get_opt(name).await.unwrap()
    }

    pub async fn peer(&self, name: &str) -> Option<BgpPeer> {
        self.calico().get_opt(name).await.unwrap()
    }

    /// Waits for a Tenant to be as wanted.
    pub async fn tenant_when(&self, name: &str, what: &str, wanted: impl Fn(&Tenant) -> bool) -> Tenant {
        let api: Api<Tenant> = self.of();
        eventually(&format!("Tenant {name}: {what}"), async || match api.get_opt(name).await.unwrap() {
            Some(tenant) if wanted(&tenant) => Ok(tenant),
            other => Err(other),
        })
        .await
    }

    pub async fn underlay(&self) -> Underlay {
        self.of::<Underlay>().get("fabric").await.unwrap()
    }

    /// Tenants whose label stands on a node, whatever its value.
    pub async fn ready_labels(&self, node: &str) -> BTreeMap<String, String> {
        let node = self.of::<Node>().get(node).await.unwrap();
        let ready = node
            .labels()
            .iter()
            .filter_map(|(key, value)| Some((key.strip_prefix(keys::READY_LABEL_PREFIX)?, value)));
        ready.map(|(tenant, value)| (tenant.to_owned(), value.clone())).collect()
    }

    /// Waits until the tenants of these names, and no others, have their label on the node.
    pub async fn labelled(&self, node: &str, tenants: &[&str]) {
        let wanted: BTreeMap<_, _> =
            tenants.iter().map(|t| ((*t).to_owned(), keys::READY.to_owned())).collect();
        eventually(&format!("{node} to be ready for {tenants:?}"), async || {
            let seen = self.ready_labels(node).await;
            if seen == wanted { Ok(()) } else { Err(seen) }
        })
        .await;
    }

    /// Events on an object: reason and text.
    pub async fn events(&self, kind: &str, name: &str) -> Vec<(String, String)> {
        let events: Api<Event> = Api::namespaced(self.client.clone(), "default");
        let on = |event: &Event| {
            let about = event.regarding.clone().unwrap_or_default();
            about.kind.as_deref() == Some(kind) && about.name.as_deref() == Some(name)
        };
        let list = events.list(&ListParams::default()).await.unwrap();
        list.into_iter()
            .filter(on)
            .map(|e| (e.reason.unwrap_or_default(), e.note.unwrap_or_default()))
            .collect()
    }

    /// Versions of everything that is a tenant's.
    pub async fn versions_of(&self, tenant: &str) -> BTreeMap<String, Option<String>> {
        let mut versions = BTreeMap::new();
        versions
            .insert("Tenant".to_owned(), self.of::<Tenant>().get(tenant).await.unwrap().resource_version());
        let name = format!("calico-vni-{tenant}");
        versions.insert("BGPFilter".to_owned(), self.filter(&name).await.and_then(|f| f.resource_version()));
        versions.insert("BGPPeer".to_owned(), self.peer(&name).await.and_then(|p| p.resource_version()));
        for pool in
            self.calico::<calico_vni_crds::calico::IpPoolSpec>().list(&ListParams::default()).await.unwrap()
        {
            let pool: IpPool = pool;
            versions.insert(format!("IPPool {}", pool.name_any()), pool.resource_version());
        }
        for node in self.of::<Node>().list(&ListParams::default()).await.unwrap() {
            versions.insert(format!("Node {}", node.name_any()), node.resource_version());
        }
        versions
    }

    /// Waits until the controller has written nothing for a while, and fails if it never stops.
    pub async fn quiet(&self, window: Duration) -> Vec<Audited> {
        let mut seen = self.server.controller_writes();
        eventually("the controller to stop writing", async || {
            tokio::time::sleep(window).await;
            let now = self.server.controller_writes();
            let new = now[seen.len()..].to_vec();
            seen.clone_from(&now);
            if new.is_empty() { Ok(now) } else { Err(new) }
        })
        .await
    }
}
