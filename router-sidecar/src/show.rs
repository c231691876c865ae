//! Desired against observed, for a human.

use std::fmt::Write as _;

use calico_vni_proto::{model::NodeConfig, names};

use crate::{
    last_good::Told,
    op::Op,
    reconcile::Look,
    state::{Action, Rule},
};

/// What to print, and whether the node is as it is wanted.
pub fn show(node: &str, told: &Told, look: Option<&Look>) -> (String, bool) {
    let mut out = String::new();
    let digest = |digest: Option<String>| digest.unwrap_or_else(|| "none".into());
    let guard = digest(told.guard.as_ref().map(|held| held.digest.to_string()));
    let config = digest(told.config.as_ref().map(|held| held.digest.to_string()));
    let mut line = |text: String| writeln!(out, "{text}").expect("writing to a String cannot fail");
    line(format!("node {node}   guard {guard}   configuration {config}"));
    let Some(look) = look else {
        line("nothing was taken from the controller so far: nothing is wanted, nothing is compared".into());
        return (out, false);
    };
    let config = &look.desired.config;
    let of = |vni: Option<u32>| look.ops.iter().filter(|op| op.vni() == vni).collect::<Vec<_>>();
    if let Some(error) = &look.observed.frr_error {
        line(format!("FRR        UNKNOWN   {error}"));
    }
    let of_node = of(None);
    line(format!("{:<10} {}", "node", verdict(of_node.len())));
    for (what, text) in of_the_node(look) {
        line(format!("  {what:<9} {text}"));
    }
    outstanding(&mut line, &of_node);
    for tenant in &config.tenants {
        let ops = of(Some(tenant.vni));
        line(format!("{:<10} {}", tenant.name, verdict(ops.len())));
        let pools: Vec<String> = tenant.pools.iter().map(|pool| pool.cidr.to_string()).collect();
        let (vrf, table) = (names::vrf(tenant.vni), names::table(tenant.vni));
        line(format!("  vni {} in {vrf}, table {table}, pools {}", tenant.vni, pools.join(" ")));
        line(format!(
            "  link {} {} - {} {}",
            names::host_link(tenant.vni),
            tenant.host_v4,
            tenant.router_v4(),
            names::router_link(tenant.vni)
        ));
        for (what, (wanted, seen)) in counts(look, tenant.vni) {
            line(format!("  {what:<9} wanted {wanted:>4}   observed {seen:>4}"));
        }
        outstanding(&mut line, &ops);
    }
    let strangers = strangers(config, &look.ops);
    if !strangers.is_empty() {
        line(format!("{:<10} {}", "leaving", verdict(strangers.len())));
        outstanding(&mut line, &strangers);
    }
    let in_step = look.ops.is_empty() && look.observed.frr_error.is_none();
    line(if in_step {
        "in step".into()
    } else {
        format!("OUT OF STEP: {} changes outstanding", look.ops.len())
    });
    (out, in_step)
}

fn verdict(outstanding: usize) -> String {
    if outstanding == 0 { "ok".into() } else { format!("OUT OF STEP ({outstanding})") }
}

fn outstanding(line: &mut impl FnMut(String), ops: &[&Op]) {
    for op in ops {
        for (number, text) in op.to_string().lines().enumerate() {
            line(format!("  {} {text}", if number == 0 { "!" } else { " " }));
        }
    }
}

fn of_the_node(look: &Look) -> Vec<(&'static str, String)> {
    let guard = &look.observed.guard;
    let state = match (&guard.digest, guard.present) {
        (Some(digest), _) => format!("digest {}", digest.get(..12).unwrap_or(digest)),
        (None, true) => "present, and not as it was loaded".into(),
        (None, false) => "absent".into(),
    };
    let mut lines = vec![("guard", state)];
    if let Some(underlay) = &look.desired.config.underlay {
        lines.push(("vtep", format!("{} ({}, AS {})", underlay.vtep, underlay.name, underlay.asn)));
    }
    for name in &look.desired.uplinks {
        let place = match (look.observed.router.links.get(name), look.observed.host.links.get(name)) {
            (Some(link), _) if link.up => "in the router's namespace, up",
            (Some(_), _) => "in the router's namespace, DOWN",
            (None, Some(_)) => "still in the host's namespace",
            (None, None) => "MISSING",
        };
        lines.push(("uplink", format!("{name} {place}")));
    }
    lines
}

type Counts = Vec<(&'static str, (usize, usize))>;

/// Of each kind of object of a tenant, how many are wanted and how many stand.
fn counts(look: &Look, vni: u32) -> Counts {
    use crate::state::{NetState, Space, vni_of_link, vni_of_table};
    let spaces = |wanted: bool| {
        let (host, router): (&NetState, &NetState) = if wanted {
            (&look.desired.host, &look.desired.router)
        } else {
            (&look.observed.host, &look.observed.router)
        };
        [(Space::Host, host), (Space::Router, router)]
    };
    let sum = |wanted: bool, count: &dyn Fn(Space, &NetState) -> usize| {
        spaces(wanted).into_iter().map(|(space, state)| count(space, state)).sum::<usize>()
    };
    let both = |count: &dyn Fn(Space, &NetState) -> usize| (sum(true, count), sum(false, count));
    vec![
        (
            "devices",
            both(&|space, state| {
                state.links.keys().filter(|name| vni_of_link(space, name) == Some(vni)).count()
            }),
        ),
        (
            "addresses",
            both(&|space, state| {
                state.addresses.iter().filter(|address| vni_of_link(space, &address.dev) == Some(vni)).count()
            }),
        ),
        (
            "routes",
            both(&|_, state| {
                state.routes.iter().filter(|route| vni_of_table(route.table) == Some(vni)).count()
            }),
        ),
        ("rules", rules_into(look, names::table(vni))),
    ]
}

/// Of the rules that lead into a table, how many are wanted and how many stand.
fn rules_into(look: &Look, into: u32) -> (usize, usize) {
    let wanted = look.desired.steering.pools.values().filter(|table| **table == into).count();
    let leads = |rule: &&Rule| matches!(rule.action, Action::Lookup { table, .. } if table == into);
    (wanted, look.observed.host.rules.iter().filter(leads).count())
}

/// Changes that are for tenants which the node no longer carries.
fn strangers<'a>(config: &NodeConfig, ops: &'a [Op]) -> Vec<&'a Op> {
    let known = |vni: u32| config.tenants.iter().any(|tenant| tenant.vni == vni);
    ops.iter().filter(|op| op.vni().is_some_and(|vni| !known(vni))).collect()
}
