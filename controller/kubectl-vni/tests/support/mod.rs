//! Runs the program, and makes clusters to run it on.
// Each test takes what it needs of it.
#![allow(dead_code)]

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde::Deserialize;
use serde_json::Value;

/// Runs it with these arguments and this standard input.
pub fn run(arguments: &[&str], stdin: &str) -> Output {
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

pub fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

pub fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

/// Where the clusters are.
pub fn world_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/world")
}

/// A cluster, as a list of objects.
pub struct World(Vec<Value>);

impl World {
    /// In which all is well.
    pub fn well() -> Self {
        let text = fs::read_to_string(world_folder().join("well.yaml")).unwrap();
        Self(serde_yaml::Deserializer::from_str(&text).map(|one| Value::deserialize(one).unwrap()).collect())
    }

    /// Without these, each `Kind name`.
    pub fn without(mut self, gone: &[String]) -> Self {
        for one in gone {
            let before = self.0.len();
            self.0.retain(|object| {
                format!("{} {}", text(object, "/kind"), text(object, "/metadata/name")) != *one
            });
            assert_eq!(self.0.len(), before - 1, "{one}");
        }
        self
    }

    /// With these changes, merged into the object of their kind, name and namespace; with an `apiVersion`, a new object.
    pub fn with(mut self, changes: &[Value]) -> Self {
        for change in changes {
            if change["apiVersion"].is_string() {
                self.0.push(change.clone());
                continue;
            }
            let key =
                |object: &Value| ["/kind", "/metadata/name", "/metadata/namespace"].map(|p| text(object, p));
            let object = self.0.iter_mut().find(|object| key(object) == key(change));
            merge(object.unwrap_or_else(|| panic!("there is no {change}")), change);
        }
        self
    }

    /// As documents.
    pub fn text(&self) -> String {
        self.0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n---\n")
    }
}

fn text(object: &Value, pointer: &str) -> String {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn merge(target: &mut Value, patch: &Value) {
    let (Some(fields), Some(patch)) = (target.as_object_mut(), patch.as_object()) else {
        *target = patch.clone();
        return;
    };
    for (key, value) in patch {
        if value.is_null() {
            fields.remove(key);
        } else {
            merge(fields.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}
