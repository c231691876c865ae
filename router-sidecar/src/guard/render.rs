//! The guard as a table of `nft`. Pure.
//!
//! The chains are the same for one tenant and for a thousand; whose is what stands in sets, so that replacing the guard
//! costs what its elements cost. Traffic that is no tenant's costs a look-up by destination, one by source, and a
//! comparison of the first letters of each interface's name. What a chain does not `return` is counted for its tenant
//! and dropped.
//!
//! Sets and maps, each once for IPv4 and once for IPv6 where it holds addresses (P, Q: pools of one tenant on this node):
//!
//! ```text
//! to, from    every tenant's pools, and quarantined prefixes: which chain they are led to
//! count       the same: whose counter
//! guarded     the same prefixes alone
//! own         P . Q                        pods of one tenant
//! links       link . P                     what a tenant's link carries
//! asks        P . prefix                   what the tenant reaches outside of its VRF
//! services    P . address . protocol . port
//! open        prefix;  open-services: address . protocol . port: what some tenant reaches, on whichever node it is
//! routers     link . router's end          who speaks BGP with the node
//! here        the tenants' links on this node; count-links: whose counter
//! ```

use std::{collections::BTreeSet, net::IpAddr};

use calico_vni_proto::{
    model::{Endpoint, Protocol},
    names,
};
use ipnet::IpNet;

use super::{Ruleset, text::Table};

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

/// How `nft` names each family's addresses, and the digit of its sets.
const FAMILIES: [(&str, char); 2] = [("ip", '4'), ("ip6", '6')];

/// Name of the counter of what is dropped for a tenant.
pub fn counter_of(name: &str, vni: u32) -> String {
    let name: String = name.chars().take(NAME_LETTERS).collect();
    format!("tenant-{name}-{vni}")
}

/// The table. `digest` is kept inside of it.
pub fn render(ruleset: &Ruleset, digest: &str) -> Table {
    let mut table = Table::default();
    table.counters(ruleset.tenants.iter().map(|(vni, tenant)| counter_of(&tenant.name, *vni)));
    table.counters([COUNTER_QUARANTINED, COUNTER_NO_TENANT].map(str::to_owned));
    for v6 in [false, true] {
        of_all(&mut table, ruleset, v6);
        of_local(&mut table, ruleset, v6);
        open(&mut table, ruleset, v6);
    }
    links(&mut table, ruleset);
    for (name, lines) in chains() {
        table.chain(name, &lines);
    }
    table.chain("digest", &[format!("return comment \"{digest}\"")]);
    table
}

/// By prefix: every tenant's pools, and what is quarantined.
fn of_all(table: &mut Table, ruleset: &Ruleset, v6: bool) {
    let (digit, address) = (digit(v6), address_type(v6));
    let mut owners: Vec<(&IpNet, String)> = Vec::new();
    for (vni, tenant) in &ruleset.tenants {
        owners.extend(of_family(&tenant.pools, v6).map(|net| (net, counter_of(&tenant.name, *vni))));
    }
    let of_tenants = owners.len();
    owners.extend(of_family(&ruleset.quarantined, v6).map(|net| (net, COUNTER_QUARANTINED.to_owned())));
    for direction in ["to", "from"] {
        let verdict = |(number, (net, _)): (usize, &(&IpNet, String))| {
            let chain = if number < of_tenants { direction } else { "quarantined" };
            format!("{net} : jump {chain}")
        };
        let elements: Vec<String> = owners.iter().enumerate().map(verdict).collect();
        table.map(format!("{direction}{digit}"), &format!("{address} : verdict"), "interval", elements);
    }
    let counters: Vec<String> =
        owners.iter().map(|(net, counter)| format!("{net} : \"{counter}\"")).collect();
    table.map(format!("count{digit}"), &format!("{address} : counter"), "interval", counters);
    let guarded: Vec<String> = owners.iter().map(|(net, _)| net.to_string()).collect();
    table.set(format!("guarded{digit}"), address, "interval", guarded);
}

/// What belongs to the tenants on this node, in pairs that begin with the tenant's own.
fn of_local(table: &mut Table, ruleset: &Ruleset, v6: bool) {
    let (digit, address) = (digit(v6), address_type(v6));
    let [mut own, mut links, mut asks, mut services, mut routers] = [const { Vec::new() }; 5];
    for (vni, tenant, here) in ruleset.local() {
        let link = names::host_link(vni);
        let router: IpAddr = if v6 { here.router_v6.into() } else { here.router_v4.into() };
        routers.push(format!("\"{link}\" . {router}"));
        for pool in of_family(&tenant.pools, v6) {
            own.extend(of_family(&tenant.pools, v6).map(|other| format!("{pool} . {other}")));
            links.push(format!("\"{link}\" . {pool}"));
            asks.extend(of_family(&here.shared, v6).map(|net| format!("{pool} . {net}")));
            services.extend(endpoints(&here.services, v6).map(|endpoint| format!("{pool} . {endpoint}")));
        }
    }
    let mut set = |name: &str, of_type: String, flags: &'static str, elements: Vec<String>| {
        table.set(format!("{name}{digit}"), &of_type, flags, elements);
    };
    set("own", format!("{address} . {address}"), "interval", own);
    set("links", format!("ifname . {address}"), "interval", links);
    set("asks", format!("{address} . {address}"), "interval", asks);
    set("services", format!("{address} . {address} . inet_proto . inet_service"), "interval", services);
    set("routers", format!("ifname . {address}"), "", routers);
}

/// What some tenant reaches outside of its VRF.
fn open(table: &mut Table, ruleset: &Ruleset, v6: bool) {
    let (digit, address) = (digit(v6), address_type(v6));
    let nets: Vec<String> = of_family(&ruleset.shared, v6).map(ToString::to_string).collect();
    table.set(format!("open{digit}"), address, "interval", nets);
    let services: Vec<String> = endpoints(&ruleset.services, v6).collect();
    let of_type = format!("{address} . inet_proto . inet_service");
    table.set(format!("open-services{digit}"), &of_type, "", services);
}

fn endpoints(services: &BTreeSet<Endpoint>, v6: bool) -> impl Iterator<Item = String> {
    services.iter().filter(move |endpoint| endpoint.address.is_ipv6() == v6).map(|endpoint| {
        let protocol = match endpoint.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        };
        format!("{} . {protocol} . {}", endpoint.address, endpoint.port)
    })
}

/// The links of the tenants on this node.
fn links(table: &mut Table, ruleset: &Ruleset) {
    let (mut here, mut counters) = (Vec::new(), Vec::new());
    for (vni, tenant, _) in ruleset.local() {
        let link = names::host_link(vni);
        counters.push(format!("\"{link}\" : \"{}\"", counter_of(&tenant.name, vni)));
        here.push(format!("\"{link}\""));
    }
    table.set("here".into(), "ifname", "", here);
    table.map("count-links".into(), "ifname : counter", "", counters);
}

/// The chains, each after those that it leads to.
fn chains() -> Vec<(&'static str, Vec<String>)> {
    vec![
        ("quarantined", vec![format!("counter name \"{COUNTER_QUARANTINED}\" drop")]),
        // Counted for whom the packet comes from, and for whom it is.
        ("refused", counted(|ip, digit| format!("{ip} saddr map @count{digit}"))),
        ("refused-to", counted(|ip, digit| format!("{ip} daddr map @count{digit}"))),
        ("asked", asked()),
        ("pod", pod()),
        ("from", from()),
        ("to", to()),
        ("in-link", in_link()),
        ("out-link", out_link()),
        ("node-tenant", node_tenant()),
        ("node-link", [vec!["iifname @here goto node-tenant".to_owned()], no_tenant("iifname")].concat()),
        ("to-node", to_node()),
        ("prerouting", prerouting()),
        (
            "forward",
            lines([
                "type filter hook forward priority filter - 10; policy accept;",
                "iifname \"cv*\" jump in-link",
                "oifname \"cv*\" jump out-link",
                "ip daddr vmap @to4",
                "ip6 daddr vmap @to6",
                "ip saddr vmap @from4",
                "ip6 saddr vmap @from6",
            ]),
        ),
        (
            "input",
            lines([
                "type filter hook input priority filter - 10; policy accept;",
                "iifname \"cv*\" goto node-link",
                "ip saddr @guarded4 goto to-node",
                "ip6 saddr @guarded6 goto to-node",
            ]),
        ),
    ]
}

/// Tells the policy rules that the guard stands: without the mark they judge by themselves who is let in
/// ([`crate::rules`]), before the packet comes to be counted here. Behind the translation of destinations, since they look
/// at what it makes.
fn prerouting() -> Vec<String> {
    let mark = names::GUARD_MARK;
    let mut lines = vec!["type filter hook prerouting priority dstnat + 10; policy accept;".to_owned()];
    lines.extend(each(|ip, digit| {
        format!("{ip} daddr @guarded{digit} meta mark set meta mark | {mark:#010x}")
    }));
    lines
}

fn lines<const N: usize>(lines: [&str; N]) -> Vec<String> {
    lines.map(str::to_owned).into()
}

/// One line for each family.
fn each(line: impl Fn(&str, char) -> String) -> Vec<String> {
    FAMILIES.map(|(ip, digit)| line(ip, digit)).into()
}

/// Counts and drops; a look-up that finds nothing ends its line, and the packet goes on to the next.
fn counted(counter: impl Fn(&str, char) -> String) -> Vec<String> {
    let mut lines = each(|ip, digit| format!("counter name {} drop", counter(ip, digit)));
    lines.push("drop".to_owned());
    lines
}

/// What some tenant reaches may be asked by its pods on other nodes.
fn asked() -> Vec<String> {
    let prefixes = each(|ip, digit| format!("{ip} daddr @open{digit} accept"));
    let services =
        each(|ip, digit| format!("{ip} daddr . meta l4proto . th dport @open-services{digit} accept"));
    [prefixes, services].concat()
}

/// From a pod of a tenant on this node.
fn pod() -> Vec<String> {
    [
        vec![format!("{SPOOFED} goto refused")],
        each(|ip, digit| format!("oifname . {ip} saddr @links{digit} return")),
        each(|ip, digit| format!("oifname \"cali*\" {ip} saddr . {ip} daddr @own{digit} return")),
        // Another tenant's link is no way to what is shared.
        vec!["oifname \"cv*\" goto refused".to_owned()],
        each(|ip, digit| format!("{ip} saddr . {ip} daddr @asks{digit} return")),
        each(|ip, digit| {
            format!("{ip} saddr . {ip} daddr . meta l4proto . th dport @services{digit} return")
        }),
        vec!["goto refused".to_owned()],
    ]
    .concat()
}

/// From a tenant's pool: from its link, from a pod here, or from a pod elsewhere that asks what this node shares.
fn from() -> Vec<String> {
    [
        each(|ip, digit| format!("iifname . {ip} saddr @links{digit} return")),
        vec!["iifname \"cali*\" goto pod".to_owned(), format!("{BETWEEN_NODES} jump asked")],
        each(|ip, digit| format!("{BETWEEN_NODES} {ip} saddr . {ip} daddr @asks{digit} return")),
        vec!["goto refused".to_owned()],
    ]
    .concat()
}

/// To a tenant's pool: from its link, from its pods here, or the answer of what it reaches outside of its VRF. Who answers
/// has to be open now: a connection may be older than the tenant's pool, or than what is shared.
fn to() -> Vec<String> {
    let answer = "ct direction reply ct state established";
    // What this node shares answers pods elsewhere too.
    let elsewhere = format!("oifname != \"cali*\" {answer}");
    [
        each(|ip, digit| format!("iifname . {ip} daddr @links{digit} return")),
        each(|ip, digit| format!("iifname \"cali*\" {ip} saddr . {ip} daddr @own{digit} return")),
        each(|ip, digit| format!("{answer},related {ip} daddr . {ip} saddr @asks{digit} return")),
        each(|ip, digit| {
            format!("{answer} {ip} daddr . {ip} saddr . meta l4proto . th sport @services{digit} return")
        }),
        each(|ip, digit| format!("{elsewhere},related {ip} saddr @open{digit} return")),
        each(|ip, digit| {
            format!("{elsewhere} {ip} saddr . meta l4proto . th sport @open-services{digit} return")
        }),
        // What ICMP has to say of the question.
        vec!["ct direction reply ct state related meta l4proto { icmp, icmpv6 } return".to_owned()],
        vec!["goto refused-to".to_owned()],
    ]
    .concat()
}

/// What comes out of a VRF is for the tenant's pods here or for nobody: the node is no way into the flat network.
fn in_link() -> Vec<String> {
    [
        each(|ip, digit| format!("oifname \"cali*\" iifname . {ip} daddr @links{digit} return")),
        vec!["counter name iifname map @count-links drop".to_owned()],
        no_tenant("iifname"),
    ]
    .concat()
}

/// What goes into a VRF comes from the tenant's pods: nobody else speaks to the router's end of the link.
fn out_link() -> Vec<String> {
    [
        each(|ip, digit| format!("oifname . {ip} saddr @links{digit} return")),
        vec!["counter name oifname map @count-links drop".to_owned()],
        no_tenant("oifname"),
    ]
    .concat()
}

/// The node itself speaks BGP with the router's end of a tenant's link, and hears from it what ICMP has to say.
fn node_tenant() -> Vec<String> {
    [
        vec![REPLIES.to_owned()],
        each(|ip, digit| format!("iifname . {ip} saddr @routers{digit} tcp dport 179 return")),
        lines([
            "iifname . ip saddr @routers4 meta l4proto icmp return",
            "iifname . ip6 saddr @routers6 meta l4proto icmpv6 return",
            "ip6 saddr { fe80::/10, :: } meta l4proto icmpv6 return",
            "counter name iifname map @count-links drop",
            "drop",
        ]),
    ]
    .concat()
}

/// A link that no tenant of this node has any more. A device of somebody else's has no digit there.
fn no_tenant(field: &str) -> Vec<String> {
    let line = |first| {
        let link = names::host_link(first);
        format!("{field} \"{link}*\" counter name \"{COUNTER_NO_TENANT}\" drop")
    };
    (1..=9).map(line).collect()
}

/// From a tenant's pool to the node itself.
fn to_node() -> Vec<String> {
    vec![
        format!("iifname \"cali*\" {SPOOFED} goto refused"),
        "iifname \"cali*\" return".to_owned(),
        REPLIES.to_owned(),
        "jump asked".to_owned(),
        "goto refused".to_owned(),
    ]
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
    use std::collections::BTreeMap;

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
        let text = render(&ruleset(), "0123abcd").replacing(&counts);
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
