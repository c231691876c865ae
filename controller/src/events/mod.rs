//! Events on the objects that a plan has something to say about. Writes Events and nothing else, in a task of its own,
//! so that no plan waits for them.
//!
//! What to tell and when is [`Queue`], which is pure; the time is passed in. Three bounds hold, whatever happens in the
//! cluster: a notice is told once, and again only as a repetition of its Event; an object is told one reason in few
//! words a while; and all together are told at a rate that an API server does not notice.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use calico_vni_planner::{
    Snapshot,
    plan::{About, Notice},
};
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        core::v1::ObjectReference,
        events::v1::{Event, EventSeries},
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::{sync::watch, time::Instant};
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use crate::{status, with_causes};

mod queue;

use queue::{Queue, Tell};

/// Most of an Event's text, in octets; the API server refuses more than 1024.
const NOTE_MAX: usize = 1000;
/// Who tells, as Events name it.
const REPORTER: &str = "calico-vni-controller";
/// How long good news waits to be told, when there is much to tell.
const NEWS: Duration = Duration::from_mins(5);
/// Events of cluster-scoped objects are kept there.
const NAMESPACE: &str = "default";

/// What is to be told now.
type Wanted = BTreeMap<Notice, Message>;

/// The object of a notice, and whether it is bad news.
#[derive(Clone, Debug, PartialEq)]
struct Message {
    about: ObjectReference,
    warning: bool,
}

/// Hands to the task what is to be told. Dropping it ends the task.
pub struct Events {
    wanted: watch::Sender<Wanted>,
    logged: BTreeSet<Notice>,
    standing: Standing,
    risen: BTreeMap<Notice, Instant>,
    _task: AbortOnDropHandle<()>,
}

impl Events {
    /// Writes by that client.
    pub fn start(client: Client) -> Self {
        let (wanted, receiver) = watch::channel(Wanted::new());
        let task = AbortOnDropHandle::new(tokio::spawn(publish_all(client, receiver)));
        Self {
            wanted,
            logged: BTreeSet::new(),
            standing: Standing::default(),
            risen: BTreeMap::new(),
            _task: task,
        }
    }

    /// What is to be told now: these notices, and which Tenants came up.
    pub fn tell(&mut self, notices: &BTreeSet<Notice>, snapshot: &Snapshot) {
        for notice in notices.difference(&self.logged) {
            warn!(about = ?notice.about, reason = notice.reason, "{}", notice.message);
        }
        self.logged.clone_from(notices);
        let now = Instant::now();
        self.risen.retain(|_, until| now < *until);
        self.risen.extend(self.standing.risen(snapshot).into_iter().map(|notice| (notice, now + NEWS)));

        let warnings = notices.iter().map(|notice| (notice, true));
        let wanted = warnings.chain(self.risen.keys().map(|notice| (notice, false))).filter_map(
            |(notice, warning)| {
                let about = reference(&notice.about, snapshot)?;
                Some((notice.clone(), Message { about, warning }))
            },
        );
        let wanted = wanted.collect();
        self.wanted.send_if_modified(|current| {
            let differs = *current != wanted;
            if differs {
                *current = wanted;
            }
            differs
        });
    }
}

/// Tells one after the other, at the queue's pace.
async fn publish_all(client: Client, mut wanted: watch::Receiver<Wanted>) {
    let events: Api<Event> = Api::namespaced(client, NAMESPACE);
    let mut queue = Queue::new(Instant::now());
    loop {
        let now = wanted.borrow_and_update().clone();
        queue.keep(|notice| now.contains_key(notice), Instant::now());
        let tell = match queue.next(now.keys(), Instant::now()) {
            Tell::Wait(until) => {
                let pause = async {
                    match until {
                        Some(until) => tokio::time::sleep_until(until).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    changed = wanted.changed() => if changed.is_err() { return },
                    () = pause => {}
                }
                continue;
            }
            tell => tell,
        };
        let told = match &tell {
            Tell::New(notice) => create(&events, notice, &now[notice]).await.map(Some),
            Tell::Again { event, count, .. } => again(&events, event, *count).await,
            Tell::Wait(_) => continue,
        };
        let (Tell::New(notice) | Tell::Again { notice, .. }) = tell else { continue };
        match told {
            Ok(event) => queue.told(notice, event, Instant::now()),
            Err(error) => {
                warn!(about = ?notice.about, reason = notice.reason, error = with_causes(&error), "no Event could be written; it is tried again");
                queue.failed(notice, Instant::now());
            }
        }
    }
}

/// Writes an Event; its name.
async fn create(events: &Api<Event>, notice: &Notice, message: &Message) -> kube::Result<String> {
    let now = Timestamp::now();
    let about = message.about.name.as_deref().unwrap_or_default();
    let name = format!("{about}.{:x}", now.as_nanosecond());
    let event = Event {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(NAMESPACE.to_owned()),
            ..ObjectMeta::default()
        },
        type_: Some(if message.warning { "Warning" } else { "Normal" }.to_owned()),
        reason: Some(notice.reason.clone()),
        note: Some(shorten(&notice.message).to_owned()),
        action: Some("Plan".to_owned()),
        regarding: Some(message.about.clone()),
        event_time: Some(MicroTime(now)),
        reporting_controller: Some(REPORTER.to_owned()),
        reporting_instance: Some(REPORTER.to_owned()),
        ..Event::default()
    };
    events.create(&PostParams::default(), &event).await.map(|_| name)
}

/// Makes an Event the last of a series of that many; its name, or `None` when it is gone by its age.
async fn again(events: &Api<Event>, name: &str, count: i32) -> kube::Result<Option<String>> {
    let series = EventSeries { count, last_observed_time: MicroTime(Timestamp::now()) };
    match events.patch(name, &PatchParams::default(), &Patch::Merge(json!({ "series": series }))).await {
        Ok(_) => Ok(Some(name.to_owned())),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(error),
    }
}

/// Conditions of Tenants that are true, by name and type, as far as they were looked at.
#[derive(Default)]
struct Standing(BTreeMap<String, BTreeSet<String>>);

impl Standing {
    /// Conditions that turned true since the last look. The first look at a Tenant that has them already tells nothing:
    /// it was told by whoever ran before.
    fn risen(&mut self, snapshot: &Snapshot) -> Vec<Notice> {
        let mut risen = Vec::new();
        let mut standing = BTreeMap::new();
        for tenant in &snapshot.tenants {
            let name = tenant.name_any();
            let before = self.0.get(&name);
            let now = tenant.status.as_ref().map(status::true_conditions).unwrap_or_default();
            for condition in
                before.map(|before| now.iter().filter(|c| !before.contains(&c.type_))).into_iter().flatten()
            {
                info!(
                    tenant = name,
                    condition = condition.type_,
                    reason = condition.reason,
                    "{}",
                    condition.message
                );
                risen.push(Notice {
                    about: About::Tenant(name.clone()),
                    reason: condition.type_.clone(),
                    message: condition.message.clone(),
                });
            }
            standing.insert(name, now.into_iter().map(|c| c.type_.clone()).collect());
        }
        self.0 = standing;
        risen
    }
}

/// The object of that name; `None` when it is gone, and with it whoever would have read the Event.
fn reference(about: &About, snapshot: &Snapshot) -> Option<ObjectReference> {
    fn find<'a, K: Resource + 'a>(
        objects: impl IntoIterator<Item = &'a K>,
        name: &str,
        types: &K::DynamicType,
    ) -> Option<ObjectReference> {
        objects
            .into_iter()
            .find(|object| object.name_any() == *name)
            .map(|object| of_object(object.object_ref(types)))
    }
    match about {
        About::Pool(name) => find(&snapshot.pools, name, &snapshot.calico_api),
        About::Tenant(name) => find(&snapshot.tenants, name, &()),
        About::Underlay(name) => find(&snapshot.underlays, name, &()),
        About::Node(name) => find(snapshot.nodes.iter().map(Arc::as_ref), name, &()),
        About::Namespace(name) => find(&snapshot.namespaces, name, &()),
    }
}

/// Without what changes from plan to plan, so that a notice of an object is the same notice after each of its changes.
fn of_object(reference: ObjectReference) -> ObjectReference {
    ObjectReference { resource_version: None, ..reference }
}

fn shorten(text: &str) -> &str {
    &text[..text.floor_char_boundary(NOTE_MAX)]
}

#[cfg(test)]
mod tests {
    use calico_vni_crds::{Tenant, TenantSpec, TenantStatus};
    use calico_vni_planner::plan::About;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

    use super::*;

    #[test]
    fn a_tenant_that_comes_up_is_told_and_one_that_was_up_before_is_not() {
        let snapshot = |up: bool| {
            let mut tenant = Tenant::new("red", TenantSpec::default());
            let condition = Condition {
                type_: "Programmed".into(),
                status: if up { "True" } else { "False" }.into(),
                reason: "R".into(),
                message: "1/1".into(),
                observed_generation: None,
                last_transition_time: Time(Timestamp::UNIX_EPOCH),
            };
            tenant.status = Some(TenantStatus { conditions: vec![condition], ..TenantStatus::default() });
            Snapshot { tenants: vec![tenant], ..Snapshot::default() }
        };
        let mut standing = Standing::default();
        assert_eq!(standing.risen(&snapshot(true)), []);
        assert_eq!(standing.risen(&snapshot(false)), []);
        let risen = standing.risen(&snapshot(true));
        assert_eq!(risen.len(), 1);
        assert_eq!((&risen[0].about, risen[0].reason.as_str()), (&About::Tenant("red".into()), "Programmed"));
        assert_eq!(standing.risen(&snapshot(true)), []);
    }

    #[test]
    fn a_long_text_is_cut_between_letters() {
        let text = "ä".repeat(NOTE_MAX);
        assert_eq!(shorten(&text).len(), NOTE_MAX);
        assert_eq!(shorten("short"), "short");
        assert!(shorten(&format!("a{text}")).len() < NOTE_MAX);
    }
}
