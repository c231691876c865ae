//! A plan in plain words. Pure: from the plan to text.

use std::{
    collections::BTreeMap,
    fmt::{self, Write},
    net::SocketAddr,
};

use calico_vni_crds::{
    Tenant, TenantStatus, UnderlayStatus,
    calico::{BgpFilterRule, FilterAction, MatchOperator},
    keys,
};
use calico_vni_planner::{
    Plan, Snapshot,
    plan::{NodePlan, Notice},
    reason,
};
use calico_vni_proto::model::{Endpoint, Protocol};

use super::changes::{self, Change};

/// The plan at rest, marked with what is not yet as in the snapshot, and with what changes.
pub fn text(now: &Snapshot, rest: &Snapshot, plan: &Plan, changes: &[Change]) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    write(&mut text, now, rest, plan, changes).expect("a String takes everything");
    text
}

fn write<'a>(
    out: &mut String,
    now: &'a Snapshot,
    rest: &'a Snapshot,
    plan: &Plan,
    changes: &[Change],
) -> fmt::Result {
    heading(out, "TENANTS", plan.tenant_status.is_empty() && now.tenants.is_empty())?;
    for (name, status) in &plan.tenant_status {
        let of = |tenants: &'a [Tenant]| tenants.iter().find(|t| t.metadata.name.as_ref() == Some(name));
        let given = of(&rest.tenants).and_then(|t| t.spec.vni);
        tenant(out, of(&now.tenants), name, given, status, plan)?;
    }
    for gone in now.tenants.iter().filter_map(|t| t.metadata.name.as_ref()) {
        if !plan.tenant_status.contains_key(gone) {
            writeln!(out, "  {gone}: goes, for it is deleted or no pool names it any more")?;
        }
    }
    heading(out, "NODES", rest.nodes.is_empty())?;
    for name in plan.labels.keys() {
        writeln!(out, "  {name}: {}", node(plan.nodes.get(name)))?;
    }
    heading(
        out,
        &format!("CALICO ({}/{})", now.calico_api.group(), now.calico_api.version()),
        plan.filters.is_empty(),
    )?;
    for (name, peer) in &plan.peers {
        let spec = &peer.spec;
        writeln!(
            out,
            "  BGPPeer {name}: {}, AS {}, where {}",
            spec.peer_ip.as_deref().unwrap_or_default(),
            spec.as_number.unwrap_or_default(),
            spec.node_selector.as_deref().unwrap_or_default(),
        )?;
    }
    for (name, filter) in &plan.filters {
        let spec = &filter.spec;
        writeln!(
            out,
            "  BGPFilter {name}: IPv4 {}; IPv6 {}",
            rules(&spec.export_v4),
            rules(&spec.export_v6)
        )?;
    }
    if !plan.guard.quarantined.is_empty() {
        heading(out, "QUARANTINED (pods with these addresses reach their own node and nothing else)", false)?;
        for net in &plan.guard.quarantined {
            writeln!(out, "  {net}")?;
        }
    }
    if !plan.guard.services.is_empty() {
        heading(out, "SHARED SERVICES (what tenants reach outside their VRFs)", false)?;
        for service in &plan.guard.services {
            let endpoints: Vec<String> = service.endpoints.iter().map(endpoint).collect();
            writeln!(out, "  {}: {}", service.name, endpoints.join(", "))?;
        }
    }
    let namespaces: Vec<_> = plan.namespaces.iter().map(|(name, entry)| (name, namespace(entry))).collect();
    if !namespaces.is_empty() {
        heading(out, "NAMESPACES (Calico's annotations of their pods' pools)", false)?;
        for (name, what) in namespaces {
            writeln!(out, "  {name}: {what}")?;
        }
    }
    heading(out, "CHANGES (- as it stands, + as it comes to be)", changes.is_empty())?;
    out.push_str(&changes::text(changes));
    let notes = notes(plan);
    if !notes.is_empty() {
        heading(out, "NOTES", false)?;
        for note in notes {
            writeln!(out, "  {note}")?;
        }
    }
    if !plan.notices.is_empty() {
        heading(out, "WRONG", false)?;
        for Notice { about, reason, message } in &plan.notices {
            writeln!(out, "  {about}: {reason}: {message}")?;
        }
    }
    Ok(())
}

fn endpoint(endpoint: &Endpoint) -> String {
    let address = SocketAddr::new(endpoint.address, endpoint.port);
    let protocol = match endpoint.protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    };
    format!("{address}/{protocol}")
}

/// Annotations to hold, and those that go.
fn namespace(entry: &BTreeMap<String, Option<String>>) -> String {
    let pools = [(keys::CALICO_POOLS_V4, "IPv4"), (keys::CALICO_POOLS_V6, "IPv6")].into_iter();
    let said = pools.filter_map(|(key, family)| {
        Some(match entry.get(key)? {
            Some(list) => format!("{family} from {list}"),
            None => format!("{family} from no pool of ours any more"),
        })
    });
    let said: Vec<String> = said.collect();
    if said.is_empty() { "our mark goes".to_owned() } else { said.join(", ") }
}

fn heading(out: &mut String, title: &str, empty: bool) -> fmt::Result {
    if !out.is_empty() {
        writeln!(out)?;
    }
    writeln!(out, "{title}")?;
    if empty { writeln!(out, "  none") } else { Ok(()) }
}

fn tenant(
    out: &mut String,
    before: Option<&Tenant>,
    name: &str,
    given_vni: Option<u32>,
    status: &TenantStatus,
    plan: &Plan,
) -> fmt::Result {
    let kept = before.and_then(|t| t.status.as_ref());
    let number = |what: &str, kept: Option<u32>, is: Option<u32>| match is {
        None => format!("no {what}"),
        Some(number) if kept == is => format!("{what} {number}"),
        Some(number) => format!("{what} {number} (to be kept)"),
    };
    let made = if before.is_none() { " (to be made)" } else { "" };
    let carriers: Vec<&str> = (plan.nodes.values())
        .filter(|n| n.tenants.iter().any(|t| t.name == name))
        .map(|n| n.node.as_str())
        .collect();
    let carriers =
        if carriers.is_empty() { "on no node".to_owned() } else { format!("on {}", carriers.join(", ")) };
    let vni = number("VNI", kept.and_then(|s| s.vni), status.vni.or(given_vni));
    let link = number("link", kept.and_then(|s| s.link_index), status.link_index);
    writeln!(out, "  {name}{made}: {vni}, {link}, {carriers}")?;
    for pool in &status.pools {
        write!(out, "    pool {} {}", pool.name, pool.cidr)?;
        match &pool.reason {
            None => writeln!(out)?,
            Some(reason) => writeln!(out, " is refused: {reason}")?,
        }
    }
    for condition in &status.conditions {
        // Without slices among the manifests nothing is known of endpoints.
        let known = condition.reason != reason::NO_ENDPOINTS || !plan.guard.services.is_empty();
        if ["NamespacesAssigned", "ServicesReachable"].contains(&condition.type_.as_str())
            && condition.status != "True"
            && condition.reason != reason::NOT_ACCEPTED
            && known
        {
            writeln!(out, "    {}", condition.message)?;
        }
    }
    // What is refused is told below, with the way out.
    let programmed = status.conditions.iter().find(|c| c.type_ == "Programmed" && c.status != "True");
    match programmed {
        Some(condition) if condition.reason == reason::NOT_ACCEPTED => writeln!(out, "    is not accepted"),
        Some(condition) => writeln!(out, "    {}", condition.message),
        None => Ok(()),
    }
}

fn node(config: Option<&NodePlan>) -> String {
    let Some(config) = config else {
        return "stays as it is, for no accepted Underlay alone selects it with room left".into();
    };
    let Some(underlay) = &config.underlay else {
        return "carries nothing of ours, for no Underlay selects it".into();
    };
    let tenants: Vec<String> = config.tenants.iter().map(|t| format!("{} ({})", t.name, t.vni)).collect();
    let carries = if tenants.is_empty() { "no tenant yet".to_owned() } else { tenants.join(", ") };
    format!("VTEP {} in Underlay {}, carries {carries}", underlay.vtep, underlay.name)
}

/// Export rules in words. Import is refused throughout.
fn rules(rules: &[BgpFilterRule]) -> String {
    let accepts: Vec<String> =
        rules.iter().filter(|r| r.action == FilterAction::Accept).map(accept).collect();
    let only =
        rules.iter().find(|r| r.match_operator == Some(MatchOperator::NotIn)).and_then(|r| r.cidr.as_deref());
    match (only, accepts.is_empty()) {
        (Some(cidr), _) => format!("what Calico aggregates of {cidr}"),
        (None, true) => "nothing".to_owned(),
        (None, false) => accepts.join(" and "),
    }
}

fn accept(rule: &BgpFilterRule) -> String {
    let cidr = rule.cidr.as_deref().unwrap_or_default();
    let (min, max) = rule.prefix_length.map_or((None, None), |l| (l.min, l.max));
    match (rule.interface.is_some(), min, max) {
        (true, ..) => format!("each pod of {cidr}"),
        (false, Some(min), Some(max)) => format!("/{min} to /{max} of {cidr}"),
        (false, ..) => format!("all of {cidr}"),
    }
}

fn notes(plan: &Plan) -> Vec<String> {
    let mut notes = Vec::new();
    if plan.underlay_status.is_empty() {
        notes.push(
            "There is no Underlay, so no node carries anything: make one that names the fabric's neighbours."
                .to_owned(),
        );
    }
    let lax = |status: &UnderlayStatus| {
        status.conditions.iter().find(|c| c.type_ == "StrictAffinity" && c.status != "True").cloned()
    };
    if let Some(condition) = plan.underlay_status.values().find_map(lax) {
        notes.push(format!("{}.", condition.message));
    }
    notes
}
