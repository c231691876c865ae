//! Who may speak for a node, how the authority rotates under standing connections, and which of two controllers leads:
//! with the API server's own tokens, and with the rights of `deploy/rbac.yaml`.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use calico_vni_controller::{
    grpc::{AGE, Access, door::Door},
    leader::{self, Candidate, Timing, fence::Fence},
    replica::{self, Options},
    runtime::{RuntimeError, Settings},
};
use calico_vni_crds::{Tenant, calico::CalicoApi};
use calico_vni_identity::{
    SERVER_NAME,
    authority::{LIFE, OVERLAP, RENEW},
    keep::{CERTIFICATES, Keeper, NAME},
    serving::Certificate,
    token::{AUDIENCE, Denied, Proof, Reviewer},
};
use calico_vni_proto::{
    viewer,
    wire::{self, FromAgent, FromController, from_agent, router_client::RouterClient},
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    coordination::v1::Lease,
    core::v1::{ConfigMap, Pod, ServiceAccount},
};
use kube::{
    Api, Client, Config, ResourceExt,
    api::{DeleteParams, PostParams},
    client::ClientBuilder,
    config::KubeConfigOptions,
};
use serde_json::json;
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Request, Status, Streaming,
    transport::{ClientTlsConfig, Endpoint},
};

use crate::support::{eventually, stage::Stage};

const NAMESPACE: &str = "calico-vni";
const ROUTER: &str = "calico-vni-router";

/// A router's pod on that node.
async fn pod(stage: &Stage, name: &str, node: &str) -> Pod {
    pod_of(stage, ROUTER, name, node).await
}

async fn pod_of(stage: &Stage, account: &str, name: &str, node: &str) -> Pod {
    stage
        .create(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": NAMESPACE },
            "spec": {
                "nodeName": node, "serviceAccountName": account, "automountServiceAccountToken": false,
                "containers": [{ "name": "router", "image": "router" }],
            },
        }))
        .await;
    Api::namespaced(stage.client.clone(), NAMESPACE).get(name).await.unwrap()
}

/// As the kubelet asks for it.
async fn token(stage: &Stage, account: &str, audience: Option<&str>, pod: Option<&Pod>) -> String {
    let bound_object_ref = pod.map(|pod| BoundObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: Some(pod.name_any()),
        uid: pod.uid(),
    });
    let audiences = audience.map(|audience| vec![audience.to_owned()]);
    let spec = TokenRequestSpec { audiences, bound_object_ref, expiration_seconds: Some(600) };
    let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
    let accounts: Api<ServiceAccount> = Api::namespaced(stage.client.clone(), NAMESPACE);
    let answer = accounts.create_token_request(account, &PostParams::default(), &request).await.unwrap();
    answer.status.unwrap().token.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_proves_the_node_of_its_pod_and_nothing_else_does() {
    let stage = Stage::set(CalicoApi::V3).await;
    stage.node("n1").await;
    stage.node("n2").await;
    let other = json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "other", "namespace": NAMESPACE },
    });
    stage.create(other).await;
    let (one, two) = (pod(&stage, "router-1", "n1").await, pod(&stage, "router-2", "n2").await);
    let reviewer = Reviewer::new(&stage.server.controller().await, NAMESPACE, ROUTER);

    let of_one = token(&stage, ROUTER, Some(AUDIENCE), Some(&one)).await;
    assert_eq!(reviewer.node_of(&of_one).await.as_deref(), Ok("n1"));
    let of_two = token(&stage, ROUTER, Some(AUDIENCE), Some(&two)).await;
    assert_eq!(reviewer.node_of(&of_two).await.as_deref(), Ok("n2"));

    let refused = async |token: String| reviewer.node_of(&token).await.unwrap_err();
    let elsewhere = token(&stage, ROUTER, None, Some(&one)).await;
    assert!(
        matches!(refused(elsewhere).await, Denied::NotAuthenticated(_)),
        "it is for the API server alone"
    );
    let loose = token(&stage, ROUTER, Some(AUDIENCE), None).await;
    assert_eq!(refused(loose).await, Denied::NotBound);
    let others = token(&stage, "other", Some(AUDIENCE), None).await;
    assert!(matches!(refused(others).await, Denied::WrongUser(..)));
    assert!(matches!(refused("made-up".to_owned()).await, Denied::NotAuthenticated(_)));
    let mut forged = of_one.clone();
    let last = if forged.pop() == Some('A') { 'Q' } else { 'A' };
    forged.push(last);
    assert!(matches!(refused(forged).await, Denied::NotAuthenticated(_)), "its signature is another");

    let pods: Api<Pod> = Api::namespaced(stage.client.clone(), NAMESPACE);
    pods.delete("router-1", &DeleteParams::default().grace_period(0)).await.unwrap();
    // The API server remembers what it has accepted for some seconds.
    eventually("the token of a deleted pod to be refused", async || match reviewer.node_of(&of_one).await {
        Err(Denied::NotAuthenticated(reason)) => Ok(reason),
        other => Err(other),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_viewer_is_known_by_account_and_audience_and_an_agents_token_is_none() {
    let stage = Stage::set(CalicoApi::V3).await;
    stage.node("n1").await;
    let (router, looker) =
        (pod(&stage, "router-1", "n1").await, pod_of(&stage, viewer::ACCOUNT, "looker", "n1").await);
    let reviewer = Reviewer::new(&stage.server.controller().await, NAMESPACE, ROUTER);

    let viewers = token(&stage, viewer::ACCOUNT, Some(viewer::AUDIENCE), None).await;
    assert_eq!(reviewer.viewer(&viewers).await, Ok(()));
    let agents = token(&stage, ROUTER, Some(AUDIENCE), Some(&router)).await;
    assert_eq!(reviewer.node_of(&agents).await.as_deref(), Ok("n1"));
    assert!(matches!(reviewer.viewer(&agents).await, Err(Denied::NotAuthenticated(_))));
    assert!(matches!(reviewer.node_of(&viewers).await, Err(Denied::NotAuthenticated(_))));

    // Neither the account alone nor the audience alone will do, on either side.
    for audience in [Some(AUDIENCE), None] {
        let elsewhere = token(&stage, viewer::ACCOUNT, audience, Some(&looker)).await;
        assert!(
            matches!(reviewer.viewer(&elsewhere).await, Err(Denied::NotAuthenticated(_))),
            "{audience:?}"
        );
    }
    let of_viewer = token(&stage, viewer::ACCOUNT, Some(AUDIENCE), Some(&looker)).await;
    assert!(matches!(reviewer.node_of(&of_viewer).await, Err(Denied::WrongUser(..))));
    let of_router = token(&stage, ROUTER, Some(viewer::AUDIENCE), Some(&router)).await;
    assert!(matches!(reviewer.viewer(&of_router).await, Err(Denied::WrongUser(..))));
    assert!(matches!(reviewer.viewer("made-up").await, Err(Denied::NotAuthenticated(_))));

    // One that was good and is so no more.
    let bound = token(&stage, viewer::ACCOUNT, Some(viewer::AUDIENCE), Some(&looker)).await;
    assert_eq!(reviewer.viewer(&bound).await, Ok(()));
    let pods: Api<Pod> = Api::namespaced(stage.client.clone(), NAMESPACE);
    pods.delete("looker", &DeleteParams::default().grace_period(0)).await.unwrap();
    eventually("a token that has ended to be refused", async || match reviewer.viewer(&bound).await {
        Err(Denied::NotAuthenticated(reason)) => Ok(reason),
        other => Err(other),
    })
    .await;
}

fn hello(node: &str) -> FromAgent {
    let hello = wire::Hello { node: node.to_owned(), version: "test".to_owned(), ..Default::default() };
    FromAgent { message: Some(from_agent::Message::Hello(hello)) }
}

/// A stream that is open for as long as both are held.
type Stream = (mpsc::Sender<FromAgent>, Streaming<FromController>);

async fn dial(
    address: SocketAddr,
    trusted: Option<&str>,
    token: Option<&str>,
    node: &str,
) -> Result<Stream, Status> {
    let scheme = if trusted.is_some() { "https" } else { "http" };
    let mut endpoint = Endpoint::try_from(format!("{scheme}://{address}")).unwrap();
    if let Some(bundle) = trusted {
        let authorities = tonic::transport::Certificate::from_pem(bundle);
        let tls = ClientTlsConfig::new().ca_certificate(authorities).domain_name(SERVER_NAME);
        endpoint = endpoint.tls_config(tls).unwrap();
    }
    let channel = endpoint.connect().await.map_err(|error| Status::aborted(error.to_string()))?;
    let (say, said) = mpsc::channel(4);
    say.send(hello(node)).await.unwrap();
    let mut request = Request::new(ReceiverStream::new(said));
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    Ok((say, RouterClient::new(channel).sync(request).await?.into_inner()))
}

/// A controller in this process, one of several.
struct Replica {
    address: SocketAddr,
    task: JoinHandle<Result<(), RuntimeError>>,
    shutdown: CancellationToken,
}

async fn replica(client: Client, access: Access, candidate: Option<Candidate>) -> Replica {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let settings = Settings { linger: Duration::ZERO, ..Settings::default() };
    let options = Options { access, candidate, ..Options::alone(settings) };
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(replica::run(client, listener, options, shutdown.clone()));
    Replica { address, task, shutdown }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_authority_rotates_under_standing_connections() {
    let stage = Stage::set(CalicoApi::V3).await;
    stage.definitions().await;
    stage.basics().await;
    let controller = stage.server.controller().await;
    let keeper = Keeper::new(&controller, NAMESPACE);
    let published = async || {
        let maps: Api<ConfigMap> = Api::namespaced(stage.client.clone(), NAMESPACE);
        maps.get(NAME).await.unwrap().data.unwrap().remove(CERTIFICATES).unwrap()
    };
    // The real time is an hour after the overlap of a rotation.
    let now = Timestamp::now();
    let rotation = now - OVERLAP - SignedDuration::from_hours(2);
    let made = rotation - (LIFE - RENEW);
    assert!(keeper.authority(false, made).await.unwrap().is_none(), "who does not lead makes none");
    let first = keeper.authority(true, made).await.unwrap().unwrap();
    assert_eq!(published().await, first.bundle());
    let both = keeper.authority(true, rotation).await.unwrap().unwrap();
    assert_eq!(published().await, both.bundle());
    assert!(both.bundle().starts_with(&first.bundle()) && both.bundle() != first.bundle());
    let read = keeper.authority(false, now).await.unwrap().unwrap();
    assert_eq!((read.bundle(), read.keys()), (both.bundle(), both.keys()));

    let names = [SERVER_NAME.to_owned()];
    let certificate = Certificate::none();
    certificate.set(both.issue(&names, rotation).unwrap()).unwrap();
    let door = Door::guarded(Arc::new(Reviewer::new(&controller, NAMESPACE, ROUTER)));
    let access = Access { certificate: Some(Arc::clone(&certificate)), door: Arc::clone(&door), age: AGE };
    let served = replica(controller, access, None).await;
    let (one, two) = (pod(&stage, "router-1", "n1").await, pod(&stage, "router-2", "n2").await);
    let one = token(&stage, ROUTER, Some(AUDIENCE), Some(&one)).await;
    let two = token(&stage, ROUTER, Some(AUDIENCE), Some(&two)).await;

    // Within the overlap an agent that knows the first alone is served.
    let (_say, mut stands) = dial(served.address, Some(&first.bundle()), Some(&one), "n1").await.unwrap();
    assert!(stands.message().await.unwrap().is_some());
    let refused = dial(served.address, Some(&first.bundle()), Some(&one), "n2").await.unwrap_err();
    assert_eq!((refused.code(), door.refused()), (Code::PermissionDenied, 1));

    // After it, only one that has read the ConfigMap since; what stands, stands.
    certificate.set(both.issue(&names, now).unwrap()).unwrap();
    let refused = dial(served.address, Some(&first.bundle()), Some(&two), "n2").await.unwrap_err();
    assert_eq!(refused.code(), Code::Aborted, "there is no connection: {refused}");
    let (_say, mut new) = dial(served.address, Some(&published().await), Some(&two), "n2").await.unwrap();
    assert!(new.message().await.unwrap().is_some());
    stage
        .pool("red", "10.61.0.0/16", json!({ "calico-vni.io/tenant": "red", "calico-vni.io/vni": "1001" }))
        .await;
    let told = tokio::time::timeout(Duration::from_mins(1), stands.message()).await.expect("news in time");
    assert!(told.unwrap().is_some(), "the guard has changed, and the old connection brings it");
    served.shutdown.cancel();
    served.task.await.unwrap().unwrap();
}

const TIMING: Timing = Timing {
    duration: Duration::from_secs(6),
    renew: Duration::from_secs(4),
    retry: Duration::from_millis(500),
};

async fn candidate(stage: &Stage, name: &str) -> Replica {
    let kubeconfig = serde_json::from_value(stage.server.kubeconfig("controller")).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    let fence = Fence::default();
    let client = ClientBuilder::try_from(config.clone()).unwrap().with_layer(&fence).build();
    let candidate = Candidate::new(&Client::try_from(config).unwrap(), NAMESPACE, name, TIMING, fence);
    replica(client, Access::plain(), Some(candidate)).await
}

/// Waits until that one leads.
async fn leads(stage: &Stage, name: &str) -> Lease {
    let leases: Api<Lease> = Api::namespaced(stage.client.clone(), NAMESPACE);
    eventually(&format!("{name} to lead"), async || {
        let lease = leases.get_opt(leader::NAME).await.unwrap();
        let holder = lease.as_ref().and_then(|lease| lease.spec.as_ref()?.holder_identity.clone());
        if holder.as_deref() == Some(name) { Ok(lease.unwrap()) } else { Err(holder) }
    })
    .await
}

/// What an agent is told there.
async fn answer(address: SocketAddr) -> Result<Stream, Status> {
    dial(address, None, None, "n1").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_controllers_one_leads_and_the_loser_writes_nothing() {
    let stage = Stage::set(CalicoApi::V3).await;
    stage.definitions().await;
    stage.basics().await;
    let allocated = async |name| {
        stage
            .tenant_when(name, "its VNI", |t: &Tenant| t.status.as_ref().is_some_and(|s| s.vni.is_some()))
            .await
    };
    let first = candidate(&stage, "first").await;
    leads(&stage, "first").await;
    let second = candidate(&stage, "second").await;
    eventually("the second to stand by", async || match answer(second.address).await {
        Err(status) if status.code() == Code::Unavailable && status.message() == "standby; first leads" => {
            Ok(())
        }
        other => Err(other.map(drop)),
    })
    .await;
    stage.tenant("red", 1001).await;
    allocated("red").await;
    answer(first.address).await.unwrap();

    // Killed in the middle of whatever it does: the other one waits until the Lease ends, and goes on.
    first.task.abort();
    leads(&stage, "second").await;
    stage.tenant("blue", 1002).await;
    allocated("blue").await;
    answer(second.address).await.unwrap();

    // Told to stop it hands over, and nobody waits.
    let third = candidate(&stage, "third").await;
    second.shutdown.cancel();
    second.task.await.unwrap().unwrap();
    let lease = leads(&stage, "third").await;
    assert_eq!(lease.spec.unwrap().lease_transitions, Some(3));
    stage.tenant("green", 1003).await;
    allocated("green").await;

    // Its Lease is taken away: from then on nothing is written, though there is something to write.
    let leases: Api<Lease> = Api::namespaced(stage.client.clone(), NAMESPACE);
    let taken = json!({ "spec": { "holderIdentity": "thief", "leaseDurationSeconds": 15 } });
    stage.patch(&leases, leader::NAME, taken).await;
    eventually("the loser to send agents away", async || match answer(third.address).await {
        Err(status) if status.message().contains("standby") => Ok(()),
        other => Err(other.map(drop)),
    })
    .await;
    let before = stage.server.controller_writes().len();
    stage.tenant("late", 1004).await;
    leads(&stage, "third").await;
    let writes = stage.server.controller_writes();
    let between: Vec<_> = writes[before..].iter().take_while(|write| write.resource() != "leases").collect();
    assert!(between.is_empty(), "it has lost: {between:#?}");
    allocated("late").await;
    third.shutdown.cancel();
    third.task.await.unwrap().unwrap();
}
