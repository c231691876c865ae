//! The guard as `nft` text. Pure.
//!
//! Traffic that is no tenant's costs a look-up by destination, one by source, and a comparison of the first letters of
//! each interface's name. What a chain of a tenant does not `return` is counted for that tenant and dropped.

use std::collections::{BTreeMap, BTreeSet};

use calico_vni_proto::{
    model::{Endpoint, Protocol},
    names,
};
use ipnet::IpNet;

use super::{
    Guarded, Local, Ruleset,
    text::{Counts, Text},
};

/// Counter of what is dropped from and to quarantined prefixes.
pub const COUNTER_QUARANTINED: &str = "quarantined";

/// Counter of what comes from or goes to a link that is no tenant's of this node: one that is on its way out.
pub const COUNTER_NO_TENANT: &str = "no-tenant";

/// Letters of a tenant's name in the name of its counter: with what stands around it, it has to fit into the 255
/// octets that an object's name may have (`NFT_OBJ_MAXNAMELEN`).
const NAME_LETTERS: usize = 230;

/// What `ct` says of packets that answer a connection which the node itself opened.
const REPLIES: &str = "ct direction reply ct state established,related return";

/// What holds of a packet of a tenant's pod that comes in by another interface than its own: the way back to its source
/// leads elsewhere. Calico checks the same; the guard does not rely on it.
const SPOOFED: &str = "fib saddr . iif oif 0";

/// What holds of a packet that comes from another node for a pod of this one.
const BETWEEN_NODES: &str = "iifname != \"cali*\" iifname != \"cv*\" oifname \"cali*\"";

/// Name of the counter of what is dropped for a tenant.
pub fn counter_of(name: &str, vni: u32) -> String {
    let name: String = name.chars().take(NAME_LETTERS).collect();
    format!("tenant-{name}-{vni}")
}

/// The text that replaces the whole table in one transaction. `digest` is kept inside the table; `counts` are what
/// the counters start with, so that a reload does not set them back to zero.
pub fn render(ruleset: &Ruleset, digest: &str, counts: &BTreeMap<String, Counts>) -> String {
    let mut text = Text::replacing_table();
    let of_tenants = ruleset.tenants.iter().map(|(vni, tenant)| counter_of(&tenant.name, *vni));
    text.counters(of_tenants.chain([COUNTER_QUARANTINED, COUNTER_NO_TENANT].map(str::to_owned)), counts);
    for v6 in [false, true] {
        maps(&mut text, ruleset, v6);
    }
    let local: Vec<u32> = ruleset.local().map(|(vni, _, _)| vni).collect();
    for way in ["in", "out", "node"] {
        let element = |vni: &u32| format!("\"{}\" : goto {way}-link-{vni}", names::host_link(*vni));
        let elements: Vec<String> = local.iter().map(element).collect();
        text.elements(&format!("map {way}-links"), "ifname : verdict", "", &elements);
    }
    open_sets(&mut text, "", &ruleset.shared, &ruleset.services);
    for (vni, tenant, here) in ruleset.local() {
        for v6 in [false, true] {
            let pools: Vec<String> = of_family(&tenant.pools, v6).map(ToString::to_string).collect();
            text.elements(&format!("set pools{}-{vni}", digit(v6)), address_type(v6), "interval", &pools);
        }
        open_sets(&mut text, &format!("-{vni}"), &here.shared, &here.services);
        chains(&mut text, vni, tenant, here);
    }
    common_chains(&mut text);
    text.chain("digest", &[format!("return comment \"{digest}\"")]);
    text.finish()
}

fn maps(text: &mut Text, ruleset: &Ruleset, v6: bool) {
    let (digit, address) = (digit(v6), address_type(v6));
    for direction in ["to", "from"] {
        let mut elements = Vec::new();
        for (vni, tenant) in &ruleset.tenants {
            let verdict = if tenant.local.is_some() {
                format!("{direction}-{vni}")
            } else {
                format!("absent-{direction}")
            };
            elements.extend(of_family(&tenant.pools, v6).map(|net| format!("{net} : jump {verdict}")));
        }
        elements.extend(of_family(&ruleset.quarantined, v6).map(|net| format!("{net} : jump quarantined")));
        let head = format!("map {direction}{digit}");
        text.elements(&head, &format!("{address} : verdict"), "interval", &elements);
    }
    let (mut guarded, mut counters) = (Vec::new(), Vec::new());
    let mut count = |nets: &[IpNet], counter: &str| {
        for net in of_family(nets, v6) {
            guarded.push(net.to_string());
            counters.push(format!("{net} : \"{counter}\""));
        }
    };
    for (vni, tenant) in &ruleset.tenants {
        count(&tenant.pools, &counter_of(&tenant.name, *vni));
    }
    count(&ruleset.quarantined, COUNTER_QUARANTINED);
    text.elements(&format!("map count{digit}"), &format!("{address} : counter"), "interval", &counters);
    text.elements(&format!("set guarded{digit}"), address, "interval", &guarded);
}

/// What may be reached outside the VRF: by prefix, and by address, protocol and port.
fn open_sets(text: &mut Text, suffix: &str, shared: &[IpNet], services: &BTreeSet<Endpoint>) {
    for v6 in [false, true] {
        let (digit, address) = (digit(v6), address_type(v6));
        let nets: Vec<String> = of_family(shared, v6).map(ToString::to_string).collect();
        text.elements(&format!("set shared{digit}{suffix}"), address, "interval", &nets);
        let endpoints: Vec<String> =
            services.iter().filter(|endpoint| endpoint.address.is_ipv6() == v6).map(element).collect();
        let of_type = format!("{address} . inet_proto . inet_service");
        text.elements(&format!("set services{digit}{suffix}"), &of_type, "", &endpoints);
    }
}

fn element(endpoint: &Endpoint) -> String {
    let protocol = match endpoint.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    };
    format!("{} . {protocol} . {}", endpoint.address, endpoint.port)
}

/// Lets through what [`open_sets`] of the same suffix holds.
fn opens(suffix: &str, verdict: &str) -> [String; 4] {
    [
        format!("ip daddr @shared4{suffix} {verdict}"),
        format!("ip6 daddr @shared6{suffix} {verdict}"),
        format!("ip daddr . meta l4proto . th dport @services4{suffix} {verdict}"),
        format!("ip6 daddr . meta l4proto . th dport @services6{suffix} {verdict}"),
    ]
}

/// Lets answers of what [`open_sets`] of the same suffix holds through, and what ICMP has to say of the question. Who
/// answers has to be open now: a connection may be older than the tenant's pool, or than what is shared.
fn answers(condition: &str, suffix: &str) -> [String; 5] {
    let answer = format!("{condition}ct direction reply ct state established");
    [
        format!("{answer},related ip saddr @shared4{suffix} return"),
        format!("{answer},related ip6 saddr @shared6{suffix} return"),
        format!("{answer} ip saddr . meta l4proto . th sport @services4{suffix} return"),
        format!("{answer} ip6 saddr . meta l4proto . th sport @services6{suffix} return"),
        format!("{condition}ct direction reply ct state related meta l4proto {{ icmp, icmpv6 }} return"),
    ]
}

/// The chains of a tenant on this node.
fn chains(text: &mut Text, vni: u32, tenant: &Guarded, here: &Local) {
    let link = names::host_link(vni);
    let count = format!("counter name \"{}\" drop", counter_of(&tenant.name, vni));
    let chain = |text: &mut Text, name: &str, lines: &[String]| {
        text.chain(&format!("{name}-{vni}"), &[lines, std::slice::from_ref(&count)].concat());
    };
    let pools = |condition: &str, field: &str| {
        [4, 6].map(|v| {
            let ip = if v == 4 { "ip" } else { "ip6" };
            format!("{condition}{ip} {field} @pools{v}-{vni} return")
        })
    };
    let from_pod = pools("iifname \"cali*\" ", "saddr");
    let to_pod = pools("oifname \"cali*\" ", "daddr");
    let by_link = |way: &str| format!("{way}ifname \"{link}\" return");

    // What this node shares answers pods elsewhere too.
    let answered = [answers("", &format!("-{vni}")), answers("oifname != \"cali*\" ", "")];
    chain(text, "to", &[&[by_link("i")], from_pod.as_slice(), answered.as_flattened()].concat());
    // From the link, from a pod here, or from a pod elsewhere that asks what this node shares.
    let shared = [4, 6].map(|v| {
        let ip = if v == 4 { "ip" } else { "ip6" };
        format!("{BETWEEN_NODES} {ip} daddr @shared{v}-{vni} return")
    });
    let ask = [format!("iifname \"cali*\" goto pod-{vni}"), format!("{BETWEEN_NODES} jump asked")];
    chain(text, "from", &[&[by_link("i")], ask.as_slice(), shared.as_slice()].concat());
    let spoofed = format!("{SPOOFED} {count}");
    // Another tenant's link is no way to what is shared.
    let links = format!("oifname \"cv*\" {count}");
    let open = opens(&format!("-{vni}"), "return");
    let pod = [&[spoofed, by_link("o")], to_pod.as_slice(), &[links], open.as_slice()];
    chain(text, "pod", &pod.concat());
    // What comes out of the VRF is for the tenant's pods here or for nobody: the node is no way into the flat network.
    chain(text, "in-link", &to_pod);
    // What goes into the VRF comes from the tenant's pods: nobody else speaks to the router's end of the link.
    chain(text, "out-link", &pools("", "saddr"));
    // The node itself speaks BGP with the router's end of the link, and hears from it what ICMP has to say.
    let (v4, v6) = (here.router_v4, here.router_v6);
    let router = [
        REPLIES.to_owned(),
        format!("ip saddr {v4} tcp dport 179 return"),
        format!("ip6 saddr {v6} tcp dport 179 return"),
        format!("ip saddr {v4} meta l4proto icmp return"),
        format!("ip6 saddr {{ {v6}, fe80::/10, :: }} meta l4proto icmpv6 return"),
    ];
    chain(text, "node-link", &router);
}

/// The chains that all tenants share, and those that packets come in by.
fn common_chains(text: &mut Text) {
    text.chain("asked", &opens("", "accept"));
    let refused = |field: &str| {
        [4, 6].map(|v| format!("counter name {} {field} map @count{v}", if v == 4 { "ip" } else { "ip6" }))
    };
    let drop = ["drop".to_owned()];
    text.chain("absent-to", &[&answers("", "")[..], &refused("daddr"), &drop].concat());
    text.chain("absent-from", &[format!("{BETWEEN_NODES} jump asked"), "goto refused".into()]);
    text.chain("refused", &[&refused("saddr")[..], &drop].concat());
    text.chain("quarantined", &[format!("counter name \"{COUNTER_QUARANTINED}\" drop")]);
    for (way, field) in [("in", "iifname"), ("out", "oifname"), ("node", "iifname")] {
        let mut lines = vec![format!("{field} vmap @{way}-links")];
        // A link that no tenant of this node has any more. A device of somebody else's has no digit there.
        lines.extend((1..=9).map(|first| {
            let link = names::host_link(first);
            format!("{field} \"{link}*\" counter name \"{COUNTER_NO_TENANT}\" drop")
        }));
        text.chain(&format!("{way}-link"), &lines);
    }
    text.chain(
        "forward",
        &[
            "type filter hook forward priority filter - 10; policy accept;",
            "iifname \"cv*\" jump in-link",
            "oifname \"cv*\" jump out-link",
            "ip daddr vmap @to4",
            "ip6 daddr vmap @to6",
            "ip saddr vmap @from4",
            "ip6 saddr vmap @from6",
        ],
    );
    text.chain(
        "to-node",
        &[
            &format!("iifname \"cali*\" {SPOOFED} goto refused"),
            "iifname \"cali*\" return",
            REPLIES,
            "jump asked",
            "goto refused",
        ],
    );
    text.chain(
        "input",
        &[
            "type filter hook input priority filter - 10; policy accept;",
            "iifname \"cv*\" goto node-link",
            "ip saddr @guarded4 goto to-node",
            "ip6 saddr @guarded6 goto to-node",
        ],
    );
}

fn of_family(nets: &[IpNet], v6: bool) -> impl Iterator<Item = &IpNet> {
    nets.iter().filter(move |net| matches!(net, IpNet::V6(_)) == v6)
}

const fn digit(v6: bool) -> char {
    if v6 { '6' } else { '4' }
}

const fn address_type(v6: bool) -> &'static str {
    if v6 { "ipv6_addr" } else { "ipv4_addr" }
}

#[cfg(test)]
mod tests {
    use calico_vni_proto::model::{Guard, GuardTenant, SharedService};

    use super::*;
    use crate::testing::{config, tenant};

    fn ruleset() -> Ruleset {
        let guard = Guard {
            tenants: vec![
                GuardTenant {
                    name: "red".into(),
                    vni: 1001,
                    pools: vec!["10.200.0.0/16".parse().unwrap(), "fd00:200::/64".parse().unwrap()],
                },
                GuardTenant { name: "blue".into(), vni: 1002, pools: vec!["10.201.0.0/16".parse().unwrap()] },
            ],
            quarantined: vec!["10.9.0.0/16".parse().unwrap()],
            services: vec![SharedService {
                name: "kube-system/dns".into(),
                endpoints: vec![Endpoint {
                    address: "10.244.0.5".parse().unwrap(),
                    protocol: Protocol::Udp,
                    port: 53,
                }],
            }],
        };
        let mut red = tenant("red", 1001, &["10.200.0.0/16", "fd00:200::/64"]);
        red.services = vec!["kube-system/dns".into()];
        Ruleset::new(&guard, &config(vec![red]))
    }

    /// Written anew with `UPDATE_GOLDEN=1 cargo test`.
    #[test]
    fn golden() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/guard.nft");
        let counts = BTreeMap::from([("tenant-red-1001".to_owned(), (5, 420))]);
        let text = render(&ruleset(), "0123abcd", &counts);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(path, &text).unwrap();
        }
        similar_asserts::assert_eq!(std::fs::read_to_string(path).unwrap(), text);
    }

    #[test]
    fn names_of_counters_fit() {
        let name = counter_of(&"x".repeat(253), names::VNI_MAX);
        assert!(name.len() <= 255 && name.ends_with("-16777215"), "{name}");
    }
}
