//! `kubectl vni doctor`: preconditions and the usual mistakes, each with the true cause and the remedy.
//!
//! [`facts`] in, [`finding`]s out, by the planner's own validation and by what statuses tell; [`read`] alone touches the
//! cluster. It works with the controller gone.

mod around;
mod controller;
mod facts;
mod finding;
mod installed;
mod nodes;
mod objects;
mod planned;
mod read;
mod told;

use std::{fmt::Write, process::ExitCode};

use calico_vni_planner::plan;
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

use self::{
    controller::Controller,
    facts::{Facts, Unread},
    finding::{Finding, Level, lasting},
};
use crate::{
    UNANSWERED, WRONG,
    cli::DoctorArguments,
    input::{self, Cluster},
    output,
};

/// The answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Diagnosis {
    findings: Vec<Finding>,
    not_checked: Vec<Unread>,
}

/// Answers.
pub async fn run(arguments: &DoctorArguments) -> anyhow::Result<ExitCode> {
    let namespace = &arguments.namespace;
    let diagnosis = if arguments.source.filename.is_empty() {
        let cluster = Cluster::connect(&arguments.source.connection).await?;
        let mut facts = read::facts(&cluster, namespace).await?;
        let mut findings = diagnose(&facts);
        if findings.iter().any(|finding| finding.fleeting) {
            // What is only on its way is there by then.
            tokio::time::sleep(read::SECOND_LOOK).await;
            facts = read::facts(&cluster, namespace).await?;
            findings = lasting(&findings, diagnose(&facts));
        }
        Diagnosis { findings, not_checked: facts.unread }
    } else {
        let now = arguments.now.unwrap_or_else(Timestamp::now);
        let facts = Facts::from_objects(input::files(&arguments.source.filename)?, namespace, now)?;
        Diagnosis { findings: diagnose(&facts), not_checked: facts.unread }
    };
    output::print(&output::render(&diagnosis, arguments.output, || diagnosis.text())?)?;
    Ok(diagnosis.code())
}

/// All that is wrong, the worst first.
fn diagnose(facts: &Facts) -> Vec<Finding> {
    let plan = plan(&facts.snapshot);
    let mut found = installed::check(facts);
    if found.iter().any(|finding| finding.reason == "CalicoMissing" || finding.reason == "DefinitionMissing")
    {
        // Everything else would only follow from it.
        return found;
    }
    let (known, of_controller) = controller::check(facts, &plan);
    found.extend(of_controller);
    found.extend(planned::check(facts, &plan));
    found.extend(objects::check(facts, &plan, known));
    if known != Controller::Gone {
        // With nobody to write them, statuses are old.
        found.extend(nodes::check(facts, &plan));
    }
    found.extend(around::check(facts, &plan));
    found.sort();
    found.dedup();
    found
}

impl Diagnosis {
    fn code(&self) -> ExitCode {
        if self.findings.iter().any(|finding| finding.level == Level::Problem) {
            ExitCode::from(WRONG)
        } else if self.not_checked.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::from(UNANSWERED)
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        for (level, heading) in [(Level::Problem, "PROBLEMS"), (Level::Hint, "HINTS")] {
            let of_level: Vec<&Finding> = self.findings.iter().filter(|f| f.level == level).collect();
            if of_level.is_empty() {
                continue;
            }
            let _ = writeln!(text, "{heading}");
            for Finding { about, reason, cause, remedy, commands, .. } in of_level {
                let _ = writeln!(text, "  {about}: {reason}\n    cause: {cause}");
                if !remedy.is_empty() {
                    let _ = writeln!(text, "    remedy: {remedy}");
                }
                for command in commands {
                    let _ = writeln!(text, "      $ {command}");
                }
            }
            text.push('\n');
        }
        if !self.not_checked.is_empty() {
            let _ = writeln!(text, "NOT CHECKED");
            for Unread { what, why } in &self.not_checked {
                let _ = writeln!(text, "  {what}: {why}");
            }
            text.push('\n');
        }
        let count = |level, word: &str| match self.findings.iter().filter(|f| f.level == level).count() {
            1 => format!("1 {word}"),
            many => format!("{many} {word}s"),
        };
        let (problems, hints) = (count(Level::Problem, "problem"), count(Level::Hint, "hint"));
        let any = self.findings.iter().any(|finding| finding.level == Level::Problem);
        let _ = match (any, self.not_checked.is_empty()) {
            (false, true) => writeln!(text, "No problem was found ({hints})."),
            (false, false) => writeln!(text, "No problem was found in what could be read ({hints})."),
            (true, _) => writeln!(text, "Found: {problems}, {hints}."),
        };
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_calico_nothing_else_is_looked_at() {
        let facts = Facts { without_calico: true, ..Facts::default() };
        let reasons: Vec<String> = diagnose(&facts).into_iter().map(|finding| finding.reason).collect();
        assert_eq!(reasons, ["CalicoMissing"]);
    }

    #[test]
    fn what_could_not_be_read_is_no_health() {
        let unread = Unread { what: "leases".into(), why: "forbidden".into() };
        let of = |findings| Diagnosis { findings, not_checked: vec![unread.clone()] };
        let hint = Finding::hint("a", "R", "c");
        assert_eq!(of(vec![hint.clone()]).code(), ExitCode::from(UNANSWERED));
        assert_eq!(of(vec![hint, Finding::problem("b", "R", "c")]).code(), ExitCode::from(WRONG));
        let text = of(Vec::new()).text();
        assert!(
            text.contains("NOT CHECKED\n  leases: forbidden\n") && text.contains("in what could be read"),
            "{text}"
        );
    }
}
