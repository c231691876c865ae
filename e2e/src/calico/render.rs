//! One node's configuration of BIRD 1.6. Pure.
//!
//! Calico has three files that include each other. Only the main one is tried before it is put in place; so while a
//! BGPFilter is unusable, blocks and pools go on to be followed and sessions and filters are not. [`BirdConfig`] keeps
//! the parts apart for that.

use std::fmt::Write as _;

use super::{
    Family,
    cluster::Cluster,
    filter::{Direction, Refused, function_name},
    peers::{Session, sessions},
};

/// Metric of the routes of pods by Felix, and of those that BIRD writes to the kernel.
const METRIC: u32 = 1024;
/// `bgp_local_pref` of a route is this less its metric, so that the better metric is the higher preference.
const TURNED: u32 = 2_147_483_647;
/// Preference in BIRD of a route by BGP with a better metric than usual; others by BGP have 100.
const PREFERRED: u32 = 200;

/// One node's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BirdConfig {
    /// The node's blocks: blackhole routes, and their aggregation.
    pub blocks: String,
    /// What goes to peers and to the kernel by pool.
    pub pools: String,
    /// Everything else, which is handed over only if BIRD can parse it.
    pub main: String,
    /// Why `main` is not handed over.
    pub refused: Option<Refused>,
}

impl BirdConfig {
    /// One file for BIRD, with another main part, which may be an older one.
    pub fn with_main(&self, main: &str) -> String {
        format!("{}\n{}\n{main}", self.blocks, self.pools)
    }

    /// One file for BIRD.
    pub fn text(&self) -> String {
        self.with_main(&self.main)
    }
}

/// The configuration of a node in one family; none if there is no such node.
pub fn render(cluster: &Cluster, node: &str, family: Family) -> Option<BirdConfig> {
    let facts = cluster.nodes.get(node)?;
    let functions = cluster.functions.get(&family);
    let mut refused = functions.and_then(|functions| functions.refused.clone());
    let router_id = facts.ipv4.map(|id| format!("router id {id};\n")).unwrap_or_default();
    if facts.ipv4.is_none() {
        refused = refused.or(Some(Refused::NoAddress(node.to_owned())));
    }
    let mut main = format!("{router_id}{DEVICES}");
    if facts.address(family).is_some() {
        let asn = cluster.asn_of(facts);
        let _ = write!(main, "\n{}\n", bgp_template(asn));
        main.push_str(functions.map(|functions| functions.text.as_str()).unwrap_or_default());
        match sessions(cluster, node, facts, family) {
            Ok(sessions) => {
                main.extend(sessions.iter().map(|session| protocol(cluster, session, asn, family)));
            }
            Err(fault) => refused = refused.or(Some(fault)),
        }
    }
    Some(BirdConfig { blocks: blocks(cluster, node, family), pools: pools(cluster, family), main, refused })
}

/// What BIRD reads from and writes to the kernel. It learns from the main table alone.
const DEVICES: &str = r#"
protocol kernel {
  learn;
  persist;
  scan time 2;
  graceful restart;
  merge paths on;
  import all;
  export filter calico_kernel_programming;
}

protocol device {
  scan time 2;
}

protocol direct {
  interface -"cali*", -"kube-ipvs*", "*";
}
"#;

/// What all sessions have in common: Calico's timers, add-paths, and next hops that are looked up.
fn bgp_template(asn: u32) -> String {
    format!(
        "template bgp bgp_template {{
  local as {asn};
  gateway recursive;
  add paths on;
  graceful restart;
  connect delay time 2;
  connect retry time 5;
  error wait time 5,30;
}}

# Metric and local preference each made of the other: of a route by BGP the preference counts, else the metric.
function calico_priority() {{
  if (defined(source) && source = RTS_BGP && defined(bgp_local_pref)) then {{
    krt_metric = {TURNED} - bgp_local_pref;
  }} else {{
    if (!defined(krt_metric)) then {{ krt_metric = {METRIC}; }}
    bgp_local_pref = {TURNED} - krt_metric;
  }}
}}
"
    )
}

fn protocol(cluster: &Cluster, session: &Session, own_asn: u32, family: Family) -> String {
    let calls = |direction: Direction| -> String {
        let with_rules = session.filters.iter().filter_map(|name| {
            let filter = cluster.filters.get(name)?;
            let call = || format!("    {}();\n", function_name(name, direction, family));
            (!direction.rules(family, &filter.spec).is_empty()).then(call)
        });
        with_rules.collect()
    };
    let port = session.port.map(|port| format!(" port {port}")).unwrap_or_default();
    let source = session.source.map(|own| format!("  source address {own};\n")).unwrap_or_default();
    let password =
        session.password.as_ref().map(|password| format!("  password \"{password}\";\n")).unwrap_or_default();
    let passive = if session.passive { "  passive on;\n" } else { "" };
    format!(
        "
protocol bgp {name} from bgp_template {{
  neighbor {address}{port} as {asn};
{source}{password}  ttl security off;
  multihop;
{passive}  import filter {{
{imports}    if (defined(bgp_local_pref) && bgp_local_pref > {usual}) then preference = {PREFERRED};
    accept;
  }};
  export filter {{
    calico_priority();
{exports}    calico_export_to_bgp_peers({internal});
    reject;
  }};
}}
",
        name = session.name,
        address = session.address,
        asn = session.asn,
        imports = calls(Direction::Import),
        exports = calls(Direction::Export),
        usual = TURNED - METRIC,
        internal = session.asn == own_asn,
    )
}

/// Blackholes for the node's blocks, and a function that accepts these and rejects what is longer within them. A route
/// with a better metric than usual gets out all the same: Calico uses that for addresses on their way to another node.
fn blocks(cluster: &Cluster, node: &str, family: Family) -> String {
    let held = cluster.blocks.get(node).map(Vec::as_slice).unwrap_or_default();
    let held = || held.iter().filter(|block| Family::of(block.cidr.addr()) == family);
    let mut text = String::new();
    let mut routes = held().filter(|block| block.cidr.prefix_len() < family.max_len()).peekable();
    if routes.peek().is_some() {
        text.push_str("protocol static {\n");
        text.extend(routes.map(|block| format!("  route {} blackhole;\n", block.cidr)));
        text.push_str("}\n\n");
    }
    text.push_str("function calico_aggr() {\n");
    for block in held().filter(|block| block.confirmed) {
        let cidr = block.cidr;
        let _ = writeln!(text, "  if (net = {cidr}) then accept;");
        let _ = writeln!(text, "  if (net ~ {cidr} && krt_metric < {METRIC}) then accept;");
        let _ = writeln!(text, "  if (net ~ {cidr}) then reject;");
    }
    text.push_str("}\n");
    text
}

/// What goes to peers after their filters, and what goes to the kernel.
fn pools(cluster: &Cluster, family: Family) -> String {
    let pools = || cluster.pools.values().filter(|pool| Family::of(pool.cidr.addr()) == family);
    let mut text = "function calico_export_to_bgp_peers(bool internal_peer) {\n".to_owned();
    for pool in pools().filter(|pool| pool.hidden) {
        let _ = writeln!(text, "  if (net ~ {}) then reject;", pool.cidr);
    }
    text.push_str(
        "  if (internal_peer && defined(ifname)) then {
    if (ifname ~ \"*.cali\" || ifname ~ \"*.calico\") then reject;
  }
  if (defined(ifname)) then {
    if (ifname ~ \"bpf*.cali\") then reject;
  }
  calico_aggr();
",
    );
    for pool in pools().filter(|pool| !pool.hidden) {
        let _ = writeln!(text, "  if (net ~ {}) then accept;", pool.cidr);
    }
    let _ = write!(
        text,
        "}}

filter calico_kernel_programming {{
  if (defined(source) && source = RTS_BGP && !defined(krt_metric)) then {{
    krt_metric = {METRIC};
    if (defined(bgp_local_pref)) then krt_metric = {TURNED} - bgp_local_pref;
    if (krt_metric < {METRIC}) then preference = {PREFERRED};
  }}
"
    );
    for pool in pools().filter(|pool| pool.encapsulated) {
        let _ = writeln!(text, "  if (net ~ {}) then reject;", pool.cidr);
    }
    text.push_str("  accept;\n}\n");
    text
}
