//! `kubectl vni plan`: what follows from the cluster, from manifests, or from manifests laid over the cluster.

mod changes;
mod report;

use std::{process::ExitCode, sync::Arc};

use calico_vni_planner::{Plan, Snapshot, plan, simulate::settle};
use serde::Serialize;

use self::changes::Change;
use crate::{
    WRONG,
    cli::PlanArguments,
    input::{self, Cluster},
    output,
};

/// The plan, with what it changes.
#[derive(Serialize)]
struct Answer<'p> {
    #[serde(flatten)]
    plan: &'p Plan,
    changes: &'p [Change],
}

/// Answers.
pub async fn run(arguments: &PlanArguments) -> anyhow::Result<ExitCode> {
    let files = input::files(&arguments.filename)?;
    let (now, next) = if arguments.cluster || arguments.filename.is_empty() {
        let cluster = Cluster::connect(&arguments.connection).await?;
        let (api, standing) = cluster.objects().await?;
        let mut now = input::without_passwords(Snapshot::from_objects(standing.clone())?);
        let mut next = input::without_passwords(Snapshot::from_objects(input::overlay(standing, files))?);
        (now.calico_api, next.calico_api) = (api, api);
        (now, next)
    } else {
        let now = input::without_passwords(Snapshot::from_objects(files)?);
        (now.clone(), now)
    };
    let (rest, planned) = to_rest(&next);
    let changes = changes::between(&now, &rest);
    let answer = Answer { plan: &planned, changes: &changes };
    let text = output::render(&answer, arguments.output, || report::text(&now, &rest, &planned, &changes))?;
    output::print(&text)?;
    Ok(if planned.notices.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(WRONG) })
}

/// Where things come to rest if every router obeys.
fn to_rest(snapshot: &Snapshot) -> (Snapshot, Plan) {
    let mut obeyed = snapshot.clone();
    for node in &snapshot.nodes {
        let agent = obeyed.agents.entry(node.metadata.name.clone().unwrap_or_default()).or_default();
        Arc::make_mut(agent).frr_running = true;
    }
    // What does not come to rest is shown as it would be next.
    settle(&obeyed).unwrap_or_else(|| {
        let next = plan(&obeyed);
        (obeyed, next)
    })
}
