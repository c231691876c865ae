//! Which group serves Calico's kinds. Reads discovery alone.

use std::{collections::BTreeSet, time::Duration};

use calico_vni_crds::calico::{
    BgpConfigurationSpec, BgpFilterSpec, BgpPeerSpec, BlockAffinitySpec, CalicoApi, CalicoSpec, IpPoolSpec,
    IpamConfigSpec,
};
use kube::Client;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::with_causes;

/// How often discovery is asked while Calico is not there.
const POLL: Duration = Duration::from_secs(2);
/// How often that is told.
const TELL: Duration = Duration::from_secs(30);

/// What the cluster serves of Calico.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    /// Group and version.
    pub api: CalicoApi,
    /// Whether the settings of its IPAM are served too; older releases do not have them in every group.
    pub ipam_config: bool,
}

/// Waits until the cluster serves Calico's kinds. A group is chosen once: an upgrade of Calico that brings another
/// group is met at the next start.
pub async fn wait_for_calico(client: &Client) -> Served {
    let mut told: Option<Instant> = None;
    loop {
        let why = match look(client).await {
            Ok(served) => {
                info!(group = served.api.group(), version = served.api.version(), "Calico is served");
                return served;
            }
            Err(why) => why,
        };
        if told.is_none_or(|at| at.elapsed() >= TELL) {
            warn!("waiting for Calico, nothing is done before: {why}");
            told = Some(Instant::now());
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Why no group can be used yet.
#[derive(Debug, thiserror::Error)]
enum Unserved {
    /// No group has all kinds.
    #[error("{0}; install Calico, or its CustomResourceDefinitions")]
    Missing(String),
    /// That is not known. The aggregated API server may be registered and not answer: no reason to go to its storage.
    #[error("the API server does not say whether {0} is served: {1}")]
    Unknown(String, String),
}

/// The first group that serves all that is needed.
async fn look(client: &Client) -> Result<Served, Unserved> {
    let mut reasons = Vec::new();
    for api in [CalicoApi::V3, CalicoApi::CrdV1] {
        let group_version = format!("{}/{}", api.group(), api.version());
        match client.list_api_group_resources(&group_version).await {
            Ok(list) => {
                let plurals = list.resources.into_iter().map(|r| r.name).collect();
                match judge(api, &plurals) {
                    Ok(served) => return Ok(served),
                    Err(missing) => reasons.push(format!("{group_version} lacks {}", missing.join(", "))),
                }
            }
            Err(kube::Error::Api(status)) if status.code == 404 => {
                reasons.push(format!("{group_version} is not served"));
            }
            Err(error) => return Err(Unserved::Unknown(group_version, with_causes(&error))),
        }
    }
    Err(Unserved::Missing(reasons.join("; ")))
}

fn judge(api: CalicoApi, plurals: &BTreeSet<String>) -> Result<Served, Vec<&'static str>> {
    let needed = [
        IpPoolSpec::plural(api),
        BgpPeerSpec::plural(api),
        BgpFilterSpec::plural(api),
        BlockAffinitySpec::plural(api),
        BgpConfigurationSpec::plural(api),
    ];
    let missing: Vec<_> = needed.into_iter().filter(|plural| !plurals.contains(*plural)).collect();
    if missing.is_empty() {
        Ok(Served { api, ipam_config: plurals.contains(IpamConfigSpec::plural(api)) })
    } else {
        Err(missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_counts_when_it_serves_all_that_is_needed() {
        let all = ["ippools", "bgppeers", "bgpfilters", "blockaffinities", "bgpconfigurations"];
        let plurals: BTreeSet<String> = all.iter().map(ToString::to_string).collect();
        assert_eq!(judge(CalicoApi::V3, &plurals), Ok(Served { api: CalicoApi::V3, ipam_config: false }));
        let mut with_ipam = plurals.clone();
        with_ipam.insert("ipamconfigs".into());
        assert!(judge(CalicoApi::CrdV1, &with_ipam).unwrap().ipam_config);
        assert!(!judge(CalicoApi::V3, &with_ipam).unwrap().ipam_config, "v3 names that resource otherwise");
        let mut without = plurals;
        without.remove("bgpfilters");
        assert_eq!(judge(CalicoApi::V3, &without), Err(vec!["bgpfilters"]));
    }
}
