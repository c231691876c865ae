//! Who may speak for a node, and who may ask what routers say: by a token, where that has to be proven. Asks the proof alone.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use calico_vni_identity::token::{Denied, Proof};
use calico_vni_proto::{codec::Digest, viewer};
use tokio::time::Instant;
use tonic::{Status, metadata::MetadataMap};
use tracing::warn;

use super::pace::{Pace, Paced};

/// Streams of one agent. An agent that is sent away pauses ever longer, up to half a minute; this is for one that does not.
const STREAMS: Pace = Pace { every: Duration::from_secs(2), burst: 20 };
/// Refusals of one node that are told; the rest is counted.
const TOLD: Pace = Pace { every: Duration::from_mins(1), burst: 1 };
/// Agents whose haste is remembered: three times the largest cluster that Kubernetes is made for.
const AGENTS: usize = 15_000;
/// Nodes whose refusals are told within a minute: more would fill a disk with what an attacker makes up.
const TELLING: usize = 1_000;

/// Lets agents in, or not.
pub struct Door {
    proof: Option<Arc<dyn Proof>>,
    /// By token where there is one: nobody can use up what is another's.
    streams: Paced<Digest>,
    /// By node; viewers have none.
    told: Paced<Option<String>>,
    refused: AtomicU64,
    viewers_refused: AtomicU64,
}

impl Door {
    /// For agents that are believed: only where nobody else can reach the socket.
    pub fn open() -> Arc<Self> {
        Self::new(None)
    }

    /// For agents that have to prove their node.
    pub fn guarded(proof: Arc<dyn Proof>) -> Arc<Self> {
        Self::new(Some(proof))
    }

    fn new(proof: Option<Arc<dyn Proof>>) -> Arc<Self> {
        let (streams, told) = (Paced::new(STREAMS, AGENTS), Paced::new(TOLD, TELLING));
        Arc::new(Self {
            proof,
            streams,
            told,
            refused: AtomicU64::default(),
            viewers_refused: AtomicU64::default(),
        })
    }

    /// How many were refused since the start, for what they are or say; not those that came too often.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// How many viewers were.
    pub fn viewers_refused(&self) -> u64 {
        self.viewers_refused.load(Ordering::Relaxed)
    }

    /// Whether the sender of these headers may ask what routers say.
    pub async fn check_viewer(&self, headers: &MetadataMap) -> Result<(), Status> {
        let Some(proof) = &self.proof else { return Ok(()) };
        let token = bearer(headers).ok_or_else(|| {
            self.refuse_viewer("it has no token");
            Status::unauthenticated(format!(
                "no token: one of the service account {} is asked for",
                viewer::ACCOUNT
            ))
        })?;
        proof.viewer(token).await.map_err(|denied| {
            if !matches!(denied, Denied::Unknown(_)) {
                self.refuse_viewer(&denied.to_string());
            }
            told(&denied)
        })
    }

    /// Whether the sender of these headers may speak for that node.
    pub async fn check(&self, headers: &MetadataMap, node: &str) -> Result<(), Status> {
        let Some(proof) = &self.proof else { return self.in_time(&Digest::of(node.as_bytes()), node) };
        let token = bearer(headers).ok_or_else(|| {
            self.refuse(node, "nobody", "it has no token");
            Status::unauthenticated("no token: start the agent with --token-file")
        })?;
        self.in_time(&Digest::of(token.as_bytes()), node)?;
        match proof.node_of(token).await {
            Ok(proven) if proven == node => Ok(()),
            Ok(proven) => {
                self.refuse(node, &proven, "its token is of another node");
                Err(Status::permission_denied(format!(
                    "the token is of node `{proven}`, and Hello.node is `{node}`: give the agent the --node it runs on"
                )))
            }
            Err(denied) => {
                if !matches!(denied, Denied::Unknown(_)) {
                    self.refuse(node, "nobody", &denied.to_string());
                }
                Err(told(&denied))
            }
        }
    }

    fn in_time(&self, who: &Digest, node: &str) -> Result<(), Status> {
        self.streams.admit(*who, Instant::now()).map_err(|wait| {
            Status::resource_exhausted(format!(
                "the agent of node `{node}` connects too often: the next may come in {} s",
                wait.as_secs() + 1
            ))
        })
    }

    fn refuse(&self, node: &str, proven: &str, reason: &str) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        if self.told.admit(Some(node.to_owned()), Instant::now()).is_ok() {
            warn!(node, proven, reason, refused = self.refused(), "an agent was refused");
        }
    }

    fn refuse_viewer(&self, reason: &str) {
        self.viewers_refused.fetch_add(1, Ordering::Relaxed);
        if self.told.admit(None, Instant::now()).is_ok() {
            warn!(
                reason,
                refused = self.viewers_refused(),
                "somebody who asked what routers say was refused"
            );
        }
    }
}

/// What is said to who is denied.
fn told(denied: &Denied) -> Status {
    let reason = denied.to_string();
    match denied {
        Denied::Unknown(_) => Status::unavailable(reason),
        Denied::NotAuthenticated(_) => Status::unauthenticated(reason),
        _ => Status::permission_denied(reason),
    }
}

/// The token of `authorization: Bearer <token>` (RFC 6750 section 2.1).
fn bearer(headers: &MetadataMap) -> Option<&str> {
    let value = headers.get("authorization")?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use futures::future::BoxFuture;
    use tonic::Code;

    use super::*;

    /// Knows some tokens, and the node of each.
    pub(crate) struct Known(pub(crate) BTreeMap<&'static str, Result<String, Denied>>);

    impl Proof for Known {
        fn node_of<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<String, Denied>> {
            let unknown = || Err(Denied::NotAuthenticated("unknown".to_owned()));
            Box::pin(std::future::ready(self.0.get(token).cloned().unwrap_or_else(unknown)))
        }

        fn viewer<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<(), Denied>> {
            let answer = match (token, self.0.get(token)) {
                (VIEWERS, _) => Ok(()),
                (_, Some(Err(denied))) => Err(denied.clone()),
                _ => Err(Denied::NotAuthenticated("unknown".to_owned())),
            };
            Box::pin(std::future::ready(answer))
        }
    }

    /// The one token of a viewer.
    pub(crate) const VIEWERS: &str = "of-a-viewer";

    fn guarded() -> Arc<Door> {
        let tokens = [
            ("of-n1", Ok("n1".to_owned())),
            ("of-n2", Ok("n2".to_owned())),
            ("later", Err(Denied::Unknown("no answer".to_owned()))),
            ("loose", Err(Denied::NotBound)),
        ];
        Door::guarded(Arc::new(Known(tokens.into())))
    }

    async fn knock(door: &Door, authorization: Option<&str>, node: &str) -> Result<(), Code> {
        let mut headers = MetadataMap::new();
        if let Some(value) = authorization {
            headers.insert("authorization", value.parse().unwrap());
        }
        door.check(&headers, node).await.map_err(|status| status.code())
    }

    #[tokio::test]
    async fn a_token_opens_for_its_own_node_alone() {
        let door = guarded();
        assert_eq!(knock(&door, Some("Bearer of-n1"), "n1").await, Ok(()));
        assert_eq!(knock(&door, Some("bearer of-n2"), "n2").await, Ok(()));
        assert_eq!(door.refused(), 0);
        assert_eq!(knock(&door, Some("Bearer of-n1"), "n2").await, Err(Code::PermissionDenied));
        assert_eq!(knock(&door, Some("Bearer loose"), "n1").await, Err(Code::PermissionDenied));
        assert_eq!(knock(&door, Some("Bearer made-up"), "n1").await, Err(Code::Unauthenticated));
        assert_eq!(knock(&door, Some("Basic of-n1"), "n1").await, Err(Code::Unauthenticated));
        assert_eq!(knock(&door, None, "n1").await, Err(Code::Unauthenticated));
        assert_eq!(door.refused(), 5);
        assert_eq!(knock(&door, Some("Bearer later"), "n1").await, Err(Code::Unavailable));
        assert_eq!(door.refused(), 5, "who could not be checked was not refused");
    }

    #[tokio::test]
    async fn a_viewers_token_opens_for_viewers_alone_and_no_other_does() {
        let door = guarded();
        let knock_as_viewer = async |authorization: Option<&str>| {
            let mut headers = MetadataMap::new();
            if let Some(value) = authorization {
                headers.insert("authorization", value.parse().unwrap());
            }
            door.check_viewer(&headers).await.map_err(|status| status.code())
        };
        let viewers = format!("Bearer {VIEWERS}");
        assert_eq!(knock_as_viewer(Some(&viewers)).await, Ok(()));
        assert_eq!((door.refused(), door.viewers_refused()), (0, 0));
        assert_eq!(knock_as_viewer(Some("Bearer of-n1")).await, Err(Code::Unauthenticated));
        assert_eq!(knock_as_viewer(Some("Bearer made-up")).await, Err(Code::Unauthenticated));
        assert_eq!(knock_as_viewer(None).await, Err(Code::Unauthenticated));
        assert_eq!((door.refused(), door.viewers_refused()), (0, 3));
        assert_eq!(knock_as_viewer(Some("Bearer later")).await, Err(Code::Unavailable));
        assert_eq!(door.viewers_refused(), 3, "who could not be checked was not refused");
        assert_eq!(knock(&door, Some(&viewers), "n1").await, Err(Code::Unauthenticated));
        assert_eq!(knock(&door, Some("Bearer of-n1"), "n1").await, Ok(()));
    }

    #[tokio::test]
    async fn haste_is_ones_own() {
        let door = guarded();
        let mut last = Ok(());
        for _ in 0..=STREAMS.burst {
            last = knock(&door, Some("Bearer of-n1"), "n1").await;
        }
        assert_eq!(last, Err(Code::ResourceExhausted));
        // Somebody who only claims to be n2 uses up nothing of n2's.
        for _ in 0..=STREAMS.burst {
            knock(&door, Some("Bearer made-up"), "n2").await.unwrap_err();
        }
        assert_eq!(knock(&door, Some("Bearer of-n2"), "n2").await, Ok(()));
    }
}
