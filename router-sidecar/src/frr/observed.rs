//! What FRR has, as far as it is ours. Pure.

use std::collections::BTreeSet;

use calico_vni_proto::names;

use super::{
    config::{Config, Section},
    sessions::L3Vni,
    version::Version,
};

/// What FRR has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// Its release.
    pub version: Version,
    /// What of its configuration is ours.
    pub config: Config,
    /// VNIs whose VRF has a device, so that FRR cannot forget its name.
    pub active: BTreeSet<u32>,
    /// VNIs that zebra calls down though their VRF has a device.
    pub down: BTreeSet<u32>,
    /// VNIs that zebra holds and a restarted management daemon does not know of.
    pub forgotten: BTreeSet<u32>,
}

impl Observed {
    /// FRR as it is before anything was configured.
    pub fn nothing(version: Version) -> Self {
        Self {
            version,
            config: Config::default(),
            active: BTreeSet::new(),
            down: BTreeSet::new(),
            forgotten: BTreeSet::new(),
        }
    }

    /// What zebra carries counts, not what the management daemon believes.
    pub fn take_zebras_word(&mut self, l3vnis: &[L3Vni]) {
        let is_down = |l3vni: &&L3Vni| {
            let own = names::vni_of(&l3vni.vrf, "vrf") == Some(l3vni.vni);
            own && l3vni.state == "Down" && self.active.contains(&l3vni.vni)
        };
        self.down = l3vnis.iter().filter(is_down).map(|l3vni| l3vni.vni).collect();
        for section in &mut self.config.tenants {
            let name = names::vrf(section.vni);
            let carried = l3vnis.iter().find(|l| l.vrf == name).map(|l| l.vni);
            if carried.is_some() && section.l3vni != carried {
                self.forgotten.insert(section.vni);
            }
            section.l3vni = carried;
        }
        for l3vni in l3vnis {
            let Some(vni) = names::vni_of(&l3vni.vrf, "vrf") else { continue };
            if self.config.tenant(vni).is_none() {
                self.forgotten.insert(vni);
                let section = Section { vni, vrf: true, l3vni: Some(l3vni.vni), ..Section::default() };
                self.config.tenants.push(section);
            }
        }
        self.config.tenants.sort_by_key(|section| section.vni);
        // A name that only waits for its device to go is nothing that is configured.
        let active = &self.active;
        self.config.tenants.retain(|s| {
            s.l3vni.is_some() || s.bgp.is_some() || !s.lists.is_empty() || !active.contains(&s.vni)
        });
    }
}
