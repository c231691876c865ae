//! `kubectl vni routes`: which node should announce which prefix into a tenant's VRF, by the plan.

use std::{collections::BTreeSet, net::IpAddr, process::ExitCode};

use anyhow::bail;
use calico_vni_planner::{Plan, Snapshot, plan, plan::NodePlan};
use calico_vni_proto::model::Tenant;
use ipnet::IpNet;
use serde::Serialize;

use crate::{
    WRONG,
    cli::RoutesArguments,
    conditions, input,
    output::{self, Table},
};

/// The answer.
#[derive(Debug, Serialize)]
struct Answer {
    /// Where it is from.
    source: &'static str,
    tenant: String,
    routes: Vec<TypeFive>,
    /// What is announced besides.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'static str>,
}

/// A type-5 route.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
struct TypeFive {
    prefix: IpNet,
    node: String,
    /// The node's tunnel end point.
    next_hop: IpAddr,
    vni: u32,
    route_distinguisher: String,
    route_targets: Vec<String>,
    /// Whether the node's label admits BIRD to the router.
    admitted: bool,
}

/// Where the answer is from.
const SOURCE: &str = "the plan, from BlockAffinities, pools and the labels of Nodes; no router was asked";

/// Answers.
pub async fn run(arguments: &RoutesArguments) -> anyhow::Result<ExitCode> {
    let snapshot = input::snapshot(&arguments.source).await?;
    let plan = plan(&snapshot);
    let tenant = &arguments.tenant;
    if !plan.tenant_status.contains_key(tenant) {
        bail!("there is no Tenant `{tenant}`; `kubectl get tenants.calico-vni.io` lists those there are");
    }
    if let Some(node) = arguments.node.as_ref().filter(|node| !plan.labels.contains_key(*node)) {
        bail!("there is no Node `{node}`; `kubectl get nodes` lists those there are");
    }
    let answer = Answer::of(&snapshot, &plan, tenant, arguments.node.as_deref());
    output::print(&output::render(&answer, arguments.output, || answer.text())?)?;
    Ok(if answer.routes.iter().all(|route| route.admitted) {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(WRONG)
    })
}

impl Answer {
    fn of(snapshot: &Snapshot, plan: &Plan, tenant: &str, only: Option<&str>) -> Self {
        let admitted = conditions::admitted(snapshot, tenant);
        let mut routes = BTreeSet::new();
        let mut pods = false;
        let nodes = plan.nodes.values().filter(|node| only.is_none_or(|only| node.node == only));
        for (node, carried) in nodes.filter_map(|node| Some((node, carried(node, tenant)?))) {
            pods |= carried.advertise_pods;
            routes.extend(of_node(snapshot, node, carried, admitted.contains(&node.node)));
        }
        let note = pods.then_some("each pod's own route is announced too (spec.advertise: Pods)");
        Self { source: SOURCE, tenant: tenant.to_owned(), routes: routes.into_iter().collect(), note }
    }

    fn text(&self) -> String {
        let mut table = Table::new(["PREFIX", "NODE", "NEXT HOP", "VNI", "RD", "RT", "STATE"]);
        for route in &self.routes {
            table.row([
                route.prefix.to_string(),
                route.node.clone(),
                route.next_hop.to_string(),
                route.vni.to_string(),
                route.route_distinguisher.clone(),
                route.route_targets.join(","),
                if route.admitted { "to be announced" } else { "WAITS for the node's label" }.to_owned(),
            ]);
        }
        let table = if table.is_empty() {
            format!("No node has a block of an accepted pool of Tenant {}.\n", self.tenant)
        } else {
            table.to_string()
        };
        let note = self.note.map_or_else(String::new, |note| format!("Besides, {note}.\n"));
        format!("{table}\n{note}By {SOURCE}.\n")
    }
}

fn carried<'n>(node: &'n NodePlan, tenant: &str) -> Option<&'n Tenant> {
    node.tenants.iter().find(|carried| carried.name == tenant).map(AsRef::as_ref)
}

fn of_node(
    snapshot: &Snapshot,
    node: &NodePlan,
    tenant: &Tenant,
    admitted: bool,
) -> impl Iterator<Item = TypeFive> {
    let underlay = node.underlay.as_ref();
    let own = |net: &IpNet| tenant.pools.iter().any(|pool| pool.cidr.contains(net));
    let blocks =
        snapshot.blocks.iter().filter(|block| block.spec.node == node.node && !block.spec.is_deleted());
    let prefixes: BTreeSet<IpNet> = blocks.filter_map(|b| b.spec.cidr.parse().ok()).filter(own).collect();
    prefixes.into_iter().filter_map(move |prefix| {
        let underlay = underlay?;
        let exported = if tenant.export_rts.is_empty() {
            vec![format!("{}:{}", underlay.asn, tenant.vni)]
        } else {
            tenant.export_rts.iter().map(ToString::to_string).collect()
        };
        Some(TypeFive {
            prefix,
            node: node.node.clone(),
            next_hop: underlay.vtep,
            vni: tenant.vni,
            route_distinguisher: format!("{}:{}", underlay.router_id, tenant.link_index),
            route_targets: exported,
            admitted,
        })
    })
}
