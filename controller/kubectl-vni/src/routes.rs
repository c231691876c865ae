//! `kubectl vni routes`: which node should announce which prefix into a tenant's VRF, by the plan, and what the routers hold.

use std::{collections::BTreeSet, net::IpAddr, process::ExitCode};

use anyhow::bail;
use calico_vni_planner::{Plan, Snapshot, plan, plan::NodePlan};
use calico_vni_proto::{model::Tenant, wire};
use ipnet::IpNet;
use serde::Serialize;

use crate::{
    cli::RoutesArguments,
    conditions, input,
    output::{self, Table},
    routers::{self, Router, Told},
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
    /// How asking went; absent where no router was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    routers: Option<Vec<Router>>,
    /// What they hold in the tenant's VRF.
    #[serde(skip_serializing_if = "Option::is_none")]
    held: Option<Vec<Held>>,
}

/// A route that a router has.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Held {
    node: String,
    prefix: String,
    /// Of a route from the fabric, the VTEP of the other router.
    next_hop: Option<String>,
    from: Origin,
    best: bool,
    /// ASNs on the way, the nearest first.
    path: String,
}

/// Where a router has a route from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum Origin {
    /// From the node itself.
    Node,
    /// From another router.
    Fabric,
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
    /// Whether the node's router has it from its node; absent where that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    held: Option<bool>,
}

/// Where the answer is from.
const SOURCE: &str = "the plan, from BlockAffinities, pools and the labels of Nodes; no router was asked";
const ASKED: &str = "the plan, from BlockAffinities, pools and the labels of Nodes, and what the routers say";

/// Answers.
pub async fn run(arguments: &RoutesArguments) -> anyhow::Result<ExitCode> {
    let (snapshot, cluster) = input::snapshot(&arguments.source).await?;
    let plan = plan(&snapshot);
    let tenant = &arguments.tenant;
    if !plan.tenant_status.contains_key(tenant) {
        bail!("there is no Tenant `{tenant}`; `kubectl get tenants.calico-vni.io` lists those there are");
    }
    routers::there_is(arguments.node.as_ref(), &plan)?;
    let (mut answer, nodes) = Answer::of(&snapshot, &plan, tenant, arguments.node.as_deref());
    let mut failed = None;
    if let Some(cluster) = cluster.filter(|_| !arguments.asking.no_ask && !nodes.is_empty()) {
        match routers::routes(&cluster, &arguments.asking, tenant, nodes).await {
            Ok(told) => answer.add(told),
            Err(error) => failed = Some(error),
        }
    }
    output::print(&output::render(&answer, arguments.output, || answer.text())?)?;
    routers::outcome(failed, answer.is_well())
}

impl Answer {
    /// By the plan, and the nodes that are to carry the tenant.
    fn of(snapshot: &Snapshot, plan: &Plan, tenant: &str, only: Option<&str>) -> (Self, Vec<String>) {
        let admitted = conditions::admitted(snapshot, tenant);
        let (mut routes, mut carriers) = (BTreeSet::new(), Vec::new());
        let mut pods = false;
        let nodes = plan.nodes.values().filter(|node| only.is_none_or(|only| node.node == only));
        for (node, carried) in nodes.filter_map(|node| Some((node, carried(node, tenant)?))) {
            pods |= carried.advertise_pods;
            carriers.push(node.node.clone());
            routes.extend(of_node(snapshot, node, carried, admitted.contains(&node.node)));
        }
        let note = pods.then_some("each pod's own route is announced too (spec.advertise: Pods)");
        let (tenant, routes) = (tenant.to_owned(), routes.into_iter().collect());
        (Self { source: SOURCE, tenant, routes, note, routers: None, held: None }, carriers)
    }

    fn add(&mut self, told: Told<wire::BgpRoute>) {
        self.source = ASKED;
        let own: BTreeSet<(&str, &str)> = told
            .entries
            .iter()
            .filter(|(_, route)| !route.from_fabric)
            .map(|(node, route)| (node.as_str(), route.prefix.as_str()))
            .collect();
        for route in &mut self.routes {
            let router =
                told.routers.iter().find(|router| router.node == route.node && router.refused.is_none());
            let Some(router) = router else { continue };
            let has = own.contains(&(route.node.as_str(), route.prefix.to_string().as_str()));
            // What was left out may be this one.
            route.held = (has || router.more == 0).then_some(has);
        }
        self.routers = Some(told.routers);
        self.held = Some(told.entries.into_iter().map(|(node, route)| Held::of(node, route)).collect());
    }

    fn is_well(&self) -> bool {
        self.routes.iter().all(|route| route.admitted && route.held != Some(false))
            && self.routers.iter().flatten().all(|router| router.refused.is_none())
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
                match (route.admitted, route.held) {
                    (false, _) => "WAITS for the node's label",
                    (true, None) => "to be announced",
                    (true, Some(true)) => "held by its router",
                    (true, Some(false)) => "MISSING in its router",
                }
                .to_owned(),
            ]);
        }
        let table = if table.is_empty() {
            format!("No node has a block of an accepted pool of Tenant {}.\n", self.tenant)
        } else {
            table.to_string()
        };
        let note = self.note.map_or_else(String::new, |note| format!("Besides, {note}.\n"));
        format!("{table}\n{note}{}By {}.\n", self.said(), self.source)
    }

    /// What the routers hold; empty where none was asked.
    fn said(&self) -> String {
        let (Some(routers), Some(held)) = (&self.routers, &self.held) else { return String::new() };
        let mut table = Table::new(["NODE", "PREFIX", "NEXT HOP", "FROM", "BEST", "AS PATH"]);
        for route in held {
            table.row([
                route.node.clone(),
                route.prefix.clone(),
                route.next_hop.clone().unwrap_or_default(),
                match route.from {
                    Origin::Node => "its node",
                    Origin::Fabric => "the fabric",
                }
                .to_owned(),
                if route.best { "yes" } else { "no" }.to_owned(),
                route.path.clone(),
            ]);
        }
        format!("IN THE ROUTERS\n{table}{}\n", Router::notes(routers))
    }
}

impl Held {
    fn of(node: String, route: wire::BgpRoute) -> Self {
        Self {
            node,
            prefix: route.prefix,
            next_hop: (!route.next_hop.is_empty()).then_some(route.next_hop),
            from: if route.from_fabric { Origin::Fabric } else { Origin::Node },
            best: route.best,
            path: route.path,
        }
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
    let blocks = snapshot.blocks.iter().filter(|block| block.node == node.node);
    let prefixes: BTreeSet<IpNet> = blocks.map(|block| block.net).filter(own).collect();
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
            held: None,
        })
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn asked(told: Told<wire::BgpRoute>) -> Answer {
        let world = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/world/well.yaml"));
        let snapshot = Snapshot::from_objects(input::files(&[world]).unwrap()).unwrap();
        let snapshot = input::without_passwords(snapshot);
        let (mut answer, nodes) = Answer::of(&snapshot, &plan(&snapshot), "red", None);
        assert_eq!(nodes, ["n1", "n2"]);
        answer.add(told);
        answer
    }

    fn router(node: &str, refused: Option<&str>, more: u64) -> Router {
        Router { node: node.into(), agent: "1".into(), refused: refused.map(str::to_owned), more }
    }

    fn route(node: &str, prefix: &str, next_hop: &str, from_fabric: bool) -> (String, wire::BgpRoute) {
        let (next_hop, path) = (next_hop.to_owned(), if from_fabric { "65100 65001 64512" } else { "64512" });
        let prefix = prefix.to_owned();
        (node.to_owned(), wire::BgpRoute { prefix, next_hop, from_fabric, best: true, path: path.to_owned() })
    }

    fn all() -> Told<wire::BgpRoute> {
        Told {
            routers: vec![router("n1", None, 0), router("n2", None, 3)],
            entries: vec![
                route("n1", "10.200.0.0/26", "169.254.192.2", false),
                route("n1", "10.200.0.64/26", "10.255.0.2", true),
                route("n1", "fd00:200::/122", "fd9c:76e1:1::2", false),
                route("n2", "10.200.0.64/26", "169.254.192.2", false),
            ],
        }
    }

    #[test]
    fn what_routers_hold_stands_beside_the_plan() {
        let answer = asked(all());
        assert!(answer.is_well());
        let expected = "\
PREFIX           NODE   NEXT HOP     VNI    RD             RT           STATE
10.200.0.0/26    n1     10.255.0.1   1001   10.255.0.1:1   65001:1001   held by its router
10.200.0.64/26   n2     10.255.0.2   1001   10.255.0.2:1   65001:1001   held by its router
fd00:200::/122   n1     10.255.0.1   1001   10.255.0.1:1   65001:1001   held by its router

IN THE ROUTERS
NODE   PREFIX           NEXT HOP         FROM         BEST   AS PATH
n1     10.200.0.0/26    169.254.192.2    its node     yes    64512
n1     10.200.0.64/26   10.255.0.2       the fabric   yes    65100 65001 64512
n1     fd00:200::/122   fd9c:76e1:1::2   its node     yes    64512
n2     10.200.0.64/26   169.254.192.2    its node     yes    64512
n2: and 3 more

By the plan, from BlockAffinities, pools and the labels of Nodes, and what the routers say.
";
        assert_eq!(answer.text(), expected);
    }

    #[test]
    fn what_a_router_lacks_is_told_and_what_it_left_out_is_not_taken_for_missing() {
        let states = |answer: &Answer| answer.routes.iter().map(|route| route.held).collect::<Vec<_>>();
        // From the fabric is not from its own node.
        let mut told = all();
        told.entries[0].1.from_fabric = true;
        let answer = asked(told);
        assert_eq!(states(&answer), [Some(false), Some(true), Some(true)]);
        assert!(!answer.is_well() && answer.text().contains("MISSING in its router"));
        let mut told = all();
        told.entries.pop();
        let answer = asked(told);
        assert_eq!(states(&answer), [Some(true), None, Some(true)], "n2 has more than it tells");
        assert!(answer.is_well());
        let mut told = all();
        told.routers[1] = router("n2", Some("its agent is not connected"), 0);
        told.entries.pop();
        let answer = asked(told);
        assert_eq!(states(&answer), [Some(true), None, Some(true)]);
        assert!(
            !answer.is_well() && answer.text().contains("NO ANSWER from n2: its agent is not connected\n")
        );
    }
}
