//! `kubectl vni status`: how Tenants and Underlays fare, by their statuses and the Nodes' labels.

use std::{fmt::Write, process::ExitCode};

use anyhow::bail;
use calico_vni_crds::{
    Tenant, Underlay,
    tenant::{NodeCounts, PoolStatus},
    underlay::SessionCounts,
};
use calico_vni_planner::Snapshot;
use serde::Serialize;

use crate::{
    WRONG,
    cli::StatusArguments,
    conditions, input,
    output::{self, Table},
};

/// The answer.
#[derive(Debug, Serialize)]
struct Status {
    tenants: Vec<TenantView>,
    underlays: Vec<UnderlayView>,
}

/// A Tenant.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct TenantView {
    name: String,
    well: bool,
    vni: Option<u32>,
    vrf: Option<String>,
    pools: Vec<PoolStatus>,
    nodes: NodeCounts,
    /// Nodes to which its BGPPeer is admitted.
    admitted: Vec<String>,
    prefixes: Option<u32>,
    /// Why it is not well.
    wrong: Vec<Wrong>,
}

/// An Underlay.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct UnderlayView {
    name: String,
    well: bool,
    asn: u32,
    nodes: NodeCounts,
    sessions: SessionCounts,
    quarantined_pools: Vec<PoolStatus>,
    wrong: Vec<Wrong>,
}

/// Something that is wrong with an object.
#[derive(Debug, Serialize)]
struct Wrong {
    what: String,
    reason: String,
    message: String,
}

/// Answers.
pub async fn run(arguments: &StatusArguments) -> anyhow::Result<ExitCode> {
    let (snapshot, _) = input::snapshot(&arguments.source).await?;
    let status = Status::of(&snapshot, arguments.tenant.as_deref());
    if let (Some(name), []) = (&arguments.tenant, &status.tenants[..]) {
        bail!("there is no Tenant `{name}`; `kubectl get tenants.calico-vni.io` lists those there are");
    }
    let details = arguments.tenant.is_some();
    output::print(&output::render(&status, arguments.output, || status.text(details))?)?;
    Ok(if status.is_well() { ExitCode::SUCCESS } else { ExitCode::from(WRONG) })
}

impl Status {
    /// Of all, or of one Tenant alone.
    fn of(snapshot: &Snapshot, only: Option<&str>) -> Self {
        let name = |tenant: &Tenant| tenant.metadata.name.clone().unwrap_or_default();
        let asked = snapshot.tenants.iter().filter(|t| only.is_none_or(|only| name(t) == only));
        let mut tenants: Vec<TenantView> = asked.map(|t| TenantView::of(snapshot, t)).collect();
        tenants.sort_by(|a, b| a.name.cmp(&b.name));
        let all = snapshot.underlays.iter().filter(|_| only.is_none());
        let mut underlays: Vec<UnderlayView> = all.map(UnderlayView::of).collect();
        underlays.sort_by(|a, b| a.name.cmp(&b.name));
        Self { tenants, underlays }
    }

    fn is_well(&self) -> bool {
        self.tenants.iter().all(|tenant| tenant.well) && self.underlays.iter().all(|underlay| underlay.well)
    }

    /// As tables; below them what is wrong, or all of it.
    fn text(&self, details: bool) -> String {
        let mut text = String::new();
        let yes = |well| if well { "yes" } else { "NO" }.to_owned();
        let mut table =
            Table::new(["TENANT", "VNI", "VRF", "POOLS", "NODES", "DEGRADED", "PREFIXES", "WELL"]);
        for tenant in &self.tenants {
            let accepted = tenant.pools.iter().filter(|pool| pool.accepted).count();
            table.row([
                tenant.name.clone(),
                tenant.vni.map_or_else(String::new, |vni| vni.to_string()),
                tenant.vrf.clone().unwrap_or_default(),
                format!("{accepted}/{}", tenant.pools.len()),
                tenant.nodes.ready.clone(),
                tenant.nodes.degraded.to_string(),
                tenant.prefixes.map_or_else(String::new, |prefixes| prefixes.to_string()),
                yes(tenant.well),
            ]);
        }
        if !table.is_empty() {
            text += &table.to_string();
        } else if !details {
            text += "There is no Tenant.\n";
        }
        if !details {
            let mut table = Table::new(["UNDERLAY", "ASN", "NODES", "DEGRADED", "SESSIONS", "WELL"]);
            for underlay in &self.underlays {
                table.row([
                    underlay.name.clone(),
                    underlay.asn.to_string(),
                    underlay.nodes.ready.clone(),
                    underlay.nodes.degraded.to_string(),
                    underlay.sessions.ready.clone(),
                    yes(underlay.well),
                ]);
            }
            text += "\n";
            text += &if table.is_empty() { "There is no Underlay.\n".to_owned() } else { table.to_string() };
        }
        // Writing to a String cannot fail.
        for tenant in &self.tenants {
            if details || !tenant.well {
                let _ = writeln!(text, "\nTenant {}", tenant.name);
                about_pools(&mut text, &tenant.pools, details);
                if details && !tenant.admitted.is_empty() {
                    let _ = writeln!(text, "  its BGPPeer is admitted to {}", tenant.admitted.join(", "));
                }
                about_nodes(&mut text, &tenant.nodes, &tenant.wrong);
            }
        }
        for underlay in self.underlays.iter().filter(|underlay| !underlay.well) {
            let _ = writeln!(text, "\nUnderlay {}", underlay.name);
            about_pools(&mut text, &underlay.quarantined_pools, false);
            about_nodes(&mut text, &underlay.nodes, &underlay.wrong);
        }
        text
    }
}

/// The refused pools with why, or all.
fn about_pools(text: &mut String, pools: &[PoolStatus], all: bool) {
    for pool in pools.iter().filter(|pool| all || pool.reason.is_some() || !pool.accepted) {
        let PoolStatus { name, cidr, accepted, reason, message } = pool;
        let told = if *accepted { "accepted" } else { "refused" };
        let mut words = vec![format!("pool {name} {cidr} is {told}")];
        words.extend([reason, message].into_iter().flatten().cloned());
        let _ = writeln!(text, "  {}", words.join(": "));
    }
}

fn about_nodes(text: &mut String, nodes: &NodeCounts, wrong: &[Wrong]) {
    for problem in &nodes.problems {
        let _ = writeln!(text, "  node {}: {}", problem.node, problem.message);
    }
    for Wrong { what, reason, message } in wrong {
        let _ = writeln!(text, "  {what}: {reason}: {message}");
    }
}

/// What conditions say that is wrong, and whether they speak of the object as it is.
fn wrongs(
    meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    conditions: &[k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition],
) -> Vec<Wrong> {
    let mut wrongs = Vec::new();
    if conditions.is_empty() || !conditions::are_of_now(meta, conditions) {
        let message = "the controller has not said yet what became of it as it is now; does it run?";
        wrongs.push(Wrong { what: "Status".into(), reason: "Behind".into(), message: message.into() });
    }
    wrongs.extend(conditions::wrong(conditions).map(|condition| Wrong {
        what: condition.type_.clone(),
        reason: condition.reason.clone(),
        message: condition.message.clone(),
    }));
    wrongs
}

impl TenantView {
    fn of(snapshot: &Snapshot, tenant: &Tenant) -> Self {
        let name = tenant.metadata.name.clone().unwrap_or_default();
        let status = tenant.status.clone().unwrap_or_default();
        let wrong = wrongs(&tenant.metadata, &status.conditions);
        Self {
            well: wrong.is_empty(),
            vni: status.vni,
            vrf: status.vrf,
            pools: status.pools,
            nodes: status.nodes.unwrap_or_default(),
            admitted: conditions::admitted(snapshot, &name),
            prefixes: status.prefixes,
            wrong,
            name,
        }
    }
}

impl UnderlayView {
    fn of(underlay: &Underlay) -> Self {
        let status = underlay.status.clone().unwrap_or_default();
        let mut wrong = wrongs(&underlay.metadata, &status.conditions);
        let sessions = status.sessions.unwrap_or_default();
        if sessions.established < sessions.configured {
            let neighbors: Vec<String> =
                underlay.spec.neighbors.iter().map(|n| format!("{} (AS {})", n.address, n.asn)).collect();
            wrong.push(Wrong {
                what: "Sessions".into(),
                reason: "SessionsDown".into(),
                message: format!(
                    "{} of {} BGP sessions with {} are established",
                    sessions.established,
                    sessions.configured,
                    neighbors.join(", ")
                ),
            });
        }
        Self {
            name: underlay.metadata.name.clone().unwrap_or_default(),
            well: wrong.is_empty(),
            asn: underlay.spec.asn,
            nodes: status.nodes.unwrap_or_default(),
            sessions,
            quarantined_pools: status.quarantined_pools,
            wrong,
        }
    }
}
