//! Compares the rights that `deploy/rbac.yaml` grants with what was asked of the API server: one that nobody uses is
//! one too many, and one that is refused is one too few.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::Value;

use crate::support::server::{Audited, workspace};

/// Of the replicas' identity and their choice of a leader; the tests of those use them.
const ELSEWHERE: [&str; 5] = ["secrets", "configmaps", "leases", "tokenreviews", "pods"];

/// Group, resource and verb.
type Right = (String, String, String);

/// All that the controller's roles in that text grant.
fn granted(text: &str) -> BTreeSet<Right> {
    let mut rights = BTreeSet::new();
    for document in serde_yaml::Deserializer::from_str(text) {
        let object = Value::deserialize(document).unwrap();
        if object["metadata"]["name"] != "calico-vni-controller" {
            continue;
        }
        for rule in object["rules"].as_array().into_iter().flatten() {
            let words = |field: &str| {
                let list = rule[field].as_array().unwrap_or_else(|| panic!("{rule} has no {field}"));
                list.iter().map(|word| word.as_str().unwrap().to_owned()).collect::<Vec<_>>()
            };
            for group in words("apiGroups") {
                for resource in words("resources") {
                    rights.extend(
                        words("verbs").into_iter().map(|verb| (group.clone(), resource.clone(), verb)),
                    );
                }
            }
        }
    }
    rights.retain(|(_, resource, _)| !ELSEWHERE.contains(&resource.as_str()));
    rights
}

/// What is granted and was not used, and what was refused.
fn differences(granted: &BTreeSet<Right>, asked: &[Audited]) -> Vec<String> {
    let used: BTreeSet<Right> = asked
        .iter()
        .filter(|entry| entry.code < 400)
        .map(|entry| (entry.group.clone(), entry.resource().to_owned(), entry.verb().to_owned()))
        .collect();
    let unused = granted.difference(&used).map(|(group, resource, verb)| {
        format!("nobody used `{verb}` on {resource} of the group `{group}`: take it out of deploy/rbac.yaml")
    });
    let refused = asked
        .iter()
        .filter(|entry| entry.code == 403)
        .map(|entry| format!("`{}` of the group `{}` was refused", entry.what, entry.group));
    unused.chain(refused).collect()
}

/// Fails unless everything that is granted was used and nothing was refused.
pub fn compare(asked: &[Audited]) {
    let text = std::fs::read_to_string(workspace().join("deploy/rbac.yaml")).unwrap();
    let found = differences(&granted(&text), asked);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn a_right_too_many_and_one_too_few_are_found() {
    let role = "
kind: ClusterRole
metadata: { name: calico-vni-controller }
rules:
  - { apiGroups: [a, b], resources: [things], verbs: [list, patch] }
  - { apiGroups: [''], resources: [secrets], verbs: [get] }
---
kind: ClusterRole
metadata: { name: of-people }
rules:
  - { apiGroups: [a], resources: [others], verbs: [list] }
";
    let asked = |group: &str, what: &str, code| Audited {
        group: group.into(),
        what: what.into(),
        code,
        at: jiff::Timestamp::UNIX_EPOCH,
    };
    let mut all = vec![
        asked("a", "list things ", 200),
        asked("a", "patch things x", 200),
        asked("b", "list things ", 200),
        asked("b", "patch things x", 409),
    ];
    let found = differences(&granted(role), &all);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("`patch` on things of the group `b`"), "{found:?}");

    all[3].code = 200;
    all.push(asked("a", "patch things/status x", 403));
    let found = differences(&granted(role), &all);
    assert_eq!(found, ["`patch things/status x` of the group `a` was refused"]);
}
