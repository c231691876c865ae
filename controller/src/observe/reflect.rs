//! One reflector: a watch, and a store that holds what it tells.

use std::{fmt::Debug, hash::Hash, sync::Arc};

use calico_vni_crds::keys;
use futures::StreamExt;
use kube::{
    Api, Client, Resource, ResourceExt,
    core::{DeserializeGuard, ObjectMeta},
    runtime::{
        WatchStreamExt,
        reflector::{ObjectRef, Store, store::Writer},
        watcher,
        watcher::Event,
    },
};
use serde::de::DeserializeOwned;
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::Instant,
};
use tracing::{debug, info, warn};

use super::{TELL, reduce::last_other};
use crate::with_causes;

/// Everything of a kind is watched, for ever.
pub(super) fn all() -> watch::Receiver<Option<watcher::Config>> {
    watch::channel(Some(watcher::Config::default())).1
}

/// Starts reflectors.
pub(super) struct Start<'a> {
    pub client: &'a Client,
    /// Told of each change that could matter to a plan.
    pub changed: &'a Arc<Notify>,
    pub tasks: &'a mut JoinSet<&'static str>,
}

impl Start<'_> {
    /// Starts one reflector. `keep` may cut an object down, and says whether it is stored at all.
    pub(super) fn reflect<K>(
        &mut self,
        types: K::DynamicType,
        kind: &'static str,
        keep: fn(&mut K) -> bool,
    ) -> Store<K>
    where
        K: Resource + Clone + Debug + PartialEq + DeserializeOwned + Send + Sync + 'static,
        K::DynamicType: Eq + Hash + Clone + Send + Sync,
    {
        self.follow(Api::all_with(self.client.clone(), &types), types, kind, keep, all())
    }

    /// Starts one whose selection may change; what was read before stays until the new one has been read whole.
    pub(super) fn follow<K>(
        &mut self,
        api: Api<DeserializeGuard<K>>,
        types: K::DynamicType,
        kind: &'static str,
        keep: fn(&mut K) -> bool,
        selection: watch::Receiver<Option<watcher::Config>>,
    ) -> Store<K>
    where
        K: Resource + Clone + Debug + PartialEq + DeserializeOwned + Send + Sync + 'static,
        K::DynamicType: Eq + Hash + Clone + Send + Sync,
    {
        let writer = Writer::new(types.clone());
        let store = writer.as_reader();
        let mut reflector = Reflector { kind, types, keep, store: writer.as_reader(), writer };
        self.watch(api, kind, selection, move |event| reflector.take(event));
        store
    }

    /// Starts a watch. `take` is given what it tells, and says whether that could matter to a plan.
    pub(super) fn watch<K>(
        &mut self,
        api: Api<DeserializeGuard<K>>,
        kind: &'static str,
        mut selection: watch::Receiver<Option<watcher::Config>>,
        mut take: impl FnMut(Event<DeserializeGuard<K>>) -> bool + Send + 'static,
    ) where
        K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
        K::DynamicType: Clone,
    {
        let changed = Arc::clone(self.changed);
        self.tasks.spawn(async move {
            let mut told: Option<Instant> = None;
            loop {
                let Some(config) = selection.borrow_and_update().clone() else {
                    if selection.changed().await.is_err() {
                        return kind;
                    }
                    continue;
                };
                let mut events = watcher(api.clone(), config).default_backoff().boxed();
                loop {
                    let event = tokio::select! {
                        event = events.next() => event,
                        Ok(()) = selection.changed() => break,
                    };
                    match event {
                        Some(Ok(event)) => {
                            if told.take().is_some() {
                                info!(kind, "watching again");
                            }
                            if take(event) {
                                changed.notify_one();
                            }
                        }
                        Some(Err(error)) if told.is_none_or(|at| at.elapsed() >= TELL) => {
                            warn!(
                                kind,
                                error = with_causes(&error),
                                "cannot watch; what was read before stays in use"
                            );
                            told = Some(Instant::now());
                        }
                        Some(Err(error)) => debug!(kind, %error, "cannot watch"),
                        None => return kind,
                    }
                }
            }
        });
    }
}

struct Reflector<K>
where
    K: Resource + Clone + 'static,
    K::DynamicType: Eq + Hash + Clone,
{
    kind: &'static str,
    types: K::DynamicType,
    keep: fn(&mut K) -> bool,
    store: Store<K>,
    writer: Writer<K>,
}

impl<K> Reflector<K>
where
    K: Resource + Clone + PartialEq + 'static,
    K::DynamicType: Eq + Hash + Clone,
{
    /// Stores that, and says whether it could matter to a plan.
    fn take(&mut self, event: Event<DeserializeGuard<K>>) -> bool {
        let event = match event {
            Event::Apply(object) => self.read(object).map(Event::Apply),
            Event::InitApply(object) => self.read(object).map(Event::InitApply),
            // What is deleted is known by its name, whether or not the rest can be read.
            Event::Delete(object) => self.stored(object.meta()).map(Event::Delete),
            Event::Init => Some(Event::Init),
            Event::InitDone => Some(Event::InitDone),
        };
        let Some(event) = event else { return false };
        let matters = match &event {
            Event::Apply(object) => self.stored(object.meta()).is_none_or(|old| !same(&old, object)),
            Event::Delete(_) | Event::InitDone => true,
            Event::Init | Event::InitApply(_) => false,
        };
        self.writer.apply_watcher_event(&event);
        matters
    }

    /// The object without what is of no use here; `None` when it is not to be stored.
    fn read(&self, object: DeserializeGuard<K>) -> Option<K> {
        match object.0 {
            Ok(mut object) => {
                let meta = object.meta_mut();
                meta.managed_fields = last_other(meta.managed_fields.take(), keys::FIELD_MANAGER);
                object.annotations_mut().remove("kubectl.kubernetes.io/last-applied-configuration");
                (self.keep)(&mut object).then_some(object)
            }
            Err(invalid) => {
                let name = invalid.metadata.name.as_deref().unwrap_or_default();
                warn!(
                    kind = self.kind,
                    name,
                    error = invalid.error,
                    "this object cannot be read; what was read of it before stays"
                );
                self.stored(&invalid.metadata)
            }
        }
    }

    fn stored(&self, meta: &ObjectMeta) -> Option<K> {
        let mut at = ObjectRef::new_with(meta.name.as_deref().unwrap_or_default(), self.types.clone());
        at.namespace.clone_from(&meta.namespace);
        self.store.get(&at).map(|object| K::clone(&object))
    }
}

/// Whether nothing changed but the version and its writer.
fn same<K: Resource + Clone + PartialEq>(old: &K, new: &K) -> bool {
    let mut old = old.clone();
    let (meta, now) = (old.meta_mut(), new.meta());
    meta.resource_version.clone_from(&now.resource_version);
    meta.managed_fields.clone_from(&now.managed_fields);
    old == *new
}

#[cfg(test)]
mod tests {
    use calico_vni_crds::calico::{CalicoApi, IpPool};
    use serde_json::{Value, json};

    use super::*;

    fn reflector() -> Reflector<IpPool> {
        let writer = Writer::new(CalicoApi::V3);
        Reflector { kind: "IPPool", types: CalicoApi::V3, keep: |_| true, store: writer.as_reader(), writer }
    }

    fn pool(version: &str, cidr: &Value) -> DeserializeGuard<IpPool> {
        serde_json::from_value(json!({
            "metadata": { "name": "red", "resourceVersion": version, "managedFields": [{ "manager": "x" }] },
            "spec": { "cidr": cidr },
        }))
        .unwrap()
    }

    fn stored(reflector: &Reflector<IpPool>) -> Vec<(String, String)> {
        let objects = reflector.store.state();
        objects.iter().map(|p| (p.resource_version().unwrap(), p.spec.cidr.clone())).collect()
    }

    #[test]
    fn only_changes_that_matter_call_for_a_plan() {
        let mut reflector = reflector();
        assert!(!reflector.take(Event::Init));
        assert!(!reflector.take(Event::InitApply(pool("1", &json!("10.0.0.0/16")))));
        assert!(stored(&reflector).is_empty(), "not before the list is whole");
        assert!(reflector.take(Event::InitDone));
        assert_eq!(reflector.store.state()[0].metadata.managed_fields.as_ref().map(Vec::len), Some(1));

        assert!(!reflector.take(Event::Apply(pool("2", &json!("10.0.0.0/16")))), "a new version of the same");
        assert_eq!(stored(&reflector), [("2".to_owned(), "10.0.0.0/16".to_owned())], "is kept all the same");
        assert!(reflector.take(Event::Apply(pool("3", &json!("10.1.0.0/16")))));
        assert!(reflector.take(Event::Delete(pool("4", &json!("10.1.0.0/16")))));
        assert!(stored(&reflector).is_empty());
    }

    #[test]
    fn an_object_that_cannot_be_read_stays_as_it_was_read() {
        let mut reflector = reflector();
        let first = ("1".to_owned(), "10.0.0.0/16".to_owned());
        for event in [Event::Init, Event::InitApply(pool("1", &json!("10.0.0.0/16"))), Event::InitDone] {
            reflector.take(event);
        }
        reflector.take(Event::Apply(pool("2", &json!(["no", "text"]))));
        assert_eq!(stored(&reflector), std::slice::from_ref(&first));
        for event in [Event::Init, Event::InitApply(pool("3", &json!(7))), Event::InitDone] {
            reflector.take(event);
        }
        assert_eq!(stored(&reflector), [first], "over a new list too");
        reflector.take(Event::Delete(pool("4", &json!(7))));
        assert!(stored(&reflector).is_empty());
    }
}
