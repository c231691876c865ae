//! The program itself, on manifests. `UPDATE_GOLDEN=1` writes `golden/*/plan.txt` anew.

mod support;

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use support::{World, run, stderr, stdout};

fn golden(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case)
}

#[test]
fn plain_words() {
    for (case, code) in [("fine", 0), ("wrong", 1), ("lonely", 0)] {
        let folder = golden(case);
        let output = run(&["plan", "-f", folder.join("input.yaml").to_str().unwrap()], "");
        assert_eq!(output.status.code(), Some(code), "{case}: {}", stderr(&output));
        let file = folder.join("plan.txt");
        if env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&file, &output.stdout).unwrap();
        }
        let expected = fs::read_to_string(&file).unwrap_or_default();
        similar_asserts::assert_eq!(
            stdout(&output),
            expected,
            "{case}: when it is right, run with UPDATE_GOLDEN=1"
        );
    }
}

#[test]
fn standard_input_and_several_files_make_one_plan() {
    let file = golden("fine").join("input.yaml");
    let text = fs::read_to_string(&file).unwrap();
    let piped = run(&["plan", "-f", "-"], &text);
    assert_eq!(piped.stdout, run(&["plan", "-f", file.to_str().unwrap()], "").stdout);
    let more = "{ apiVersion: v1, kind: Node, metadata: { name: n3 } }";
    let both = run(&["plan", "-f", file.to_str().unwrap(), "-f", "-"], more);
    assert!(stdout(&both).contains("  n3: VTEP 10.255.0.2"), "{}", stdout(&both));
}

#[test]
fn yaml_is_the_plan() {
    let output = run(&["plan", "-o", "yaml", "-f", golden("wrong").join("input.yaml").to_str().unwrap()], "");
    assert_eq!(output.status.code(), Some(1));
    let plan: serde_yaml::Value = serde_yaml::from_str(stdout(&output)).unwrap();
    let reasons: Vec<&str> =
        plan["notices"].as_sequence().unwrap().iter().map(|n| n["reason"].as_str().unwrap()).collect();
    for reason in ["InvalidVNI", "Encapsulated", "NoVNI", "UnderlayAmbiguous"] {
        assert!(reasons.contains(&reason), "{reason} is not among {reasons:?}");
    }
    assert_eq!(plan["guard"]["quarantined"].as_sequence().unwrap().len(), 2);
}

#[test]
fn json_is_the_same_plan_and_holds_what_changes() {
    let file = golden("fine").join("input.yaml");
    let [json, yaml] =
        ["json", "yaml"].map(|format| run(&["plan", "-o", format, "-f", file.to_str().unwrap()], ""));
    let plan: serde_json::Value = serde_json::from_str(stdout(&json)).unwrap();
    let same: serde_json::Value = serde_yaml::from_str(stdout(&yaml)).unwrap();
    assert_eq!(plan, same);
    let objects: Vec<&str> =
        plan["changes"].as_array().unwrap().iter().map(|c| c["object"].as_str().unwrap()).collect();
    assert!(objects.contains(&"BGPPeer calico-vni-vni-1001"), "{objects:?}");
    assert!(plan["changes"][0]["before"].is_null() && plan["changes"][0]["after"].is_object());
}

#[test]
fn a_cluster_at_rest_changes_in_nothing_and_a_new_pool_in_what_follows_from_it() {
    let rest = run(&["plan", "-f", "-"], &World::well().text());
    assert!(
        stdout(&rest).contains("\nCHANGES (- as it stands, + as it comes to be)\n  none\n"),
        "{}",
        stdout(&rest)
    );
    let pool = serde_json::json!({
        "apiVersion": "projectcalico.org/v3", "kind": "IPPool",
        "metadata": { "name": "more", "annotations": { "calico-vni.io/tenant": "blue" } },
        "spec": { "cidr": "10.202.0.0/16", "natOutgoing": false },
    });
    let changed = run(&["plan", "-f", "-", "-o", "json"], &World::well().with(&[pool]).text());
    let plan: serde_json::Value = serde_json::from_str(stdout(&changed)).unwrap();
    let changes = plan["changes"].as_array().unwrap();
    let objects: Vec<&str> = changes.iter().map(|change| change["object"].as_str().unwrap()).collect();
    assert_eq!(objects, ["BGPFilter calico-vni-blue", "Tenant blue"]);
    assert_eq!(changes[1]["before"]["pools"], serde_json::json!({ "blue": "accepted" }));
    assert_eq!(changes[1]["after"]["pools"], serde_json::json!({ "blue": "accepted", "more": "accepted" }));
}

#[test]
fn a_folder_is_all_its_manifests() {
    let (file, folder) = (golden("fine").join("input.yaml"), golden("fine"));
    let by_folder = run(&["plan", "-f", folder.to_str().unwrap()], "");
    assert_eq!(by_folder.stdout, run(&["plan", "-f", file.to_str().unwrap()], "").stdout);
    assert!(!by_folder.stdout.is_empty());
}

#[test]
fn completion_answers_as_kubectl_asks() {
    let output = run(&["__complete", "plan", "--output", ""], "");
    assert_eq!(
        stdout(&output),
        "table\tFor people: tables and sentences\njson\tFor programs\nyaml\tFor programs, and to read\n:4\n"
    );
    assert_eq!(stdout(&run(&["__complete", "plan", "--filename", ""], "")), ":0\n");
    // No cluster is no error.
    assert_eq!(stdout(&run(&["__complete", "completion", "ba"], "")), "bash\n:4\n");
    for shell in ["bash", "zsh", "fish"] {
        assert!(stdout(&run(&["completion", shell], "")).contains("kubectl-vni"), "{shell}");
    }
}

#[test]
fn what_cannot_be_answered_is_told() {
    for (arguments, stdin, said) in [
        (&["plan", "-f", "nowhere.yaml"][..], "", "nowhere.yaml: No such file"),
        (&["plan", "-f", "-"], "kind: Node", "document 1: apiVersion, kind and metadata.name are needed"),
        (
            &["plan", "-f", "-"],
            "{ apiVersion: calico-vni.io/v1alpha1, kind: Tenant, metadata: { name: red }, spec: { vni: abc } }",
            "Tenant `red`",
        ),
        (&["plan", "-f", "-"], "a: [", "-: "),
        (&["plan", "-o", "wide", "-f", "-"], "", "invalid value 'wide'"),
        (&["plan", "-f", "tests/golden"], "", "tests/golden: there is no .yaml, .yml or .json file in it"),
        (&["plan", "--cluster", "-f", "-"], "", "/nonexistent"),
        (&["plan"], "", "/nonexistent"),
        (&[], "", "Usage: kubectl vni <COMMAND>"),
    ] {
        let output = run(arguments, stdin);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stdout(&output));
        assert!(stderr(&output).contains(said), "{arguments:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn help_has_examples() {
    let output = run(&["plan", "--help"], "");
    assert_eq!(output.status.code(), Some(0));
    assert!(
        stdout(&output).contains("Examples:")
            && stdout(&output).contains("kubectl vni plan -f underlay.yaml")
    );
}
