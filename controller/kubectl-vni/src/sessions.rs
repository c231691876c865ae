//! `kubectl vni sessions`: the BGP sessions, as far as statuses tell them, and as routers do.

use std::{collections::BTreeSet, process::ExitCode};

use calico_vni_crds::calico::BgpPeer;
use calico_vni_crds::{Tenant, Underlay, keys};
use calico_vni_planner::{Snapshot, plan};
use calico_vni_proto::wire;
use serde::Serialize;

use crate::{
    cli::SessionsArguments,
    conditions, input,
    output::{self, Table},
    routers::{self, Told},
};

/// The answer.
#[derive(Debug, Serialize)]
struct Answer {
    /// Where it is from.
    source: &'static str,
    fabric: Vec<Fabric>,
    tenants: Vec<Router>,
    /// How asking went; absent where no router was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    routers: Option<Vec<routers::Router>>,
    /// What they say.
    #[serde(skip_serializing_if = "Option::is_none")]
    sessions: Option<Vec<Session>>,
}

/// A session, by its router.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Session {
    node: String,
    /// Absent: with the fabric.
    vrf: Option<String>,
    tenant: Option<String>,
    peer: String,
    asn: u32,
    state: String,
    uptime_seconds: u64,
    prefixes_received: u32,
    prefixes_sent: u32,
}

/// Sessions of an Underlay's routers with the fabric.
#[derive(Debug, Serialize)]
struct Fabric {
    underlay: String,
    neighbors: Vec<String>,
    /// Routers that answer, of those that there should be.
    routers: String,
    established: u32,
    configured: u32,
}

/// Sessions of the nodes' BIRDs with their routers for one BGPPeer of a tenant.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Router {
    tenant: String,
    peer: String,
    address: String,
    asn: i32,
    /// Nodes whose BIRD has the session, by their label.
    admitted: Vec<String>,
    /// Routes that all routers together hold for the tenant, of both families.
    tenant_prefixes: Option<u32>,
}

/// Where the answer is from.
const SOURCE: &str = "the statuses of Tenants and Underlays and the labels of Nodes; no router was asked";
const ASKED: &str = "the statuses of Tenants and Underlays and the labels of Nodes, and what the routers say";

/// FRR's word for a session that stands.
const ESTABLISHED: &str = "Established";

/// Answers.
pub async fn run(arguments: &SessionsArguments) -> anyhow::Result<ExitCode> {
    let (snapshot, cluster) = input::snapshot(&arguments.source).await?;
    let plan = plan(&snapshot);
    let named = |node: &&String| arguments.node.as_ref().is_none_or(|only| only == *node);
    routers::there_is(arguments.node.as_ref(), &plan)?;
    let nodes = plan.nodes.values().filter(|node| node.underlay.is_some()).map(|node| &node.node);
    let nodes: Vec<String> = nodes.filter(named).cloned().collect();
    let mut answer = Answer::of(&snapshot);
    let mut failed = None;
    if let Some(cluster) = cluster.filter(|_| !arguments.asking.no_ask && !nodes.is_empty()) {
        match routers::sessions(&cluster, &arguments.asking, nodes).await {
            Ok(told) => answer.add(told),
            Err(error) => failed = Some(error),
        }
    }
    output::print(&output::render(&answer, arguments.output, || answer.text())?)?;
    routers::outcome(failed, answer.is_well())
}

impl Answer {
    fn of(snapshot: &Snapshot) -> Self {
        let mut fabric: Vec<Fabric> = snapshot.underlays.iter().map(Fabric::of).collect();
        fabric.sort_by(|a, b| a.underlay.cmp(&b.underlay));
        let mut tenants: Vec<Router> =
            snapshot.peers.iter().filter_map(|peer| Router::of(snapshot, peer)).collect();
        tenants.sort_by(|a, b| a.peer.cmp(&b.peer));
        Self { source: SOURCE, fabric, tenants, routers: None, sessions: None }
    }

    fn add(&mut self, told: Told<wire::BgpSession>) {
        self.source = ASKED;
        self.routers = Some(told.routers);
        self.sessions =
            Some(told.entries.into_iter().map(|(node, session)| Session::of(node, session)).collect());
    }

    fn is_well(&self) -> bool {
        let silent = |router: &Router| !router.admitted.is_empty() && router.tenant_prefixes == Some(0);
        self.fabric.iter().all(|fabric| fabric.established >= fabric.configured)
            && !self.tenants.iter().any(silent)
            && self.routers.iter().flatten().all(|router| router.refused.is_none())
            && self.stand()
    }

    /// Whether by the routers all sessions with the fabric stand, and of each tenant one on each of the nodes that were asked
    /// and to which it is admitted: of a family in which it has no pool none can.
    fn stand(&self) -> bool {
        let Some(sessions) = &self.sessions else { return true };
        let up = |session: &&Session| session.state == ESTABLISHED;
        let standing: BTreeSet<_> =
            sessions.iter().filter(up).map(|s| (s.node.as_str(), s.tenant.as_deref())).collect();
        let asked: BTreeSet<&str> = sessions.iter().map(|session| session.node.as_str()).collect();
        let admitted = |router: &Router| {
            let nodes = router.admitted.iter().filter(|node| asked.contains(node.as_str()));
            nodes.map(|node| (node.clone(), router.tenant.clone())).collect::<Vec<_>>()
        };
        sessions.iter().filter(|session| session.vrf.is_none()).all(|session| up(&session))
            && self
                .tenants
                .iter()
                .flat_map(admitted)
                .all(|(node, tenant)| standing.contains(&(node.as_str(), Some(tenant.as_str()))))
    }

    fn text(&self) -> String {
        let mut fabric = Table::new(["UNDERLAY", "NEIGHBORS", "ROUTERS", "ESTABLISHED"]);
        for underlay in &self.fabric {
            fabric.row([
                underlay.underlay.clone(),
                underlay.neighbors.join(", "),
                underlay.routers.clone(),
                format!("{}/{}", underlay.established, underlay.configured),
            ]);
        }
        let mut tenants =
            Table::new(["TENANT", "BGPPEER", "ROUTER", "AS", "ADMITTED TO", "PREFIXES OF TENANT"]);
        for router in &self.tenants {
            tenants.row([
                router.tenant.clone(),
                router.peer.clone(),
                router.address.clone(),
                router.asn.to_string(),
                router.admitted.join(","),
                router.tenant_prefixes.map_or_else(String::new, |prefixes| prefixes.to_string()),
            ]);
        }
        let said = self.said();
        format!(
            "WITH THE FABRIC\n{fabric}\nBIRD WITH ITS NODE'S ROUTER\n{tenants}\n{said}By {}.\n",
            self.source
        )
    }

    /// What the routers say; empty where none was asked.
    fn said(&self) -> String {
        let (Some(routers), Some(sessions)) = (&self.routers, &self.sessions) else { return String::new() };
        let mut table =
            Table::new(["NODE", "TENANT", "VRF", "NEIGHBOR", "AS", "STATE", "UP", "RECEIVED", "SENT"]);
        for session in sessions {
            table.row([
                session.node.clone(),
                session.tenant.clone().unwrap_or_default(),
                session.vrf.clone().unwrap_or_default(),
                session.peer.clone(),
                session.asn.to_string(),
                session.state.clone(),
                if session.state == ESTABLISHED {
                    output::span(session.uptime_seconds)
                } else {
                    String::new()
                },
                session.prefixes_received.to_string(),
                session.prefixes_sent.to_string(),
            ]);
        }
        format!("IN THE ROUTERS\n{table}{}\n", routers::Router::notes(routers))
    }
}

impl Session {
    fn of(node: String, session: wire::BgpSession) -> Self {
        let some = |text: String| (!text.is_empty()).then_some(text);
        Self {
            node,
            vrf: some(session.vrf),
            tenant: some(session.tenant),
            peer: session.peer,
            asn: session.asn,
            state: session.state,
            uptime_seconds: session.uptime_seconds,
            prefixes_received: session.prefixes_received,
            prefixes_sent: session.prefixes_sent,
        }
    }
}

impl Fabric {
    fn of(underlay: &Underlay) -> Self {
        let status = underlay.status.clone().unwrap_or_default();
        let neighbors = underlay.spec.neighbors.iter();
        let sessions = status.sessions.unwrap_or_default();
        Self {
            underlay: underlay.metadata.name.clone().unwrap_or_default(),
            neighbors: neighbors.map(|n| format!("{} (AS {})", n.address, n.asn)).collect(),
            routers: status.nodes.unwrap_or_default().ready,
            established: sessions.established,
            configured: sessions.configured,
        }
    }
}

impl Router {
    /// `None` for a BGPPeer that is not ours.
    fn of(snapshot: &Snapshot, peer: &BgpPeer) -> Option<Self> {
        let tenant = peer.labels().remove(keys::OWNER)?;
        let named = |t: &&Tenant| t.metadata.name.as_ref() == Some(&tenant);
        let status = snapshot.tenants.iter().find(named).and_then(|t| t.status.as_ref());
        Some(Self {
            peer: peer.name().to_owned(),
            address: peer.spec.peer_ip.clone().unwrap_or_default(),
            asn: peer.spec.as_number.unwrap_or_default(),
            admitted: conditions::admitted(snapshot, &tenant),
            tenant_prefixes: status.and_then(|status| status.prefixes),
            tenant,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn asked(told: Told<wire::BgpSession>) -> Answer {
        let world = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/world/well.yaml"));
        let snapshot = Snapshot::from_objects(input::files(&[world]).unwrap()).unwrap();
        let mut answer = Answer::of(&snapshot);
        assert!(answer.is_well());
        answer.add(told);
        answer
    }

    fn session(node: &str, tenant: &str, peer: &str, state: &str) -> (String, wire::BgpSession) {
        let session = wire::BgpSession {
            vrf: if tenant.is_empty() { String::new() } else { format!("vrf-{tenant}") },
            tenant: tenant.into(),
            peer: peer.into(),
            asn: 64512,
            state: state.into(),
            uptime_seconds: 3_661,
            prefixes_received: 2,
            prefixes_sent: 1,
        };
        (node.to_owned(), session)
    }

    fn all() -> Told<wire::BgpSession> {
        let router =
            |node: &str| routers::Router { node: node.into(), agent: "1".into(), refused: None, more: 0 };
        Told {
            routers: vec![router("n1"), router("n2")],
            entries: vec![
                session("n1", "", "192.0.2.1", ESTABLISHED),
                session("n1", "blue", "169.254.192.4", ESTABLISHED),
                session("n1", "blue", "fd9c:76e1:1::4", "Active"),
                session("n1", "red", "169.254.192.2", ESTABLISHED),
                session("n2", "", "192.0.2.1", ESTABLISHED),
                session("n2", "red", "169.254.192.2", ESTABLISHED),
            ],
        }
    }

    #[test]
    fn each_session_is_told_by_its_router() {
        let sessions = asked(all());
        assert!(sessions.is_well(), "blue has no pool of IPv6");
        let text = sessions.text();
        let expected = "
IN THE ROUTERS
NODE   TENANT   VRF        NEIGHBOR         AS      STATE         UP     RECEIVED   SENT
n1     -        -          192.0.2.1        64512   Established   1h1m   2          1
n1     blue     vrf-blue   169.254.192.4    64512   Established   1h1m   2          1
n1     blue     vrf-blue   fd9c:76e1:1::4   64512   Active        -      2          1
n1     red      vrf-red    169.254.192.2    64512   Established   1h1m   2          1
n2     -        -          192.0.2.1        64512   Established   1h1m   2          1
n2     red      vrf-red    169.254.192.2    64512   Established   1h1m   2          1

By the statuses of Tenants and Underlays and the labels of Nodes, and what the routers say.
";
        assert!(text.ends_with(expected), "{text}");
    }

    #[test]
    fn a_session_that_is_down_or_a_router_that_is_silent_is_not_well() {
        for index in [0, 1, 5] {
            let mut told = all();
            told.entries[index].1.state = "Active".into();
            assert!(!asked(told).is_well(), "{index}");
        }
        let mut told = all();
        told.routers[1].refused = Some("its agent is not connected".into());
        told.entries.truncate(4);
        let sessions = asked(told);
        assert!(!sessions.is_well());
        assert!(
            sessions.text().contains("NO ANSWER from n2: its agent is not connected\n"),
            "{}",
            sessions.text()
        );
    }
}
