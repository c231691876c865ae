//! Which of several controllers leads: a Lease (coordination.k8s.io/v1), renewed by its holder, taken by another when it has
//! not been renewed for its whole duration. Writes the Lease and nothing else.
//!
//! Two things keep a loser from writing. Who leads stops when it could not renew for [`Timing::renew`], well before another
//! may take over; and what writes goes through [`fence::Fence`], which lets nothing through from that moment on. Time is
//! counted from what each has seen itself, so clocks that go differently do no harm.

pub mod fence;

use std::{
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tracing::{debug, info, warn};

use self::fence::Fence;

/// Name of the Lease.
pub const NAME: &str = "calico-vni-controller";

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// A Lease that was not renewed for so long may be taken; whole seconds.
    pub duration: Duration,
    /// Its holder stops when it could not renew it for so long. What lies between the two is for writes that are under way.
    pub renew: Duration,
    /// Pause between two looks.
    pub retry: Duration,
}

impl Default for Timing {
    /// As Kubernetes' own components have it.
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(15),
            renew: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }
}

/// One that would lead.
pub struct Candidate {
    leases: Api<Lease>,
    namespace: String,
    identity: String,
    timing: Timing,
    fence: Fence,
}

/// The time in which this controller leads. It ends by [`Term::lost`] or [`Term::release`].
pub struct Term<'a> {
    candidate: &'a Candidate,
    held: Lease,
    until: Instant,
}

/// A Lease as it was seen, and since when it has looked like that.
struct Seen {
    version: Option<String>,
    since: Instant,
}

/// A name for this process, which no other has: the pod's or machine's, and something random.
pub fn identity() -> String {
    let name = ["POD_NAME", "HOSTNAME"].iter().find_map(|key| std::env::var(key).ok());
    let random = RandomState::new().hash_one(std::process::id());
    format!("{}_{random:016x}", name.as_deref().unwrap_or("calico-vni-controller"))
}

impl Candidate {
    /// For the Lease of that namespace. The identity has to be another one in each process. Whatever this controller
    /// writes has to go through that fence; `client` must not.
    pub fn new(client: &Client, namespace: &str, identity: &str, timing: Timing, fence: Fence) -> Self {
        fence.shut();
        Self {
            leases: Api::namespaced(client.clone(), namespace),
            namespace: namespace.to_owned(),
            identity: identity.to_owned(),
            timing,
            fence,
        }
    }

    /// Waits until this one leads. Who leads meanwhile is told whenever it is another.
    pub async fn acquire(&self, mut standby: impl FnMut(&str)) -> Term<'_> {
        let mut seen: Option<Seen> = None;
        let mut leads = String::new();
        loop {
            let asked = Instant::now();
            match timeout_at(asked + self.timing.renew, self.attempt(&mut seen)).await {
                Ok(Ok(Ok(held))) => {
                    let until = asked + self.timing.renew;
                    self.fence.open_until(until);
                    info!(
                        namespace = self.namespace,
                        lease = NAME,
                        identity = self.identity,
                        "this controller leads"
                    );
                    return Term { candidate: self, held, until };
                }
                Ok(Ok(Err(holder))) => {
                    if holder != leads {
                        info!(
                            namespace = self.namespace,
                            lease = NAME,
                            holder,
                            "standby: another controller leads"
                        );
                        standby(&holder);
                        leads = holder;
                    }
                }
                Ok(Err(error)) => warn!(
                    namespace = self.namespace,
                    lease = NAME,
                    error = crate::with_causes(&error),
                    "the Lease cannot be read or taken; it is tried again"
                ),
                Err(_) => warn!(namespace = self.namespace, lease = NAME, "the API server does not answer"),
            }
            sleep(self.timing.retry).await;
        }
    }

    /// The Lease, held by this one, or who holds it.
    async fn attempt(&self, seen: &mut Option<Seen>) -> kube::Result<Result<Lease, String>> {
        let Some(lease) = self.leases.get_opt(NAME).await? else {
            let lease = self.claim(None);
            return settled(self.leases.create(&PostParams::default(), &lease).await);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let version = lease.metadata.resource_version.clone();
        let now = Instant::now();
        let since = match seen {
            Some(before) if before.version == version => before.since,
            _ => now,
        };
        *seen = Some(Seen { version, since });
        let holder = spec.holder_identity.filter(|holder| !holder.is_empty());
        let duration = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let duration = duration.map_or(self.timing.duration, Duration::from_secs);
        if let Some(holder) = holder.filter(|holder| *holder != self.identity && now < since + duration) {
            return Ok(Err(holder));
        }
        let claim = self.claim(Some(lease));
        settled(self.leases.replace(NAME, &PostParams::default(), &claim).await)
    }

    /// That Lease as this one's; at the version that was seen, so that of two claims one is refused.
    fn claim(&self, seen: Option<Lease>) -> Lease {
        let before = seen.unwrap_or_else(|| Lease {
            metadata: ObjectMeta {
                name: Some(NAME.to_owned()),
                namespace: Some(self.namespace.clone()),
                ..ObjectMeta::default()
            },
            spec: None,
        });
        let spec = before.spec.unwrap_or_default();
        let (now, mine) =
            (MicroTime(Timestamp::now()), spec.holder_identity.as_ref() == Some(&self.identity));
        let transitions = spec.lease_transitions.unwrap_or(0);
        let spec = LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(self.timing.duration.as_secs()).ok(),
            acquire_time: spec.acquire_time.filter(|_| mine).or(Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(if mine { transitions } else { transitions.saturating_add(1) }),
            ..spec
        };
        Lease { metadata: before.metadata, spec: Some(spec) }
    }
}

/// Who was a moment slower than another has lost nothing but the moment.
fn settled(written: kube::Result<Lease>) -> kube::Result<Result<Lease, String>> {
    match written {
        Ok(lease) => Ok(Ok(lease)),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(Err("another one".to_owned())),
        Err(error) => Err(error),
    }
}

impl Term<'_> {
    /// Renews the Lease for as long as it can, and returns why it could not any more. Nothing is written from then on.
    pub async fn lost(&mut self) -> String {
        let reason = self.renew().await;
        self.candidate.fence.shut();
        reason
    }

    async fn renew(&mut self) -> String {
        let candidate = self.candidate;
        let mut last = "the API server does not answer".to_owned();
        loop {
            tokio::select! {
                () = sleep(candidate.timing.retry) => {}
                () = sleep_until(self.until) => return format!("not renewed for {:?}: {last}", candidate.timing.renew),
            }
            let asked = Instant::now();
            let (claim, params) = (candidate.claim(Some(self.held.clone())), PostParams::default());
            let written = candidate.leases.replace(NAME, &params, &claim);
            match timeout_at(self.until, written).await {
                Ok(Ok(held)) => {
                    self.held = held;
                    self.until = asked + candidate.timing.renew;
                    candidate.fence.open_until(self.until);
                }
                // Somebody has changed or deleted it: whose is it now?
                Ok(Err(kube::Error::Api(status))) if status.code == 409 || status.code == 404 => {
                    match timeout_at(self.until, candidate.leases.get_opt(NAME)).await {
                        Ok(Ok(Some(lease))) => {
                            let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone());
                            if holder.as_ref() != Some(&candidate.identity) {
                                return format!("{} holds it", holder.as_deref().unwrap_or("nobody"));
                            }
                            self.held = lease;
                        }
                        Ok(Ok(None)) => return "it was deleted".to_owned(),
                        Ok(Err(error)) => last = crate::with_causes(&error),
                        Err(_) => {}
                    }
                }
                Ok(Err(error)) => {
                    last = crate::with_causes(&error);
                    debug!(lease = NAME, error = last, "not renewed; it is tried again");
                }
                Err(_) => {}
            }
        }
    }

    /// Gives the Lease back, so that another one need not wait until it ends. Nothing may be under way any more.
    pub async fn release(self) {
        let candidate = self.candidate;
        candidate.fence.shut();
        let mut lease = self.held;
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = None;
            spec.renew_time = Some(MicroTime(Timestamp::now()));
        }
        let params = PostParams::default();
        let written = candidate.leases.replace(NAME, &params, &lease);
        match timeout_at(self.until, written).await {
            Ok(Ok(_)) => info!(namespace = candidate.namespace, lease = NAME, "handed over"),
            Ok(Err(error)) => {
                let error = crate::with_causes(&error);
                warn!(lease = NAME, error, "not handed over: another controller waits until the Lease ends");
            }
            Err(_) => warn!(lease = NAME, "not handed over: the API server does not answer"),
        }
    }
}
