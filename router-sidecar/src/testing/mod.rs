//! Small configurations for the unit tests of this crate, and a node in memory.

pub mod fake;

use calico_vni_proto::{
    model::{NodeConfig, Pool, Tenant, Underlay},
    names,
};

use crate::state::{Address, Uplink};

/// A tenant whose link index is its VNI less 1000.
pub fn tenant(name: &str, vni: u32, pools: &[&str]) -> Tenant {
    let link_index = vni - 1000;
    Tenant {
        name: name.into(),
        vni,
        link_index,
        host_v4: names::host_v4("169.254.192.0/18".parse().unwrap(), link_index),
        host_v6: names::host_v6("fd00:ffff::/112".parse().unwrap(), link_index),
        pools: pools
            .iter()
            .map(|cidr| {
                let cidr: ipnet::IpNet = cidr.parse().unwrap();
                Pool { cidr, block_size: cidr.max_prefix_len() - 6 }
            })
            .collect(),
        import_rts: vec![],
        export_rts: vec![],
        shared: vec![],
        max_prefixes: 1000,
        advertise_pods: false,
        services: vec![],
    }
}

/// Node `n1` with one uplink, and these tenants.
pub fn config(tenants: Vec<Tenant>) -> NodeConfig {
    NodeConfig {
        node: "n1".into(),
        underlay: Some(Underlay {
            name: "fabric".into(),
            asn: 65001,
            vtep: "10.255.0.7".parse().unwrap(),
            router_id: "10.255.0.7".parse().unwrap(),
            neighbors: vec![],
            interfaces: vec!["eth1".into()],
            mtu: None,
            shared: vec!["10.96.0.1/32".parse().unwrap()],
            graceful_restart: true,
            calico_asn: 64512,
        }),
        tenants,
    }
}

/// An uplink that is up.
pub fn uplink(name: &str, mtu: u32, addresses: &[&str]) -> Uplink {
    let address = |net: &&str| Address { dev: name.into(), net: net.parse().unwrap(), link_scope: false };
    Uplink {
        name: name.into(),
        up: true,
        mtu,
        addresses: addresses.iter().map(address).collect(),
        routes: vec![],
    }
}
