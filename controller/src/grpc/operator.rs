//! The service for people: what routers say, passed on as their agents say it, for as many nodes as are asked about.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use calico_vni_proto::wire::{
    AboutRoutes, AboutSessions, NodeAnswer, RoutesRequest, SessionsRequest, operator_server::Operator,
    question,
};
use futures::{StreamExt as _, stream};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, metadata::MetadataMap};

use super::{Gate, door::Door};
use crate::agents::Agents;

/// People who are answered at one time.
pub(super) const CALLS: usize = 4;
/// Agents that are asked at one time for one of them. Their answers wait for the one whose turn it is, so this bounds what is
/// kept too.
const AT_ONCE: usize = 16;
/// How long all answers together may take, and how slow who reads them may be.
const LONGEST: Duration = Duration::from_mins(2);

/// Serves people.
pub(super) struct Desk {
    gate: watch::Receiver<Gate>,
    door: Arc<Door>,
    calls: Arc<Semaphore>,
    shutdown: CancellationToken,
}

impl Desk {
    pub fn new(gate: watch::Receiver<Gate>, door: Arc<Door>, shutdown: CancellationToken) -> Self {
        Self { gate, door, calls: Arc::new(Semaphore::new(CALLS)), shutdown }
    }

    /// The table of agents, for who may look.
    async fn agents(&self, headers: &MetadataMap) -> Result<Arc<Agents>, Status> {
        self.door.check_viewer(headers).await?;
        match &*self.gate.borrow() {
            Gate::Open(agents) => Ok(Arc::clone(agents)),
            Gate::Standby { reason } => Err(Status::unavailable(reason.clone())),
            Gate::Preparing { missing } => Err(Status::unavailable(format!("it waits for {missing}"))),
        }
    }

    fn answers(
        &self,
        agents: Arc<Agents>,
        nodes: Vec<String>,
        about: question::About,
    ) -> Result<Response<Answers>, Status> {
        let call = Arc::clone(&self.calls).try_acquire_owned();
        let call = call.map_err(|_| {
            Status::resource_exhausted(format!("{CALLS} others are being answered: try again in a moment"))
        })?;
        let nodes: BTreeSet<String> =
            if nodes.is_empty() { agents.nodes() } else { nodes.into_iter().collect() };
        let (say, said) = mpsc::channel(1);
        let shutdown = self.shutdown.clone();
        tokio::spawn(async move {
            let _call = call;
            let ask = |node: String| {
                let (agents, about) = (&agents, about.clone());
                async move { agents.ask(&node, about).await }
            };
            let all = async {
                let mut answers = stream::iter(nodes).map(ask).buffered(AT_ONCE);
                while let Some(answer) = answers.next().await {
                    if say.send(Ok(answer)).await.is_err() {
                        return;
                    }
                }
            };
            let late = tokio::select! {
                () = say.closed() => false,
                () = shutdown.cancelled() => false,
                ended = timeout(LONGEST, all) => ended.is_err(),
            };
            if late {
                let told = format!("not all answers were told within {} s", LONGEST.as_secs());
                say.try_send(Err(Status::deadline_exceeded(told))).ok();
            }
        });
        Ok(Response::new(ReceiverStream::new(said)))
    }
}

type Answers = ReceiverStream<Result<NodeAnswer, Status>>;

#[tonic::async_trait]
impl Operator for Desk {
    type ListSessionsStream = Answers;
    type ListRoutesStream = Answers;

    async fn list_sessions(&self, request: Request<SessionsRequest>) -> Result<Response<Answers>, Status> {
        let agents = self.agents(request.metadata()).await?;
        let SessionsRequest { nodes } = request.into_inner();
        self.answers(agents, nodes, question::About::Sessions(AboutSessions {}))
    }

    async fn list_routes(&self, request: Request<RoutesRequest>) -> Result<Response<Answers>, Status> {
        let agents = self.agents(request.metadata()).await?;
        let RoutesRequest { tenant, nodes } = request.into_inner();
        self.answers(agents, nodes, question::About::Routes(AboutRoutes { tenant }))
    }
}
