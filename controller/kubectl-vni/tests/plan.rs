//! The program itself, on manifests. `UPDATE_GOLDEN=1` writes `golden/*/plan.txt` anew.

use std::{
    env, fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

fn golden(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case)
}

fn run(arguments: &[&str], stdin: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_kubectl-vni"))
        .args(arguments)
        // Nobody's cluster is asked by accident.
        .env("KUBECONFIG", "/nonexistent")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may have refused its arguments and gone before it read this.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    child.wait_with_output().unwrap()
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
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
        (&["plan", "-o", "table", "-f", "-"], "", "invalid value 'table'"),
        (&["plan", "-f", "-", "--context", "x"], "", "cannot be used with"),
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
