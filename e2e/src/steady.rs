//! The outside's handle on steady probes, and what has to come of them.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use anyhow::{Result, bail};

use crate::{
    matrix::{Cell, Place, Protocol},
    nodes::{
        client::Nodes,
        protocol::{Flow, FlowResult},
    },
    topology::PORT,
};

/// Flows that are being sent, until [`Steady::stop`] or until this is dropped.
pub struct Steady {
    nodes: Nodes,
    name: String,
}

impl Drop for Steady {
    fn drop(&mut self) {
        let (nodes, name) = (self.nodes.clone(), std::mem::take(&mut self.name));
        // They were stopped already, or whoever sent them has failed: nobody waits for these results.
        if !name.is_empty() {
            tokio::spawn(async move { drop(nodes.steady_stop(&name).await) });
        }
    }
}

impl Steady {
    /// Starts to send a request of each flow every `pause`.
    pub async fn start(nodes: &Nodes, pause: Duration, flows: Vec<Flow>) -> Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let name = format!("steady-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        nodes.steady(&name, pause, flows).await?;
        Ok(Self { nodes: nodes.clone(), name })
    }

    /// What has come of each flow until now, in their order.
    pub async fn so_far(&self) -> Result<Vec<FlowResult>> {
        self.nodes.steady_so_far(&self.name).await
    }

    /// Ends them; a result for each flow, in their order.
    pub async fn stop(mut self) -> Result<Vec<FlowResult>> {
        let name = std::mem::take(&mut self.name);
        self.nodes.steady_stop(&name).await
    }
}

/// The flow of a cell: the same source, target and way.
pub fn flow(cell: &Cell, places: &[Place]) -> Flow {
    let (from, to, family) = (&places[cell.from], &places[cell.to], cell.way.family);
    Flow {
        netns: from.netns.clone(),
        source: from.addresses.of(family),
        target: to.addresses.of(family),
        port: (cell.way.protocol == Protocol::Tcp).then_some(PORT),
        count_in: to.netns.clone(),
    }
}

/// What came of the flows of some cells, in sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Requests of forbidden flows that were sent or refused by the source's own kernel.
    pub forbidden: u64,
    /// Requests of permitted flows.
    pub permitted: u64,
    /// Of those, how many have no answer.
    pub lost: u64,
    /// The longest time in which a permitted flow had no answer.
    pub longest_gap: Duration,
}

/// Sums up. It is an error when a packet of a forbidden flow arrived, when a flow sent nothing, or when a
/// permitted flow was never answered: then it proves nothing.
pub fn judge(places: &[Place], cells: &[Cell], results: &[FlowResult]) -> Result<Summary> {
    assert_eq!(cells.len(), results.len(), "a result for each cell");
    let mut summary = Summary::default();
    let mut wrong = Vec::new();
    for (cell, result) in cells.iter().zip(results) {
        let what = format!("{} to {} by {}", places[cell.from].name, places[cell.to].name, cell.way);
        let sent = result.sent + result.refused;
        if sent == 0 {
            wrong.push(format!("{what}: nothing was sent"));
        } else if !cell.reach && result.arrived.max(result.answered) > 0 {
            let FlowResult { arrived, answered, .. } = result;
            wrong.push(format!("{what}: of {sent} packets {arrived} arrived and {answered} were answered"));
        } else if cell.reach && result.answered.min(result.arrived) == 0 {
            wrong.push(format!("{what}: of {sent} packets none was answered; {result:?}"));
        }
        if cell.reach {
            summary.permitted += sent;
            summary.lost += sent.saturating_sub(result.answered);
            summary.longest_gap = summary.longest_gap.max(Duration::from_millis(result.longest_gap_ms));
        } else {
            summary.forbidden += sent;
        }
    }
    if wrong.is_empty() { Ok(summary) } else { bail!("{}", wrong.join("; ")) }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;
    use crate::{
        matrix::{Kind, Way},
        topology::Addresses,
    };

    fn place(name: &str) -> Place {
        let addresses = Addresses { v4: Ipv4Addr::LOCALHOST, v6: Ipv6Addr::LOCALHOST };
        Place { name: name.into(), netns: name.into(), addresses, kind: Kind::Outside }
    }

    fn result(sent: u64, arrived: u64, answered: u64) -> FlowResult {
        FlowResult { sent, arrived, answered, longest_gap_ms: 300, ..FlowResult::default() }
    }

    #[test]
    fn forbidden_flows_may_not_arrive_and_permitted_ones_have_to() {
        let places = [place("a"), place("b")];
        let way = Way::ALL[3];
        let cells = [Cell { from: 0, to: 1, way, reach: false }, Cell { from: 1, to: 0, way, reach: true }];
        assert_eq!(flow(&cells[0], &places).port, Some(PORT));
        let judge = |closed, open| judge(&places, &cells, &[closed, open]).map_err(|e| e.to_string());
        let summary = judge(result(10, 0, 0), result(10, 9, 8)).unwrap();
        let longest_gap = Duration::from_millis(300);
        assert_eq!(summary, Summary { forbidden: 10, permitted: 10, lost: 2, longest_gap });
        let leak = judge(result(10, 1, 0), result(10, 9, 8)).unwrap_err();
        assert_eq!(leak, "a to b by TCP over IPv6: of 10 packets 1 arrived and 0 were answered");
        assert!(judge(result(10, 0, 0), result(10, 0, 0)).unwrap_err().contains("none was answered"));
        assert!(judge(result(0, 0, 0), result(10, 9, 8)).unwrap_err().contains("nothing was sent"));
    }
}
