//! Which node a token speaks for. Asks the API server, which alone knows: nothing is read out of the token here.

use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus},
    core::v1::Pod,
};
use kube::{Api, Client, api::PostParams};
use tokio::sync::Semaphore;

/// Audience that an agent's token has to be made for: a token that leaks opens nothing else, and no other token opens
/// this.
pub const AUDIENCE: &str = "calico-vni";

/// Reviews at one time. All agents of a large cluster may come back together, and the API server has others to serve.
const AT_ONCE: usize = 64;

/// Longest wait for the API server's answers.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the API server adds to a user that is a pod-bound token (KEP 4193; nodes from Kubernetes 1.30 on).
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// Why a token proves no node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// It is not valid, or not for us.
    #[error("the token is not accepted: {0}")]
    NotAuthenticated(String),
    /// It is somebody else's.
    #[error("the token is of `{0}`, not of the routers' service account `{1}`")]
    WrongUser(String, String),
    /// It is bound to no pod.
    #[error("the token is bound to no pod and no node: it has to be a projected one")]
    NotBound,
    /// Its pod is gone, or another one.
    #[error("the token's pod `{0}` is not there, or not on a node")]
    NoPod(String),
    /// The API server could not be asked; the agent may try again.
    #[error("the token cannot be checked now: {0}")]
    Unknown(String),
}

/// Says which node a token speaks for.
pub trait NodeProof: Send + Sync + 'static {
    /// Name of the node, by its token.
    fn node_of<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<String, Denied>>;
}

/// By TokenReview.
pub struct Reviewer {
    client: Client,
    namespace: String,
    user: String,
    at_once: Semaphore,
}

impl Reviewer {
    /// For tokens of that service account.
    pub fn new(client: &Client, namespace: &str, service_account: &str) -> Self {
        Self {
            client: client.clone(),
            namespace: namespace.to_owned(),
            user: format!("system:serviceaccount:{namespace}:{service_account}"),
            at_once: Semaphore::new(AT_ONCE),
        }
    }

    async fn review(&self, token: &str) -> Result<String, Denied> {
        let _turn = self.at_once.acquire().await.expect("the semaphore is never closed");
        let spec = TokenReviewSpec { token: token.to_owned(), audiences: Some(vec![AUDIENCE.to_owned()]) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let answer = api.create(&PostParams::default(), &review).await.map_err(|e| unknown(&e))?;
        match bound(&answer.status.unwrap_or_default(), &self.user)? {
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

impl NodeProof for Reviewer {
    fn node_of<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<String, Denied>> {
        Box::pin(async {
            let late =
                || Err(Denied::Unknown(format!("the API server has not answered within {PATIENCE:?}")));
            tokio::time::timeout(PATIENCE, self.review(token)).await.unwrap_or_else(|_| late())
        })
    }
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

fn bound(status: &TokenReviewStatus, user: &str) -> Result<Bound, Denied> {
    if status.authenticated != Some(true) {
        let why = status.error.clone().unwrap_or_else(|| "no such user".to_owned());
        return Err(Denied::NotAuthenticated(why));
    }
    // An API server that does not know audiences answers without one: then the token could be anybody's.
    if !status.audiences.iter().flatten().any(|audience| audience == AUDIENCE) {
        return Err(Denied::NotAuthenticated(format!("it is not for the audience `{AUDIENCE}`")));
    }
    let info = status.user.clone().unwrap_or_default();
    let name = info.username.unwrap_or_default();
    if name != user {
        return Err(Denied::WrongUser(name, user.to_owned()));
    }
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
    use k8s_openapi::api::authentication::v1::UserInfo;

    use super::*;

    const USER: &str = "system:serviceaccount:calico-vni:calico-vni-router";

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
        assert_eq!(bound(&status(USER, &[AUDIENCE], &pod), USER), Ok(by_pod));
        let both = [(NODE_NAME, "n1"), pod[0], pod[1]];
        assert_eq!(bound(&status(USER, &[AUDIENCE], &both), USER), Ok(Bound::Node("n1".into())));
    }

    #[test]
    fn everything_else_is_denied() {
        let pod = [(POD_NAME, "router-x"), (POD_UID, "u1")];
        let denied = |status: &TokenReviewStatus| bound(status, USER).unwrap_err();
        let refused = TokenReviewStatus { authenticated: Some(false), ..status(USER, &[AUDIENCE], &pod) };
        assert!(matches!(denied(&refused), Denied::NotAuthenticated(_)));
        assert!(matches!(denied(&status(USER, &[], &pod)), Denied::NotAuthenticated(_)));
        assert!(matches!(denied(&status(USER, &["https://kubernetes"], &pod)), Denied::NotAuthenticated(_)));
        assert!(matches!(denied(&status("system:admin", &[AUDIENCE], &pod)), Denied::WrongUser(..)));
        assert_eq!(denied(&status(USER, &[AUDIENCE], &pod[..1])), Denied::NotBound);
        assert_eq!(denied(&status(USER, &[AUDIENCE], &[(NODE_NAME, "")])), Denied::NotBound);
    }
}
