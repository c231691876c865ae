//! The store of live blocks. Of these a large cluster has more than of all else together, so of each BlockAffinity only
//! what plans need is kept, and plans share one list of them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use calico_vni_crds::calico::BlockAffinity;
use calico_vni_planner::snapshot::Block;
use kube::{ResourceExt, core::DeserializeGuard, runtime::watcher::Event};
use tokio::sync::watch;
use tracing::warn;

/// What a watch has told, as plans read it.
pub(super) struct Blocks {
    held: Arc<Mutex<Held>>,
    read: watch::Receiver<bool>,
}

/// The side that a watch tells.
pub(super) struct Writer {
    held: Arc<Mutex<Held>>,
    read: watch::Sender<bool>,
    /// Of the list that is being read.
    reading: ByName,
}

/// By the name of the BlockAffinity.
type ByName = BTreeMap<String, Block>;

#[derive(Default)]
struct Held {
    live: ByName,
    /// The list that plans share, until something changes.
    list: Option<Arc<Vec<Block>>>,
}

impl Held {
    fn change<T>(&mut self, change: impl FnOnce(&mut ByName) -> T) -> T {
        self.list = None;
        change(&mut self.live)
    }
}

fn lock(held: &Mutex<Held>) -> MutexGuard<'_, Held> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Blocks {
    /// An empty store, with the side that fills it.
    pub(super) fn new() -> (Self, Writer) {
        let (held, (done, read)) = (Arc::default(), watch::channel(false));
        let writer = Writer { held: Arc::clone(&held), read: done, reading: BTreeMap::new() };
        (Self { held, read }, writer)
    }

    /// All live blocks.
    pub(super) fn state(&self) -> Arc<Vec<Block>> {
        let held = &mut *lock(&self.held);
        let list = || Arc::new(held.live.values().cloned().collect());
        Arc::clone(held.list.get_or_insert_with(list))
    }

    /// Waits until a list has been read whole. Fails when whoever reads has ended before.
    pub(super) async fn wait_until_ready(&self) -> Result<(), watch::error::RecvError> {
        self.read.clone().wait_for(|read| *read).await.map(drop)
    }
}

impl Writer {
    /// Takes that, and says whether it could matter to a plan.
    pub(super) fn take(&mut self, event: Event<DeserializeGuard<BlockAffinity>>) -> bool {
        match event {
            Event::Init => {
                self.reading.clear();
                false
            }
            Event::InitApply(affinity) => {
                let name = affinity.name_any();
                if let Some(block) = self.block(&name, affinity) {
                    self.reading.insert(name, block);
                }
                false
            }
            Event::InitDone => {
                let read = std::mem::take(&mut self.reading);
                lock(&self.held).change(|live| *live = read);
                self.read.send_replace(true);
                true
            }
            Event::Delete(affinity) => self.put(affinity.name_any(), None),
            Event::Apply(affinity) => {
                let name = affinity.name_any();
                let block = self.block(&name, affinity);
                self.put(name, block)
            }
        }
    }

    /// From now on that is the block of that name; says whether it was another before.
    fn put(&self, name: String, block: Option<Block>) -> bool {
        let mut held = lock(&self.held);
        if held.live.get(&name) == block.as_ref() {
            return false;
        }
        held.change(|live| match block {
            Some(block) => live.insert(name, block),
            None => live.remove(&name),
        });
        true
    }

    /// The block, if it is live.
    fn block(&self, name: &str, affinity: DeserializeGuard<BlockAffinity>) -> Option<Block> {
        affinity.0.map_or_else(
            |invalid| {
                warn!(
                    kind = "BlockAffinity",
                    name,
                    error = invalid.error,
                    "this object cannot be read; what was read of it before stays"
                );
                lock(&self.held).live.get(name).cloned()
            },
            Block::of,
        )
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use serde_json::{Value, json};

    use super::*;

    fn affinity(name: &str, cidr: &Value) -> DeserializeGuard<BlockAffinity> {
        serde_json::from_value(json!({
            "metadata": { "name": name }, "spec": { "node": "n1", "cidr": cidr, "state": "confirmed", "deleted": "false" },
        }))
        .unwrap()
    }

    fn nets(blocks: &Blocks) -> Vec<String> {
        blocks.state().iter().map(|block| block.net.to_string()).collect()
    }

    #[test]
    fn a_list_counts_when_it_is_whole_and_changes_that_matter_are_told() {
        let (blocks, mut writer) = Blocks::new();
        let [a, b] = ["10.0.0.0/26", "10.0.0.64/26"].map(|cidr| json!(cidr));
        assert!(!writer.take(Event::Init) && !writer.take(Event::InitApply(affinity("a", &a))));
        assert!(nets(&blocks).is_empty() && blocks.wait_until_ready().now_or_never().is_none());
        assert!(writer.take(Event::InitDone));
        assert!(blocks.wait_until_ready().now_or_never().is_some());
        assert_eq!(nets(&blocks), ["10.0.0.0/26"]);

        assert!(!writer.take(Event::Apply(affinity("a", &a))), "the same once more");
        assert!(writer.take(Event::Apply(affinity("b", &b))));
        assert_eq!(nets(&blocks), ["10.0.0.0/26", "10.0.0.64/26"]);
        assert!(writer.take(Event::Delete(affinity("a", &a))));
        assert!(!writer.take(Event::Delete(affinity("a", &a))), "it was gone already");
        assert_eq!(nets(&blocks), ["10.0.0.64/26"]);

        // A new list replaces all.
        writer.take(Event::Init);
        writer.take(Event::InitApply(affinity("a", &a)));
        assert_eq!(nets(&blocks), ["10.0.0.64/26"], "until it is whole");
        writer.take(Event::InitDone);
        assert_eq!(nets(&blocks), ["10.0.0.0/26"]);
    }

    #[test]
    fn a_block_that_calico_is_done_with_is_gone() {
        let (blocks, mut writer) = Blocks::new();
        let mut done = affinity("a", &json!("10.0.0.0/26"));
        writer.take(Event::Apply(affinity("a", &json!("10.0.0.0/26"))));
        done.0.as_mut().unwrap().spec.deleted = Some(json!("true"));
        assert!(writer.take(Event::Apply(done)) && nets(&blocks).is_empty());
        assert!(!writer.take(Event::Apply(affinity("b", &json!("no prefix")))) && nets(&blocks).is_empty());
    }

    #[test]
    fn one_that_cannot_be_read_stays_as_it_was_read() {
        let (blocks, mut writer) = Blocks::new();
        writer.take(Event::Apply(affinity("a", &json!("10.0.0.0/26"))));
        assert!(!writer.take(Event::Apply(affinity("a", &json!(7)))));
        assert_eq!(nets(&blocks), ["10.0.0.0/26"]);
        for event in [Event::Init, Event::InitApply(affinity("a", &json!(7))), Event::InitDone] {
            writer.take(event);
        }
        assert_eq!(nets(&blocks), ["10.0.0.0/26"], "over a new list too");
    }
}
