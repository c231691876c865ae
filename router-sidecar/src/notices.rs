//! What an operator has to be told of a node, and what its guard has dropped. Reads links, routes and counters; changes
//! nothing.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use calico_vni_proto::{
    model::{NodeConfig, Tenant},
    names, wire,
};
use ipnet::IpNet;
use tracing::debug;

use crate::{
    desired::{GuardWanted, desired},
    guard::{COUNTER_QUARANTINED, Ruleset, counter_of, nft},
    last_good::{LastGood, Told},
    netlink::{Client, NetlinkError, observe},
    netns::Netns,
    report::Report,
    rules::Steering,
};

/// Looks at the host's namespace.
#[derive(Debug)]
pub struct Watch {
    host: Client,
    last_good: LastGood,
}

/// What was seen there.
#[derive(Clone, Debug, Default)]
struct Seen {
    /// MTU of each device, by name.
    links: BTreeMap<String, u32>,
    /// Host routes to pods, with the device.
    pods: Vec<(IpNet, String)>,
    /// Why IPv6 is not there, if it is not.
    ipv6_off: Option<&'static str>,
}

impl Watch {
    /// For this namespace.
    pub fn open(host: Arc<Netns>, last_good: LastGood) -> Result<Self, NetlinkError> {
        Ok(Self { host: Client::connect(host)?, last_good })
    }

    /// All there is to tell, in order.
    pub async fn notices(&self, told: &Told, report: &Report) -> Vec<wire::Notice> {
        let mut notices = Vec::new();
        if let Some(config) = &told.config {
            match self.look(&config.value).await {
                Ok(seen) => notices.extend(of_node(&config.value, &seen)),
                Err(error) => debug!(%error, "the node's links were not read"),
            }
            if let Some(guard) = &told.guard {
                let wanted = desired(&config.value, Some(&guard.value), &BTreeMap::new());
                if let GuardWanted::Is(ruleset) = &wanted.guard {
                    notices.extend(of_services(ruleset));
                }
                notices.extend(of_doors(&config.value, &wanted.steering));
            }
        }
        notices.extend(of_report(report));
        notices.extend(of_files(&self.last_good));
        notices
    }

    /// What the guard has dropped for each tenant, and for quarantined pools. Nothing where nothing was.
    pub async fn drops(&self, told: &Told) -> Vec<wire::Drops> {
        let (Some(guard), Some(config)) = (&told.guard, &told.config) else { return vec![] };
        let counters = match nft::counters(self.host.netns()).await {
            Ok(counters) => counters,
            Err(error) => {
                debug!(%error, "the guard's counters were not read");
                return vec![];
            }
        };
        let of = |name: &str, tenant: &str, vni| {
            let (packets, bytes) = *counters.get(name)?;
            (packets > 0).then(|| wire::Drops { tenant: tenant.to_owned(), vni, packets, bytes })
        };
        let mut tenants: BTreeMap<u32, &str> =
            guard.value.tenants.iter().map(|tenant| (tenant.vni, tenant.name.as_str())).collect();
        tenants.extend(config.value.tenants.iter().map(|tenant| (tenant.vni, tenant.name.as_str())));
        let of_tenants = tenants.iter().filter_map(|(vni, name)| of(&counter_of(name, *vni), name, *vni));
        of_tenants.chain(of(COUNTER_QUARANTINED, "", 0)).collect()
    }

    async fn look(&self, config: &NodeConfig) -> Result<Seen, NetlinkError> {
        let links = observe::mtus(&self.host).await?;
        let tight = config.tenants.iter().filter_map(|tenant| tenant_mtu(tenant, &links)).min();
        // Whose pods they are is asked only where some pod has more than some tenant can carry.
        let wide = links.iter().any(|(name, mtu)| is_pods(name) && tight.is_some_and(|tight| *mtu > tight));
        let pods = if wide { observe::pods(&self.host).await? } else { vec![] };
        let ipv6_off = self.host.netns().run(ipv6_off)?;
        Ok(Seen { links, pods, ipv6_off })
    }
}

fn notice(tenant: &str, reason: &str, message: String) -> wire::Notice {
    wire::Notice { tenant: tenant.to_owned(), reason: reason.to_owned(), message }
}

/// Calico's prefix of the interfaces of pods.
fn is_pods(name: &str) -> bool {
    name.starts_with("cali")
}

/// What the tenant's link carries.
fn tenant_mtu(tenant: &Tenant, links: &BTreeMap<String, u32>) -> Option<u32> {
    links.get(&names::host_link(tenant.vni)).copied()
}

fn ipv6_off() -> Option<&'static str> {
    let off = Path::new("/proc/sys/net/ipv6/conf/all/disable_ipv6");
    match std::fs::read_to_string(off) {
        Err(_) => Some("the kernel was started without IPv6 (ipv6.disable=1)"),
        Ok(value) if value.trim() == "1" => Some("net.ipv6.conf.all.disable_ipv6 is 1"),
        Ok(_) => None,
    }
}

fn of_node(config: &NodeConfig, seen: &Seen) -> Vec<wire::Notice> {
    let mut notices = Vec::new();
    if seen.links.contains_key("kube-ipvs0") {
        let message = "device kube-ipvs0: kube-proxy runs in IPVS mode, which is not proven with tenants; set \
                       mode: nftables (or iptables) in its configuration and restart the node";
        notices.push(notice("", "IPVS", message.into()));
    }
    for tenant in &config.tenants {
        if let Some(why) = seen.ipv6_off.filter(|_| tenant.has_v6()) {
            let message = format!("it has IPv6 pools, but {why}; switch IPv6 on, or take the pools away");
            notices.push(notice(&tenant.name, "IPv6Disabled", message));
        }
        let Some(carries) = tenant_mtu(tenant, &seen.links) else { continue };
        let own = |to: &IpNet| tenant.pools.iter().any(|pool| pool.cidr.contains(to));
        let widest =
            seen.pods.iter().filter(|(to, _)| own(to)).filter_map(|(_, dev)| seen.links.get(dev)).max();
        if let Some(widest) = widest.filter(|widest| **widest > carries) {
            let more = widest - carries;
            let message = format!(
                "pods have an MTU of {widest}, the tenant carries {carries}: lower Calico's mtu to {carries} and \
                 restart the pods, or raise the MTU of the fabric by {more}"
            );
            notices.push(notice(&tenant.name, "PodMtu", message));
        }
    }
    notices
}

fn of_services(ruleset: &Ruleset) -> Vec<wire::Notice> {
    let message = |service: &str, address| {
        format!(
            "service {service}: endpoint {address} lies in a tenant's or a quarantined pool and is not opened; run the \
             service's pods from another pool"
        )
    };
    let refused = ruleset.refused.iter();
    refused.map(|(service, address)| notice("", "ServiceInsidePool", message(service, *address))).collect()
}

/// Tenants for whose doors there is no room.
fn of_doors(config: &NodeConfig, steering: &Steering) -> Vec<wire::Notice> {
    let message = "this node's policy rules have no room left to keep strangers from the tenant's pods, should somebody take \
                   the guard away; until then the guard keeps them. Share fewer prefixes and Services with tenants, or keep \
                   tenants off this node by `placement` or `nodeSelector`";
    let shut = |tenant: &&Tenant| steering.doors.contains_key(&names::table(tenant.vni));
    let open = config.tenants.iter().filter(|tenant| !shut(tenant));
    open.map(|tenant| notice(&tenant.name, "GuardAlone", message.into())).collect()
}

/// Sessions that FRR holds down since more came over them than `maxPrefixes` allows.
pub fn of_sessions(config: &NodeConfig, sessions: &[wire::Session]) -> Vec<wire::Notice> {
    let of = |session: &wire::Session| {
        let closed = session.state.contains("PfxCt");
        let tenant = config.tenants.iter().find(|tenant| closed && tenant.name == session.tenant)?;
        let message = format!(
            "BIRD announced more than {} prefixes, so its session with {} was closed and the tenant's routes of this node \
             are gone: raise the Tenant's spec.maxPrefixes, or find what announces them; FRR tries again every minute",
            tenant.max_prefixes, session.peer
        );
        Some(notice(&tenant.name, "MaxPrefixes", message))
    };
    sessions.iter().filter_map(of).collect()
}

/// A kernel without VRF devices refuses to make one.
fn of_report(report: &Report) -> Option<wire::Notice> {
    let refused = |error: &String| error.contains("type vrf") && error.contains("not supported");
    report.tenants.iter().filter_map(|tenant| tenant.error.as_ref()).any(refused).then(|| {
        let message = "this kernel makes no VRF device: load or install its module `vrf` (CONFIG_NET_VRF), on many \
                       distributions in the package linux-modules-extra";
        notice("", "KernelWithoutVRF", message.into())
    })
}

fn of_files(last_good: &LastGood) -> Vec<wire::Notice> {
    let damaged = last_good.damaged().into_iter().map(|name| {
        let message = format!(
            "{name}: what was kept of the last configuration was damaged and was set aside; check the disk, then delete \
             the file"
        );
        notice("", "LastGoodDamaged", message)
    });
    let unkept = last_good.trouble().map(|error| {
        let message = format!(
            "the configuration is in force and cannot be kept for the next start ({error}): make room for it, or make \
             the state directory writable"
        );
        notice("", "LastGoodNotKept", message)
    });
    damaged.chain(unkept).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        report::TenantReport,
        testing::{config, tenant},
    };

    fn reasons(notices: &[wire::Notice]) -> Vec<(&str, &str)> {
        notices.iter().map(|notice| (notice.tenant.as_str(), notice.reason.as_str())).collect()
    }

    #[test]
    fn pods_that_are_too_wide_are_told_for_their_tenant_alone() {
        let config = config(vec![
            tenant("red", 1001, &["10.200.0.0/16", "fd00:200::/64"]),
            tenant("blue", 1002, &["10.201.0.0/16"]),
        ]);
        let links = [("cv1001", 1450), ("cv1002", 1450), ("cali1", 1500), ("cali2", 1450), ("eth0", 1500)];
        let mut seen = Seen {
            links: links.map(|(name, mtu)| (name.to_owned(), mtu)).into(),
            pods: [("10.200.0.5/32", "cali1"), ("10.201.0.5/32", "cali2"), ("10.244.0.5/32", "cali1")]
                .map(|(to, dev)| (to.parse().unwrap(), dev.to_owned()))
                .into(),
            ipv6_off: None,
        };
        let notices = of_node(&config, &seen);
        assert_eq!(reasons(&notices), [("red", "PodMtu")]);
        assert!(notices[0].message.contains("1450") && notices[0].message.contains("by 50"));
        seen.links.insert("kube-ipvs0".into(), 1500);
        seen.links.insert("cali1".into(), 1450);
        seen.ipv6_off = Some("it is off");
        assert_eq!(reasons(&of_node(&config, &seen)), [("", "IPVS"), ("red", "IPv6Disabled")]);
    }

    #[test]
    fn a_tenant_without_doors_is_told() {
        let mut blue = tenant("blue", 1002, &["10.201.0.0/16"]);
        blue.shared = (0..20u32)
            .flat_map(|n| (0..250).map(move |m| format!("192.0.{n}.{m}/32").parse().unwrap()))
            .collect();
        let config = config(vec![
            tenant("red", 1001, &["10.200.0.0/16"]),
            blue,
            tenant("green", 1003, &["10.202.0.0/16"]),
        ]);
        let steering = desired(&config, None, &BTreeMap::new()).steering;
        assert_eq!(reasons(&of_doors(&config, &steering)), [("blue", "GuardAlone")]);
    }

    #[test]
    fn a_session_with_too_many_prefixes_is_told_for_its_tenant() {
        let config = config(vec![tenant("red", 1001, &["10.200.0.0/16"])]);
        let session = |tenant: &str, state: &str| wire::Session {
            tenant: tenant.into(),
            peer: "169.254.192.2".into(),
            state: state.into(),
            ..Default::default()
        };
        let told = |sessions: &[wire::Session]| of_sessions(&config, sessions);
        assert_eq!(told(&[session("red", "Active"), session("", "Idle (PfxCt)")]), []);
        let notices = told(&[session("red", "Idle (PfxCt)")]);
        assert_eq!(reasons(&notices), [("red", "MaxPrefixes")]);
        let most = config.tenants[0].max_prefixes.to_string();
        assert!(notices[0].message.contains(&most) && notices[0].message.contains("spec.maxPrefixes"));
    }

    #[test]
    fn a_kernel_without_vrf_is_told_by_what_it_says() {
        let report = |error: &str| Report {
            tenants: vec![TenantReport { name: "red".into(), vni: 1001, error: Some(error.into()) }],
            ..Report::default()
        };
        let refused =
            "router: link add vrf1001 type vrf table 1000001001: Operation not supported (os error 95)";
        assert_eq!(of_report(&report(refused)).unwrap().reason, "KernelWithoutVRF");
        assert_eq!(of_report(&report("router: link add vrf1001 type vrf: File exists")), None);
    }

    #[test]
    fn trouble_with_the_files_is_told_until_it_is_over() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("guard.last-good"), "?").unwrap();
        let last_good = LastGood::new(dir.path());
        last_good.load("n1");
        assert_eq!(reasons(&of_files(&last_good)), [("", "LastGoodDamaged")]);
        last_good.forget().unwrap();
        let held = crate::last_good::Held {
            digest: calico_vni_proto::codec::Digest::of(b""),
            value: calico_vni_proto::model::Guard::default(),
        };
        let full = dir.path().join("guard.last-good.new");
        std::fs::create_dir(&full).unwrap();
        last_good.keep_guard(&held).unwrap_err();
        assert_eq!(reasons(&of_files(&last_good.clone())), [("", "LastGoodNotKept")]);
        std::fs::remove_dir(&full).unwrap();
        last_good.keep_guard(&held).unwrap();
        assert!(of_files(&last_good).is_empty());
    }
}
