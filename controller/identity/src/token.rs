//! Which node a token speaks for, and whether one is a viewer's. Asks the API server, which alone knows: nothing is read out of
//! the token here.

use std::time::Duration;

use calico_vni_proto::viewer;
use futures::future::BoxFuture;
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo},
    core::v1::Pod,
};
use kube::{Api, Client, api::PostParams};
use tokio::sync::Semaphore;

/// Audience that an agent's token has to be made for: a token that leaks opens nothing else, and no other token opens
/// this.
pub const AUDIENCE: &str = "calico-vni";

/// Reviews at one time. All agents of a large cluster may come back together, and the API server has others to serve.
const AT_ONCE: usize = 64;

/// The same of viewers' tokens, which never wait in the agents' way.
const VIEWERS_AT_ONCE: usize = 4;

/// Longest wait for the API server's answers.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the API server adds to a user that is a pod-bound token (KEP 4193; nodes from Kubernetes 1.30 on).
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// Why a token proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// It is not valid, or not for us.
    #[error("the token is not accepted: {0}")]
    NotAuthenticated(String),
    /// It is somebody else's.
    #[error("the token is of `{0}`, not of the service account `{1}`")]
    WrongUser(String, String),
    /// It is bound to no pod.
    #[error("the token is bound to no pod and no node: it has to be a projected one")]
    NotBound,
    /// Its pod is gone, or another one.
    #[error("the token's pod `{0}` is not there, or not on a node")]
    NoPod(String),
    /// The API server could not be asked; whoever came may try again.
    #[error("the token cannot be checked now: {0}")]
    Unknown(String),
}

/// Says what a token proves.
pub trait Proof: Send + Sync + 'static {
    /// Name of the node that an agent's token speaks for.
    fn node_of<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<String, Denied>>;

    /// Whether it is a viewer's.
    fn viewer<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<(), Denied>>;
}

/// By TokenReview.
pub struct Reviewer {
    client: Client,
    namespace: String,
    router: String,
    viewer: String,
    at_once: Semaphore,
    viewers_at_once: Semaphore,
}

impl Reviewer {
    /// For agents' tokens of that service account, and viewers' of [`viewer::ACCOUNT`].
    pub fn new(client: &Client, namespace: &str, service_account: &str) -> Self {
        let user = |account: &str| format!("system:serviceaccount:{namespace}:{account}");
        Self {
            client: client.clone(),
            namespace: namespace.to_owned(),
            router: user(service_account),
            viewer: user(viewer::ACCOUNT),
            at_once: Semaphore::new(AT_ONCE),
            viewers_at_once: Semaphore::new(VIEWERS_AT_ONCE),
        }
    }

    /// What the API server says of it.
    async fn review(
        &self,
        token: &str,
        audience: &str,
        at_once: &Semaphore,
    ) -> Result<TokenReviewStatus, Denied> {
        let _turn = at_once.acquire().await.expect("the semaphore is never closed");
        let spec = TokenReviewSpec { token: token.to_owned(), audiences: Some(vec![audience.to_owned()]) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let answer = api.create(&PostParams::default(), &review).await.map_err(|e| unknown(&e))?;
        Ok(answer.status.unwrap_or_default())
    }

    async fn node(&self, token: &str) -> Result<String, Denied> {
        let status = self.review(token, AUDIENCE, &self.at_once).await?;
        match bound(accepted(status, AUDIENCE, &self.router)?)? {
            Bound::Node(node) => Ok(node),
            Bound::Pod { name, uid } => {
                let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
                let pod = pods.get_opt(&name).await.map_err(|e| unknown(&e))?;
                pod.filter(|pod| pod.metadata.uid.as_deref() == Some(&uid))
                    .and_then(|pod| pod.spec?.node_name)
                    .ok_or(Denied::NoPod(name))
            }
        }
    }
}

impl Proof for Reviewer {
    fn node_of<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<String, Denied>> {
        Box::pin(in_time(self.node(token)))
    }

    fn viewer<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<(), Denied>> {
        Box::pin(in_time(async {
            let status = self.review(token, viewer::AUDIENCE, &self.viewers_at_once).await?;
            accepted(status, viewer::AUDIENCE, &self.viewer).map(drop)
        }))
    }
}

async fn in_time<T>(asked: impl Future<Output = Result<T, Denied>>) -> Result<T, Denied> {
    let late = || Err(Denied::Unknown(format!("the API server has not answered within {PATIENCE:?}")));
    tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| late())
}

fn unknown(error: &kube::Error) -> Denied {
    Denied::Unknown(error.to_string())
}

/// What a token is bound to.
#[derive(Debug, PartialEq, Eq)]
enum Bound {
    Node(String),
    Pod { name: String, uid: String },
}

/// Whose it is, if it is that user's and for that audience.
fn accepted(status: TokenReviewStatus, audience: &str, user: &str) -> Result<UserInfo, Denied> {
    if status.authenticated != Some(true) {
        return Err(Denied::NotAuthenticated(status.error.unwrap_or_else(|| "no such user".to_owned())));
    }
    // An API server that does not know audiences answers without one: then the token could be anybody's.
    if !status.audiences.iter().flatten().any(|of| of == audience) {
        return Err(Denied::NotAuthenticated(format!("it is not for the audience `{audience}`")));
    }
    let info = status.user.unwrap_or_default();
    match info.username.as_deref() {
        Some(name) if name == user => Ok(info),
        name => Err(Denied::WrongUser(name.unwrap_or_default().to_owned(), user.to_owned())),
    }
}

fn bound(info: UserInfo) -> Result<Bound, Denied> {
    let extra = info.extra.unwrap_or_default();
    let one = |key| match extra.get(key).map(Vec::as_slice) {
        Some([value]) if !value.is_empty() => Some(value.clone()),
        _ => None,
    };
    if let Some(node) = one(NODE_NAME) {
        return Ok(Bound::Node(node));
    }
    match (one(POD_NAME), one(POD_UID)) {
        (Some(name), Some(uid)) => Ok(Bound::Pod { name, uid }),
        _ => Err(Denied::NotBound),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: &str = "system:serviceaccount:calico-vni:calico-vni-router";
    const LOOKER: &str = "system:serviceaccount:calico-vni:calico-vni-viewer";

    fn node(status: TokenReviewStatus) -> Result<Bound, Denied> {
        bound(accepted(status, AUDIENCE, USER)?)
    }

    fn status(user: &str, audiences: &[&str], extra: &[(&str, &str)]) -> TokenReviewStatus {
        let extra = extra.iter().map(|(key, value)| ((*key).to_owned(), vec![(*value).to_owned()])).collect();
        TokenReviewStatus {
            authenticated: Some(true),
            audiences: Some(audiences.iter().map(|&a| a.to_owned()).collect()),
            user: Some(UserInfo {
                username: Some(user.to_owned()),
                extra: Some(extra),
                ..UserInfo::default()
            }),
            error: None,
        }
    }

    #[test]
    fn the_claimed_node_comes_first_and_then_the_pod() {
        let pod = [(POD_NAME, "router-x"), (POD_UID, "u1")];
        let by_pod = Bound::Pod { name: "router-x".into(), uid: "u1".into() };
        assert_eq!(node(status(USER, &[AUDIENCE], &pod)), Ok(by_pod));
        let both = [(NODE_NAME, "n1"), pod[0], pod[1]];
        assert_eq!(node(status(USER, &[AUDIENCE], &both)), Ok(Bound::Node("n1".into())));
    }

    #[test]
    fn everything_else_is_denied() {
        let pod = [(POD_NAME, "router-x"), (POD_UID, "u1")];
        let denied = |status| node(status).unwrap_err();
        let refused = TokenReviewStatus { authenticated: Some(false), ..status(USER, &[AUDIENCE], &pod) };
        assert!(matches!(denied(refused), Denied::NotAuthenticated(_)));
        assert!(matches!(denied(status(USER, &[], &pod)), Denied::NotAuthenticated(_)));
        assert!(matches!(denied(status(USER, &["https://kubernetes"], &pod)), Denied::NotAuthenticated(_)));
        assert!(matches!(denied(status("system:admin", &[AUDIENCE], &pod)), Denied::WrongUser(..)));
        assert_eq!(denied(status(USER, &[AUDIENCE], &pod[..1])), Denied::NotBound);
        assert_eq!(denied(status(USER, &[AUDIENCE], &[(NODE_NAME, "")])), Denied::NotBound);
    }

    #[test]
    fn a_viewers_token_is_another_than_an_agents() {
        let viewer = |status| accepted(status, viewer::AUDIENCE, LOOKER).map(drop);
        assert_eq!(viewer(status(LOOKER, &[viewer::AUDIENCE], &[])), Ok(()));
        assert!(matches!(viewer(status(LOOKER, &[AUDIENCE], &[])), Err(Denied::NotAuthenticated(_))));
        assert!(matches!(viewer(status(USER, &[viewer::AUDIENCE], &[])), Err(Denied::WrongUser(..))));
        let pod = [(NODE_NAME, "n1")];
        assert_eq!(node(status(USER, &[AUDIENCE], &pod)), Ok(Bound::Node("n1".into())));
        assert!(matches!(node(status(USER, &[viewer::AUDIENCE], &pod)), Err(Denied::NotAuthenticated(_))));
        assert!(matches!(node(status(LOOKER, &[AUDIENCE], &pod)), Err(Denied::WrongUser(..))));
    }
}
