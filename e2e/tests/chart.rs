//! The chart: what it refuses, that a real API server takes whatever it makes, how little its pods may, and that what is
//! generated of it is fresh. Needs helm (`make helm`).

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use calico_vni_e2e::{api::ApiSide, paths};
use serde::Deserialize as _;
use serde_json::Value;

/// Values for different clusters.
const SETS: [&str; 5] = ["default", "own-certificates", "everything", "ipv6", "small"];

fn helm(args: &[&str]) -> Output {
    let helm = std::env::var_os("HELM")
        .map_or_else(|| paths::target("tools").unwrap().join("bin/helm"), PathBuf::from);
    let output = Command::new(&helm).current_dir(paths::checkout()).args(args).output();
    output.unwrap_or_else(|error| panic!("{}: {error}; `make helm` builds it", helm.display()))
}

fn printed(output: &Output) -> String {
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
    text
}

/// All that the chart makes with a set of values.
fn rendered(set: &str) -> String {
    let values = format!("e2e/tests/chart/{set}.yaml");
    let args = [
        "template",
        "calico-vni",
        "deploy/helm/calico-vni",
        "--namespace",
        "calico-vni",
        "--values",
        &values,
    ];
    let output = helm(&args);
    printed(&output);
    String::from_utf8(output.stdout).unwrap()
}

fn objects(text: &str) -> Vec<Value> {
    let documents = serde_yaml::Deserializer::from_str(text);
    let objects: Vec<Value> = documents.map(|document| Value::deserialize(document).unwrap()).collect();
    objects.into_iter().filter(|object| !object.is_null()).collect()
}

#[test]
fn it_is_in_good_form() {
    for set in SETS {
        printed(&helm(&[
            "lint",
            "--strict",
            "deploy/helm/calico-vni",
            "-f",
            &format!("e2e/tests/chart/{set}.yaml"),
        ]));
    }
}

#[test]
fn a_bad_value_is_refused_by_its_name() {
    for (set, told) in [
        ("controller.replica=3", "at '/controller': additional properties 'replica' not allowed"),
        ("controller.replicas=0", "at '/controller/replicas': minimum: got 0, want 1"),
        ("controller.linger=600", "at '/controller/linger': got number, want string"),
        ("controller.address=any", "at '/controller/address': 'any' is not valid ipv4"),
        ("controller.image.digest=abcd", "at '/controller/image/digest': 'abcd' does not match"),
        ("controller.image.repository=calico-vni:1", "at '/controller/image/repository': 'calico-vni:1'"),
        ("router.image.pullPolicy=Sometimes", "value must be one of 'Always', 'IfNotPresent', 'Never'"),
        ("router.maxUnavailable=half", "at '/router/maxUnavailable'"),
        ("router.log.format=xml", "at '/router/log/format': value must be one of 'text', 'json'"),
        ("metrics.interval=often", "at '/metrics/interval': 'often' does not match"),
        ("tls.secretName=a_b", "at '/tls/secretName': 'a_b' does not match"),
        ("underlay.create=true", "at '/underlay/spec': missing properties 'asn'"),
    ] {
        let output = helm(&["template", "calico-vni", "deploy/helm/calico-vni", "--set", set]);
        let told_instead = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{set} is taken");
        assert!(told_instead.contains(told), "{set}: {told_instead}");
    }
}

#[tokio::test]
async fn a_real_api_server_takes_whatever_it_makes() {
    let dir = tempfile::tempdir().unwrap();
    let programs =
        std::env::var_os("KUBEBUILDER_ASSETS").map_or_else(|| paths::target("kube").unwrap(), Into::into);
    let api = ApiSide::start(&dir.path().join("api"), &programs).await.unwrap();
    // A namespace, and kinds that a set has an object of, have to be there for the rest to be looked at.
    let crds = paths::checkout().join("deploy/helm/calico-vni/crds");
    let monitoring = paths::checkout().join("e2e/tests/chart/monitoring.yaml");
    for definitions in [crds, monitoring] {
        api.kubectl(&["apply", "-f", definitions.to_str().unwrap()]).await.unwrap();
    }
    api.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"]).await.unwrap();
    api.kubectl(&["create", "namespace", "calico-vni"]).await.unwrap();
    for set in SETS {
        let text = rendered(set);
        let file = dir.path().join(format!("{set}.yaml"));
        fs::write(&file, &text).unwrap();
        let file = file.to_str().unwrap();
        let args = ["apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", file];
        let taken = api.kubectl(&args).await.unwrap_or_else(|error| panic!("{set}: {error}"));
        assert_eq!(taken.lines().count(), objects(&text).len(), "{set}: {taken}");
    }

    // For good, as a user without helm does it, and twice: an upgrade to the same is one that changes nothing.
    let plain = paths::checkout().join("deploy/calico-vni.yaml");
    let plain = plain.to_str().unwrap();
    let generations = async || {
        let path = "jsonpath={range .items[*]}{.kind}/{.metadata.name} {.metadata.generation}{\"\\n\"}{end}";
        api.kubectl(&["get", "-f", plain, "-o", path]).await.unwrap()
    };
    api.kubectl(&["apply", "-f", plain]).await.unwrap();
    let first = generations().await;
    assert!(first.contains("DaemonSet/calico-vni-agent 1"), "{first}");
    api.kubectl(&["apply", "-f", plain]).await.unwrap();
    similar_asserts::assert_eq!(first, generations().await);
}

#[test]
fn one_container_is_privileged_and_ends_at_once() {
    for set in SETS {
        let mut seen = BTreeMap::new();
        for object in objects(&rendered(set)) {
            let pod = &object["spec"]["template"]["spec"];
            for (list, once) in [("initContainers", true), ("containers", false)] {
                for container in pod[list].as_array().into_iter().flatten() {
                    let name = container["name"].as_str().unwrap().to_owned();
                    let security = &container["securityContext"];
                    assert_eq!(security["readOnlyRootFilesystem"], true, "{set}: {name}");
                    if once {
                        assert_eq!(
                            (security["privileged"].as_bool(), &container["args"][0]),
                            (Some(true), &"init".into())
                        );
                    } else {
                        assert!(security["privileged"].is_null(), "{set}: {name}");
                        assert_eq!(security["allowPrivilegeEscalation"], false, "{set}: {name}");
                        assert_eq!(
                            security["capabilities"]["drop"],
                            serde_json::json!(["ALL"]),
                            "{set}: {name}"
                        );
                        assert_eq!(
                            pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault",
                            "{set}: {name}"
                        );
                    }
                    let added = security["capabilities"]["add"].as_array().map_or(0, Vec::len);
                    seen.insert(name, added);
                }
            }
            assert!(
                pod["hostPID"].is_null()
                    && pod["hostIPC"].is_null()
                    && pod["shareProcessNamespace"].is_null()
            );
        }
        let expected = [("agent", 5), ("controller", 0), ("frr", 10), ("netns", 0)];
        assert_eq!(seen, expected.map(|(name, added)| (name.to_owned(), added)).into(), "{set}");
    }
}

#[test]
fn what_is_generated_is_fresh() {
    let dir = tempfile::tempdir().unwrap();
    let script = paths::checkout().join("deploy/helm/render.sh");
    printed(&Command::new(script).arg(dir.path()).output().unwrap());
    let mut files: Vec<String> = ["calico-vni.yaml", "rbac.yaml", "admission.yaml"].map(str::to_owned).into();
    let here = |folder: &Path| {
        let names = fs::read_dir(folder.join("helm/calico-vni/crds")).unwrap();
        let mut names: Vec<String> = names.map(|n| n.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let deploy = paths::checkout().join("deploy");
    assert_eq!(here(&deploy), here(dir.path()), "definitions in the chart: run `make generate`");
    files.extend(here(&deploy).iter().map(|name| format!("helm/calico-vni/crds/{name}")));
    for file in files {
        let [found, made] =
            [&deploy, &dir.path().to_owned()].map(|top| fs::read_to_string(top.join(&file)).unwrap());
        assert!(found == made, "deploy/{file} is stale: run `make generate`");
    }
}

#[test]
fn chart_and_programs_are_of_one_version() {
    let chart = fs::read_to_string(paths::checkout().join("deploy/helm/calico-vni/Chart.yaml")).unwrap();
    let chart: Value = serde_yaml::from_str(&chart).unwrap();
    assert_eq!(
        (&chart["version"], &chart["appVersion"]),
        (&env!("CARGO_PKG_VERSION").into(), &env!("CARGO_PKG_VERSION").into())
    );
}
