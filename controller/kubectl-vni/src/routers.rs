//! What routers themselves say, asked by way of the controller that leads: its pod is reached by the API server's port-forward,
//! or it is reached at an address; no program is run in any pod.
//!
//! Who may look proves it by a token of one service account, which the API server makes for who may have it.

use std::{io, process::ExitCode, time::Duration};

use anyhow::{Context, anyhow, bail};
use calico_vni_planner::Plan;
use calico_vni_proto::{
    viewer,
    wire::{self, NodeAnswer, node_answer, operator_client::OperatorClient},
};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    coordination::v1::Lease,
    core::v1::{ConfigMap, Pod, Service, ServiceAccount},
};
use kube::{Api, Client, api::PostParams};
use serde::Serialize;
use tokio::time::timeout;
use tonic::{
    Code, Request, Status, Streaming,
    metadata::{Ascii, MetadataValue},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};
use tower::service_fn;

use crate::{
    WRONG,
    cli::Asking,
    input::{Cluster, said},
    output::tame,
};

/// Names of the controller's Lease and Service, and of the ConfigMap with the certificates of its authority.
const CONTROLLER: &str = "calico-vni-controller";
const AUTHORITY: &str = "calico-vni-authority";
/// Seconds for which a token is good: the fewest that the API server grants.
const GOOD_FOR: i64 = 600;
/// How long a connection may take, and each answer. The controller waits for an agent for half of that.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the reason for a broken port-forward may take.
const REASON: Duration = Duration::from_secs(1);

/// How asking one router went.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Router {
    /// Its node.
    pub node: String,
    /// Version of its agent; empty where none is connected.
    pub agent: String,
    /// Why it says nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// What it has left out.
    pub more: u64,
}

/// What routers say, each with its node.
#[derive(Debug)]
pub struct Told<T> {
    /// How it went with each.
    pub routers: Vec<Router>,
    /// What they say.
    pub entries: Vec<(String, T)>,
}

impl<T> Told<T> {
    fn of(answers: Vec<NodeAnswer>, list: impl Fn(node_answer::About) -> Option<(Vec<T>, u64)>) -> Self {
        let mut told = Self { routers: Vec::new(), entries: Vec::new() };
        for NodeAnswer { node, version, about } in answers {
            let (refused, more) = match about {
                Some(node_answer::About::Refused(why)) => (Some(why), 0),
                about => match about.and_then(&list) {
                    Some((entries, more)) => {
                        told.entries.extend(entries.into_iter().map(|entry| (node.clone(), entry)));
                        (None, more)
                    }
                    None => (Some("the controller is newer than this program: update it".to_owned()), 0),
                },
            };
            told.routers.push(Router { node, agent: version, refused, more });
        }
        told
    }
}

impl Router {
    /// What a table cannot say: who did not answer, and what was left out. Empty where there is nothing to say.
    pub fn notes(routers: &[Self]) -> String {
        let note = |Self { node, refused, more, .. }: &Self| match refused {
            Some(why) => Some(format!("NO ANSWER from {node}: {}\n", tame(why))),
            None => (*more > 0).then(|| format!("{node}: and {more} more\n")),
        };
        routers.iter().filter_map(note).collect::<Vec<_>>().concat()
    }
}

/// Refuses a node that is not in the cluster.
pub fn there_is(node: Option<&String>, plan: &Plan) -> anyhow::Result<()> {
    match node.filter(|node| !plan.labels.contains_key(*node)) {
        Some(node) => bail!("there is no Node `{node}`; `kubectl get nodes` lists those there are"),
        None => Ok(()),
    }
}

/// How the program ends whose answer lacks what routers would have said, where they could not be asked.
pub fn outcome(failed: Option<anyhow::Error>, well: bool) -> anyhow::Result<ExitCode> {
    match failed {
        Some(error) => Err(error.context("no router was asked (`--no-ask` leaves that out)")),
        None if well => Ok(ExitCode::SUCCESS),
        None => Ok(ExitCode::from(WRONG)),
    }
}

/// BGP sessions of these nodes' routers.
pub async fn sessions(
    cluster: &Cluster,
    asking: &Asking,
    nodes: Vec<String>,
) -> anyhow::Result<Told<wire::BgpSession>> {
    let mut line = Line::open(cluster, asking).await?;
    let request = line.request(wire::SessionsRequest { nodes });
    let answers = heard(line.client.list_sessions(request)).await?;
    Ok(Told::of(answers, |about| match about {
        node_answer::About::Sessions(sessions) => Some((sessions.sessions, sessions.more)),
        _ => None,
    }))
}

/// Routes of a tenant's VRF on these nodes' routers.
pub async fn routes(
    cluster: &Cluster,
    asking: &Asking,
    tenant: &str,
    nodes: Vec<String>,
) -> anyhow::Result<Told<wire::BgpRoute>> {
    let mut line = Line::open(cluster, asking).await?;
    let request = line.request(wire::RoutesRequest { tenant: tenant.to_owned(), nodes });
    let answers = heard(line.client.list_routes(request)).await?;
    Ok(Told::of(answers, |about| match about {
        node_answer::About::Routes(routes) => Some((routes.routes, routes.more)),
        _ => None,
    }))
}

/// All answers, in their order.
async fn heard(
    call: impl Future<Output = Result<tonic::Response<Streaming<NodeAnswer>>, Status>>,
) -> anyhow::Result<Vec<NodeAnswer>> {
    let mut stream = in_time(call).await?.map_err(|status| refused(&status))?.into_inner();
    let mut answers = Vec::new();
    while let Some(answer) = in_time(stream.message()).await?.map_err(|status| refused(&status))? {
        answers.push(answer);
    }
    Ok(answers)
}

async fn in_time<T>(work: impl Future<Output = T>) -> anyhow::Result<T> {
    timeout(PATIENCE, work)
        .await
        .map_err(|_| anyhow!("the controller has not answered within {} s", PATIENCE.as_secs()))
}

/// What the controller says, in words.
fn refused(status: &Status) -> anyhow::Error {
    match status.code() {
        Code::Unimplemented => {
            anyhow!("the controller cannot be asked: it is older than this program; update it")
        }
        _ => anyhow!("the controller says: {}", status.message()),
    }
}

/// A connection to the controller, and what proves that one may look.
struct Line {
    client: OperatorClient<Channel>,
    authorization: Option<MetadataValue<Ascii>>,
}

impl Line {
    async fn open(cluster: &Cluster, asking: &Asking) -> anyhow::Result<Self> {
        let url = asking.controller.as_deref();
        // In plain nothing is proven, and no token is shown to whoever listens.
        if let Some(url) = url.filter(|url| url.starts_with("http://")) {
            let endpoint = Endpoint::from_shared(url.to_owned()).context("--controller")?;
            let channel = in_time(endpoint.connect()).await?.map_err(unreachable)?;
            return Ok(Self { client: OperatorClient::new(channel), authorization: None });
        }
        let namespace = &asking.namespace;
        let authority = match &asking.ca_file {
            Some(file) => {
                tokio::fs::read_to_string(file).await.with_context(|| file.display().to_string())?
            }
            None => published(&cluster.client, namespace).await?,
        };
        let token = token(&cluster.client, namespace).await?;
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(authority))
            .domain_name(&asking.controller_name);
        let channel = match url {
            Some(url) => {
                let endpoint = Endpoint::from_shared(url.to_owned()).context("--controller")?;
                let endpoint = endpoint.tls_config(tls).context("--controller")?;
                in_time(endpoint.connect()).await?.map_err(unreachable)?
            }
            None => forwarded(&cluster.client, namespace, tls).await?,
        };
        let mut authorization: MetadataValue<Ascii> =
            format!("Bearer {token}").parse().context("the token")?;
        authorization.set_sensitive(true);
        Ok(Self { client: OperatorClient::new(channel), authorization: Some(authorization) })
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(authorization) = &self.authorization {
            request.metadata_mut().insert("authorization", authorization.clone());
        }
        request
    }
}

/// A token that proves that its holder may look.
async fn token(client: &Client, namespace: &str) -> anyhow::Result<String> {
    let spec = TokenRequestSpec {
        audiences: Some(vec![viewer::AUDIENCE.to_owned()]),
        expiration_seconds: Some(GOOD_FOR),
        ..TokenRequestSpec::default()
    };
    let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let answer = accounts.create_token_request(viewer::ACCOUNT, &PostParams::default(), &request).await;
    let answer =
        answer.map_err(said).with_context(|| format!("a token of {namespace}/{}", viewer::ACCOUNT))?;
    answer.status.and_then(|status| status.token).context("the API server made no token")
}

/// The certificates of the controller's authority.
async fn published(client: &Client, namespace: &str) -> anyhow::Result<String> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let map = maps.get_opt(AUTHORITY).await.map_err(said)?;
    let map = map.with_context(|| {
        format!("there is no ConfigMap {namespace}/{AUTHORITY}: where the controller's certificate is somebody else's, give its authority as --ca-file")
    })?;
    map.data
        .and_then(|mut data| data.remove("ca.crt"))
        .with_context(|| format!("ConfigMap {namespace}/{AUTHORITY} holds no ca.crt"))
}

/// A connection to the leader's pod by way of the API server, and TLS with the controller itself in it.
async fn forwarded(client: &Client, namespace: &str, tls: ClientTlsConfig) -> anyhow::Result<Channel> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let lease = leases.get(CONTROLLER).await.map_err(said).context("who leads")?;
    let holder = lease.spec.and_then(|spec| spec.holder_identity).filter(|holder| !holder.is_empty());
    let holder = holder
        .with_context(|| format!("no controller leads: nobody holds the Lease {namespace}/{CONTROLLER}"))?;
    // The pod's name, and something random.
    let pod = holder.rsplit_once('_').map_or(holder.as_str(), |(pod, _)| pod);
    let services: Api<Service> = Api::namespaced(client.clone(), namespace);
    let service = services.get(CONTROLLER).await.map_err(said).context("the controller's port")?;
    // The chart gives Service and pods one port.
    let port = service
        .spec
        .and_then(|spec| spec.ports?.into_iter().find(|port| port.name.as_deref() == Some("grpc")));
    let port = port.and_then(|port| u16::try_from(port.port).ok());
    let port = port.with_context(|| format!("Service {namespace}/{CONTROLLER} has no port grpc"))?;

    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let forwarder = pods.portforward(pod, &[port]).await;
    let what = || {
        format!("port-forward to pod {namespace}/{pod}, which leads (where it is no pod, give --controller)")
    };
    let mut forwarder = forwarder.map_err(said).with_context(what)?;
    let (Some(stream), Some(broken)) = (forwarder.take_stream(port), forwarder.take_error(port)) else {
        bail!("{}: there is no stream", what());
    };
    let mut stream = Some(TokioIo::new(stream));
    let connect = service_fn(move |_| {
        let stream = stream.take().ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionReset));
        std::future::ready(stream)
    });
    let endpoint = Endpoint::from_static("https://controller").tls_config(tls)?;
    match in_time(endpoint.connect_with_connector(connect)).await? {
        Ok(channel) => Ok(channel),
        // What is wrong at the pod's end is told beside the connection.
        Err(error) => match timeout(REASON, broken).await {
            Ok(Some(reason)) => Err(anyhow!(reason)).with_context(what),
            _ => Err(unreachable(error)).with_context(what),
        },
    }
}

fn unreachable(error: tonic::transport::Error) -> anyhow::Error {
    anyhow!("the controller is not reached: {:#}", anyhow::Error::new(error))
}

#[cfg(test)]
mod tests {
    use std::{path::PathBuf, pin::Pin};

    use calico_vni_proto::wire::operator_server::{Operator, OperatorServer};
    use tokio::net::TcpListener;
    use tokio_stream::{Stream, wrappers::TcpListenerStream};
    use tonic::{Response, service::Routes, transport::Server};

    use super::*;

    /// Says what it is asked about.
    struct Echo;

    type Answers = Pin<Box<dyn Stream<Item = Result<NodeAnswer, Status>> + Send>>;

    #[tonic::async_trait]
    impl Operator for Echo {
        type ListSessionsStream = Answers;
        type ListRoutesStream = Answers;

        async fn list_sessions(
            &self,
            asked: Request<wire::SessionsRequest>,
        ) -> Result<Response<Answers>, Status> {
            assert!(asked.metadata().get("authorization").is_none(), "a token was shown in plain");
            let session = wire::BgpSession { peer: "192.0.2.1".into(), ..Default::default() };
            let nodes = asked.into_inner().nodes.into_iter();
            let mut answers: Vec<_> = nodes
                .map(|node| NodeAnswer {
                    node,
                    version: "1".into(),
                    about: Some(node_answer::About::Sessions(wire::Sessions {
                        sessions: vec![session.clone()],
                        more: 5,
                    })),
                })
                .collect();
            answers.push(NodeAnswer {
                node: "away".into(),
                about: Some(node_answer::About::Refused("its agent is not connected".into())),
                ..Default::default()
            });
            answers.push(NodeAnswer { node: "newer".into(), ..Default::default() });
            Ok(Response::new(Box::pin(tokio_stream::iter(answers.into_iter().map(Ok)))))
        }

        async fn list_routes(&self, _: Request<wire::RoutesRequest>) -> Result<Response<Answers>, Status> {
            Err(Status::unavailable("standby; other-1 leads"))
        }
    }

    async fn serve(routes: Routes) -> Asking {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(
            Server::builder().add_routes(routes).serve_with_incoming(TcpListenerStream::new(listener)),
        );
        asking(&url)
    }

    fn asking(url: &str) -> Asking {
        Asking {
            no_ask: false,
            namespace: "calico-vni".into(),
            controller: Some(url.into()),
            ca_file: None,
            controller_name: CONTROLLER.into(),
        }
    }

    /// One that is never asked.
    fn nobody() -> Cluster {
        rustls::crypto::ring::default_provider().install_default().ok();
        let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        Cluster { client: Client::try_from(config).unwrap() }
    }

    #[tokio::test]
    async fn answers_are_told_with_who_gave_none() {
        let asking = serve(Routes::new(OperatorServer::new(Echo))).await;
        let told = sessions(&nobody(), &asking, vec!["n1".into()]).await.unwrap();
        let entries: Vec<_> = told.entries.iter().map(|(node, s)| (node.as_str(), s.peer.as_str())).collect();
        assert_eq!(entries, [("n1", "192.0.2.1")]);
        assert_eq!(
            Router::notes(&told.routers),
            "n1: and 5 more\nNO ANSWER from away: its agent is not connected\n\
             NO ANSWER from newer: the controller is newer than this program: update it\n"
        );
        let error = routes(&nobody(), &asking, "red", vec![]).await.unwrap_err().to_string();
        assert_eq!(error, "the controller says: standby; other-1 leads");
    }

    #[tokio::test]
    async fn a_controller_that_is_older_or_is_not_there_is_told() {
        let older = serve(Routes::default()).await;
        let error = sessions(&nobody(), &older, vec![]).await.unwrap_err().to_string();
        assert!(error.contains("it is older than this program"), "{error}");
        let error = sessions(&nobody(), &asking("http://127.0.0.1:1"), vec![]).await.unwrap_err().to_string();
        assert!(error.contains("is not reached") && error.contains("refused"), "{error}");
    }

    #[tokio::test]
    async fn over_tls_a_token_is_asked_for_before_anything_is_sent() {
        let file = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"));
        let asking = Asking { ca_file: Some(file), ..asking("https://127.0.0.1:1") };
        let error = sessions(&nobody(), &asking, vec![]).await.unwrap_err().to_string();
        assert_eq!(error, "a token of calico-vni/calico-vni-viewer", "nobody makes one there");
    }
}
