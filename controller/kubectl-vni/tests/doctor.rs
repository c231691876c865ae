//! The doctor on changes of a cluster in which all is well. Each file below `world/doctor` is one situation: what is
//! changed, and every finding that there has to be, with words of its cause and remedy. There must be no other: what only
//! follows from a cause is no cause.
//!
//! `UPDATE_GOLDEN=1` writes `world/doctor/*.txt` anew: what people read.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::PathBuf,
};

use serde::Deserialize;
use serde_json::Value;

use support::{World, run, stderr, stdout, world_folder};

const NOW: [&str; 2] = ["--now", "2026-01-10T12:00:00Z"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    #[serde(default)]
    change: Vec<Value>,
    #[serde(default)]
    gone: Vec<String>,
    #[serde(default = "one")]
    code: i32,
    /// Object, reason, words.
    finds: BTreeMap<String, BTreeMap<String, Vec<String>>>,
}

fn one() -> i32 {
    1
}

fn cases() -> BTreeMap<String, (PathBuf, Case)> {
    let mut cases = BTreeMap::new();
    for entry in fs::read_dir(world_folder().join("doctor")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "yaml") {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let case: Case = serde_yaml::from_str(&fs::read_to_string(&path).unwrap())
                .unwrap_or_else(|error| panic!("{name}: {error}"));
            cases.insert(name, (path, case));
        }
    }
    assert!(!cases.is_empty());
    cases
}

#[test]
fn a_well_cluster_has_no_finding() {
    let output = run(&[&["doctor", "-f", "-"], &NOW[..]].concat(), &World::well().text());
    assert_eq!((output.status.code(), stdout(&output)), (Some(0), "No problem was found (0 hints).\n"));
}

#[test]
fn each_situation_has_its_findings_and_no_others() {
    let mut wrong = Vec::new();
    for (name, (path, case)) in cases() {
        let text = World::well().without(&case.gone).with(&case.change).text();
        let output = run(&[&["doctor", "-o", "json", "-f", "-"], &NOW[..]].concat(), &text);
        let Ok(answer) = serde_json::from_str::<Value>(stdout(&output)) else {
            wrong.push(format!("{name}: {}", stderr(&output)));
            continue;
        };
        if output.status.code() != Some(case.code) {
            wrong.push(format!("{name}: exit code {:?}", output.status.code()));
        }
        let word = |finding: &Value, field: &str| finding[field].as_str().unwrap().to_owned();
        let findings = answer["findings"].as_array().unwrap();
        let found: BTreeSet<(String, String)> =
            findings.iter().map(|f| (word(f, "about"), word(f, "reason"))).collect();
        let expected: BTreeSet<(String, String)> = (case.finds.iter())
            .flat_map(|(about, reasons)| reasons.keys().map(move |reason| (about.clone(), reason.clone())))
            .collect();
        if found != expected {
            wrong.push(format!("{name}: found {found:?}, not {expected:?}"));
            continue;
        }
        for (about, reason, words) in case
            .finds
            .iter()
            .flat_map(|(about, all)| all.iter().map(move |(reason, words)| (about, reason, words)))
        {
            let of = |f: &&Value| f["about"] == **about && f["reason"] == **reason;
            let said: Vec<String> = findings.iter().filter(of).map(said).collect();
            for missing in words.iter().filter(|word| !said.iter().any(|said| said.contains(*word))) {
                wrong.push(format!("{name}: `{missing}` is not in {said:?}"));
            }
        }
        let people = run(&[&["doctor", "-f", "-"], &NOW[..]].concat(), &text);
        let golden = path.with_extension("txt");
        if env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&golden, &people.stdout).unwrap();
        }
        if fs::read_to_string(&golden).unwrap_or_default() != stdout(&people) {
            wrong.push(format!(
                "{name}: reads otherwise; when it is right, run with UPDATE_GOLDEN=1:\n{}",
                stdout(&people)
            ));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

fn said(finding: &Value) -> String {
    let commands = finding["commands"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let texts = [finding["cause"].as_str(), finding["remedy"].as_str()].into_iter().flatten();
    texts.chain(commands).collect::<Vec<_>>().join("\n")
}

#[test]
fn every_reason_is_explained_in_the_documents() {
    let page = world_folder().join("../../../../docs/troubleshooting.md");
    let page = fs::read_to_string(page).unwrap();
    for (name, (_, case)) in cases() {
        for reason in case.finds.values().flat_map(BTreeMap::keys) {
            assert!(
                page.contains(&format!("`{reason}`")),
                "{reason} of {name} has no row in docs/troubleshooting.md"
            );
        }
    }
}

#[test]
fn what_is_no_answer_is_told() {
    for (arguments, stdin, said) in [
        (&["doctor", "-f", "-"][..], "a: [", "-: "),
        (&["doctor", "--now", "2026-01-10T12:00:00Z"], "", "--filename <FILE>"),
        (&["doctor"], "", "/nonexistent"),
    ] {
        let output = run(arguments, stdin);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stdout(&output));
        assert!(stderr(&output).contains(said), "{arguments:?}: {}", stderr(&output));
    }
}
