//! Which group serves Calico's kinds. Reads discovery, and of a few definitions whether they are there.
//!
//! `projectcalico.org/v3` comes in two forms: from Calico's own API server, which keeps everything in
//! `crd.projectcalico.org/v1`; or from definitions of its own, with a storage of its own. In the second form Calico
//! reads it only where `crd.projectcalico.org` is not served any more (libcalico-go, `UsingV3CRDs`), and so do we:
//! until then it may hold a copy in the making, or nothing.

use std::{collections::BTreeSet, time::Duration};

use calico_vni_crds::calico::{
    BgpConfigurationSpec, BgpFilterSpec, BgpPeerSpec, BlockAffinitySpec, CalicoApi, CalicoSpec,
    FelixConfigurationSpec, IpPoolSpec, IpamConfigSpec,
};
use k8s_openapi::{Resource, api::networking::v1::ServiceCIDR};
use kube::{
    Api, Client,
    core::{ApiResource, DynamicObject, GroupVersionKind},
};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::with_causes;

/// How often discovery is asked while Calico is not there.
const POLL: Duration = Duration::from_secs(2);
/// How often that is told.
const TELL: Duration = Duration::from_secs(30);
/// How often it is asked whether another group is to be used.
const AGAIN: Duration = Duration::from_secs(5);

/// What the cluster serves of Calico.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    /// Group and version.
    pub api: CalicoApi,
    /// Whether the settings of its IPAM are served too; older releases do not have them in every group.
    pub ipam_config: bool,
    /// Whether the settings of Felix are served.
    pub felix_configuration: bool,
    /// Whether Kubernetes' own prefixes of Services are served; older releases do not have that kind.
    pub service_cidr: bool,
    /// Whether it may soon be served in another way.
    pub outlook: Outlook,
}

/// How long a group is there to stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outlook {
    /// Nothing is about to change.
    Stays,
    /// Both groups are served, each by definitions of its own: Calico is about to move from the one to the other.
    Moves,
}

/// Waits until the cluster serves Calico's kinds.
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

/// Waits until the cluster serves Calico's kinds in another way than `current`, and goes on to do so.
pub async fn wait_for_other(client: &Client, current: Served) -> Served {
    let mut last = current;
    loop {
        tokio::time::sleep(AGAIN).await;
        match look(client).await {
            // Definitions come one by one: what is seen once may be half of it.
            Ok(served) if served != current && served == last => return served,
            Ok(served) => last = served,
            // Nothing usable, or it is not known: what is used stays in use. Who watches tells.
            Err(_) => last = current,
        }
    }
}

/// Whether `served` is what Calico goes by at this moment, as far as can be told.
///
/// A group's end takes its objects along, one by one, which looks as if users had deleted them. So where the end may
/// be near this is asked after each observation and before it is planned upon.
pub async fn still(client: &Client, served: Served) -> bool {
    served.outlook == Outlook::Stays || look(client).await.is_ok_and(|now| now == served)
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

/// What is to be used now.
async fn look(client: &Client) -> Result<Served, Unserved> {
    let networking = plurals(client, "networking.k8s.io/v1").await?;
    let service_cidr = networking.is_some_and(|plurals| plurals.contains(ServiceCIDR::URL_PATH_SEGMENT));
    Ok(Served { service_cidr, ..look_for_calico(client).await? })
}

async fn look_for_calico(client: &Client) -> Result<Served, Unserved> {
    let [v3, v1] =
        [plurals(client, &of(CalicoApi::V3)).await?, plurals(client, &of(CalicoApi::CrdV1)).await?];
    if let (Ok(found), Ok(_)) = (judge(CalicoApi::V3, v3.as_ref()), judge(CalicoApi::CrdV1, v1.as_ref())) {
        if !is_defined(client, CalicoApi::V3, IpPoolSpec::plural(CalicoApi::V3)).await? {
            return Ok(found);
        }
        // Both stand by themselves. The old one's definitions are deleted one by one, and the objects of each vanish
        // with it: the first that goes is the end of all.
        for plural in needed(CalicoApi::CrdV1) {
            if !is_defined(client, CalicoApi::CrdV1, plural).await? {
                return Ok(found);
            }
        }
        return judge(CalicoApi::CrdV1, v1.as_ref())
            .map(|served| Served { outlook: Outlook::Moves, ..served })
            .map_err(Unserved::Missing);
    }
    judge(CalicoApi::V3, v3.as_ref())
        .or_else(|v3| judge(CalicoApi::CrdV1, v1.as_ref()).map_err(|v1| format!("{v3}; {v1}")))
        .map_err(Unserved::Missing)
}

/// The names of a group's resources; `None` where it is not served.
async fn plurals(client: &Client, group_version: &str) -> Result<Option<BTreeSet<String>>, Unserved> {
    match client.list_api_group_resources(group_version).await {
        Ok(list) => Ok(Some(list.resources.into_iter().map(|r| r.name).collect())),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(Unserved::Unknown(group_version.to_owned(), with_causes(&error))),
    }
}

/// Group and version of Calico's kinds.
fn of(api: CalicoApi) -> String {
    format!("{}/{}", api.group(), api.version())
}

/// Whether a resource of the group is served by a CustomResourceDefinition that is there to stay.
async fn is_defined(client: &Client, api: CalicoApi, plural: &str) -> Result<bool, Unserved> {
    let name = format!("{plural}.{}", api.group());
    let kind = GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
    let definitions: Api<DynamicObject> = Api::all_with(client.clone(), &ApiResource::from_gvk(&kind));
    match definitions.get_metadata_opt(&name).await {
        Ok(found) => Ok(found.is_some_and(|found| found.metadata.deletion_timestamp.is_none())),
        Err(error) => Err(Unserved::Unknown(format!("CustomResourceDefinition {name}"), with_causes(&error))),
    }
}

/// The resources without which nothing can be planned.
fn needed(api: CalicoApi) -> [&'static str; 5] {
    [
        IpPoolSpec::plural(api),
        BgpPeerSpec::plural(api),
        BgpFilterSpec::plural(api),
        BlockAffinitySpec::plural(api),
        BgpConfigurationSpec::plural(api),
    ]
}

/// What a group serves, or what it lacks of what is needed.
fn judge(api: CalicoApi, plurals: Option<&BTreeSet<String>>) -> Result<Served, String> {
    let group_version = of(api);
    let Some(plurals) = plurals else { return Err(format!("{group_version} is not served")) };
    let missing: Vec<_> = needed(api).into_iter().filter(|plural| !plurals.contains(*plural)).collect();
    if !missing.is_empty() {
        return Err(format!("{group_version} lacks {}", missing.join(", ")));
    }
    Ok(Served {
        api,
        ipam_config: plurals.contains(IpamConfigSpec::plural(api)),
        felix_configuration: plurals.contains(FelixConfigurationSpec::plural(api)),
        service_cidr: false,
        outlook: Outlook::Stays,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_counts_when_it_serves_all_that_is_needed() {
        let all = ["ippools", "bgppeers", "bgpfilters", "blockaffinities", "bgpconfigurations"];
        let plurals: BTreeSet<String> = all.iter().map(ToString::to_string).collect();
        let bare = Served {
            api: CalicoApi::V3,
            ipam_config: false,
            felix_configuration: false,
            service_cidr: false,
            outlook: Outlook::Stays,
        };
        assert_eq!(judge(CalicoApi::V3, Some(&plurals)), Ok(bare));
        let mut more = plurals.clone();
        more.extend(["ipamconfigs", "felixconfigurations"].map(str::to_owned));
        let served = judge(CalicoApi::CrdV1, Some(&more)).unwrap();
        assert!(served.ipam_config && served.felix_configuration);
        let named_otherwise = judge(CalicoApi::V3, Some(&more)).unwrap();
        assert!(!named_otherwise.ipam_config, "v3 names that resource otherwise");
        let mut without = plurals;
        without.remove("bgpfilters");
        assert_eq!(judge(CalicoApi::V3, Some(&without)), Err("projectcalico.org/v3 lacks bgpfilters".into()));
        assert_eq!(judge(CalicoApi::CrdV1, None), Err("crd.projectcalico.org/v1 is not served".into()));
    }
}
