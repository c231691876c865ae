//! Allocations between their writing and their being seen.
//!
//! A plan made from a store that has not caught up would give the same number again, to somebody else. So what was
//! written is filled into each snapshot until it is seen there; and while it is unclear whether an allocation was
//! written, no other is made.

use std::{collections::BTreeMap, sync::Arc};

use calico_vni_crds::keys;
use calico_vni_planner::{Snapshot, plan::TenantAllocation};
use kube::ResourceExt;

use super::write::{Key, Write, WriteError};

/// Allocations that were written, by object; and those that may have been.
#[derive(Default)]
pub struct Ledger {
    /// By uid, so that a new object of the same name has nothing; with the version that was written upon. The write is
    /// bound to it, so every other version that comes to be seen follows the write.
    tenants: BTreeMap<String, (String, TenantAllocation)>,
    /// By uid, with what the annotation was before.
    nodes: BTreeMap<String, (Option<String>, u32)>,
    unclear: BTreeMap<Key, Write>,
}

impl Ledger {
    /// Fills in what the snapshot does not show yet, and forgets what it shows.
    pub fn fill(&mut self, snapshot: &mut Snapshot) {
        self.settle(snapshot);
        let mut tenants = BTreeMap::new();
        for tenant in &mut snapshot.tenants {
            let uid = tenant.uid().unwrap_or_default();
            let Some((before, allocation)) = self.tenants.remove(&uid) else { continue };
            if tenant.metadata.resource_version.as_ref() == Some(&before) {
                let status = tenant.status.get_or_insert_default();
                status.vni = Some(allocation.vni);
                status.link_index = Some(allocation.link_index);
                tenants.insert(uid, (before, allocation));
            }
        }
        let mut nodes = BTreeMap::new();
        for node in &mut snapshot.nodes {
            let uid = node.uid().unwrap_or_default();
            let Some((before, index)) = self.nodes.remove(&uid) else { continue };
            if node.annotations().get(keys::ROUTER_INDEX) == before.as_ref() {
                let annotations = Arc::make_mut(node).annotations_mut();
                annotations.insert(keys::ROUTER_INDEX.to_owned(), index.to_string());
                nodes.insert(uid, (before, index));
            }
        }
        self.tenants = tenants;
        self.nodes = nodes;
    }

    /// Drops unclear writes about objects that have changed since, or are gone: the snapshot tells what became of them.
    fn settle(&mut self, snapshot: &Snapshot) {
        self.unclear.retain(|_, write| match write {
            Write::AllocateTenant { at, .. } => snapshot.tenants.iter().any(|t| {
                t.name_any() == at.name && t.resource_version().as_ref() == Some(&at.resource_version)
            }),
            Write::AllocateNode { at, before, .. } => snapshot.nodes.iter().any(|n| {
                n.uid().as_ref() == Some(&at.uid)
                    && n.annotations().get(keys::ROUTER_INDEX) == before.as_ref()
            }),
            _ => false,
        });
    }

    /// The writes to be done now: the plan's, unless some are unclear; those come first and alone.
    pub fn writes(&self, planned: Vec<Write>) -> Vec<Write> {
        if self.unclear.is_empty() { planned } else { self.unclear.values().cloned().collect() }
    }

    /// What became of a write; of allocations alone it is kept.
    pub fn record(&mut self, write: &Write, result: Result<(), &WriteError>) {
        match (write, result) {
            (Write::AllocateTenant { at, uid, allocation }, Ok(())) => {
                self.tenants.insert(uid.clone(), (at.resource_version.clone(), *allocation));
            }
            (Write::AllocateNode { at, index, before }, Ok(())) => {
                self.nodes.insert(at.uid.clone(), (before.clone(), *index));
            }
            (Write::AllocateTenant { .. } | Write::AllocateNode { .. }, Err(WriteError::Unclear(_))) => {
                self.unclear.insert(write.key(), write.clone());
                return;
            }
            // A conflict on an unclear write may be with itself: it stays until the snapshot tells.
            (_, Err(WriteError::Conflict)) => return,
            _ => {}
        }
        self.unclear.remove(&write.key());
    }
}
