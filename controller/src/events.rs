//! Events on the objects that a plan has something to say about. Writes Events and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use calico_vni_planner::{
    Snapshot,
    plan::{About, Notice},
};
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client, Resource, ResourceExt,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tracing::{info, warn};

use crate::{status, with_causes};

/// Most of an Event's text, in octets; the API server refuses more than 1024.
const NOTE_MAX: usize = 1000;
/// Events under way at a time.
const CONCURRENT: usize = 8;

/// Tells each notice once: again only after it was gone, or with other words.
pub struct Events {
    client: Client,
    told: BTreeSet<Notice>,
    standing: Standing,
}

/// An Event to be published.
struct Message {
    about: ObjectReference,
    kind: EventType,
    notice: Notice,
}

impl Events {
    /// Publishes by that client.
    pub fn new(client: Client) -> Self {
        Self { client, told: BTreeSet::new(), standing: Standing::default() }
    }

    /// Tells what is new among the notices, and which Tenants came up.
    pub async fn tell(&mut self, notices: &BTreeSet<Notice>, snapshot: &Snapshot) {
        for notice in news(&self.told, notices) {
            warn!(about = ?notice.about, reason = notice.reason, "{}", notice.message);
        }
        let risen = self.standing.risen(snapshot);
        let warnings = news(&self.told, notices).filter_map(|notice| {
            Some(Message {
                about: reference(&notice.about, snapshot)?,
                kind: EventType::Warning,
                notice: notice.clone(),
            })
        });
        let risen = risen.into_iter().filter_map(|notice| {
            Some(Message { about: reference(&notice.about, snapshot)?, kind: EventType::Normal, notice })
        });
        let messages: Vec<_> = warnings.chain(risen).collect();
        let client = &self.client;
        let failed: BTreeSet<Notice> = stream::iter(messages)
            .map(|message| async move { publish(client, &message).await.err().map(|error| (message.notice, error)) })
            .buffer_unordered(CONCURRENT)
            .filter_map(|failure| async move {
                let (notice, error) = failure?;
                warn!(about = ?notice.about, reason = notice.reason, error = with_causes(&error), "no Event could be written; it is tried again with the next plan");
                Some(notice)
            })
            .collect()
            .await;
        self.told = notices.difference(&failed).cloned().collect();
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

/// What has not been told in these words.
fn news<'a>(told: &'a BTreeSet<Notice>, notices: &'a BTreeSet<Notice>) -> impl Iterator<Item = &'a Notice> {
    notices.difference(told)
}

/// The object of that name; `None` when it is gone, and with it whoever would have read the Event.
fn reference(about: &About, snapshot: &Snapshot) -> Option<ObjectReference> {
    fn find<K: Resource>(objects: &[K], name: &str, types: &K::DynamicType) -> Option<ObjectReference> {
        objects.iter().find(|object| object.name_any() == *name).map(|object| object.object_ref(types))
    }
    match about {
        About::Pool(name) => find(&snapshot.pools, name, &snapshot.calico_api),
        About::Tenant(name) => find(&snapshot.tenants, name, &()),
        About::Underlay(name) => find(&snapshot.underlays, name, &()),
        About::Node(name) => find(&snapshot.nodes, name, &()),
    }
}

async fn publish(client: &Client, message: &Message) -> kube::Result<()> {
    // A recorder of its own each time: a shared one would count a changed text as a repetition of the former.
    let recorder = Recorder::new(client.clone(), Reporter::from("calico-vni-controller"));
    let event = Event {
        type_: message.kind,
        reason: message.notice.reason.clone(),
        note: Some(shorten(&message.notice.message).to_owned()),
        action: "Plan".to_owned(),
        secondary: None,
    };
    recorder.publish(&event, &message.about).await
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

    fn notice(message: &str) -> Notice {
        Notice { about: About::Pool("red".into()), reason: "InvalidVNI".into(), message: message.into() }
    }

    #[test]
    fn a_notice_is_news_once_in_the_same_words() {
        let told = BTreeSet::from([notice("a")]);
        assert_eq!(news(&told, &[notice("a")].into()).count(), 0);
        assert_eq!(news(&told, &[notice("b")].into()).count(), 1);
        assert_eq!(news(&BTreeSet::new(), &told).count(), 1);
    }

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
                last_transition_time: Time(jiff::Timestamp::UNIX_EPOCH),
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
