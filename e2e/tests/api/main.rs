//! The definitions on a real API server: what they take, what they refuse, and in which words.

use std::path::Path;

use calico_vni_e2e::{api::ApiSide, paths};

const UNDERLAY: &str = "
apiVersion: calico-vni.io/v1alpha1
kind: Underlay
metadata: { name: fabric }
spec:
  asn: 65001
  neighbors: [{ address: 192.0.2.1, asn: 65100 }]
  vtepCIDR: 10.255.0.0/24
  interfaces: [{ name: eth1 }]
";

const TENANT: &str = "
apiVersion: calico-vni.io/v1alpha1
kind: Tenant
metadata: { name: red }
spec: { vni: 1001 }
";

async fn apply(api: &ApiSide, yaml: &str) -> Result<String, String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), yaml).unwrap();
    api.kubectl(&["apply", "-f", file.path().to_str().unwrap()]).await.map_err(|e| e.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn definitions_take_what_is_right_and_name_what_is_not() {
    rustls::crypto::ring::default_provider().install_default().ok();
    let dir = tempfile::tempdir().unwrap();
    let programs =
        std::env::var_os("KUBEBUILDER_ASSETS").map_or_else(|| paths::target("kube").unwrap(), Into::into);
    let api = ApiSide::start(dir.path(), &programs).await.unwrap();
    for folder in ["crds/generated", "e2e/calico-crds/v3", "e2e/calico-crds/v1"] {
        let folder = paths::checkout().join(folder);
        let printed = api.kubectl(&["apply", "-f", folder.to_str().unwrap()]).await.unwrap();
        assert_eq!(
            printed.lines().count(),
            std::fs::read_dir(Path::new(&folder)).unwrap().count(),
            "{printed}"
        );
    }
    api.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"]).await.unwrap();

    // Every example is what the API server takes.
    let examples = paths::checkout().join("examples");
    let printed =
        api.kubectl(&["apply", "--dry-run=server", "-f", examples.to_str().unwrap()]).await.unwrap();
    assert_eq!(printed.lines().count(), std::fs::read_dir(&examples).unwrap().count(), "{printed}");

    apply(&api, UNDERLAY).await.unwrap();
    apply(&api, TENANT).await.unwrap();
    // Defaults are in the object, so a reader of it need not know them.
    let hold = api.kubectl(&[
        "get",
        "underlay",
        "fabric",
        "-o",
        "jsonpath={.spec.neighbors[0].holdTimeSeconds} {.spec.hostLinkCIDR}",
    ]);
    assert_eq!(hold.await.unwrap(), "9 169.254.192.0/18");
    let table = api.kubectl(&["get", "tenants"]).await.unwrap();
    let columns: Vec<&str> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(columns, ["NAME", "VNI", "POOLS", "NODES", "PREFIXES", "READY", "AGE"]);

    let tenant = |name: &str, spec: &str| TENANT.replace("red", name).replace("{ vni: 1001 }", spec);
    for (what, yaml, words) in [
        ("VNI of 0", tenant("x", "{ vni: 0 }"), vec!["spec.vni", "greater than or equal to 1"]),
        (
            "VNI above 24 bits",
            tenant("x", "{ vni: 16777216 }"),
            vec!["spec.vni", "less than or equal to 16777215"],
        ),
        ("VNI that is no number", tenant("x", "{ vni: abc }"), vec!["spec.vni", "integer"]),
        ("VNI changed", tenant("red", "{ vni: 1002 }"), vec!["vni cannot change", "make another Tenant"]),
        ("VNI taken away", tenant("red", "{ }"), vec!["vni cannot change"]),
        ("long name", tenant(&"x".repeat(41), "{ vni: 3 }"), vec!["metadata.name", "at most 40"]),
        ("name with a dot", tenant("a.b", "{ vni: 3 }"), vec!["metadata.name"]),
        (
            "route target",
            tenant("x", "{ routeTargets: { import: [nonsense] } }"),
            vec!["routeTargets.import[0]"],
        ),
        ("placement", tenant("x", "{ placement: Everywhere }"), vec!["placement", "OnDemand", "AllNodes"]),
        (
            "ASN that Calico cannot hold",
            UNDERLAY.replace("asn: 65001", "asn: 2147483648"),
            vec!["spec.asn", "2147483647"],
        ),
        (
            "neighbour's address",
            UNDERLAY.replace("192.0.2.1", "leaf"),
            vec!["neighbors[].address", "IP address"],
        ),
        ("VTEP prefix", UNDERLAY.replace("10.255.0.0/24", "10.255.0.0"), vec!["vtepCIDR", "10.255.0.0/24"]),
        (
            "VTEP prefix changed",
            UNDERLAY.replace("10.255.0.0/24", "10.254.0.0/24"),
            vec!["vtepCIDR cannot change"],
        ),
        ("interface", UNDERLAY.replace("eth1", "an-interface-name"), vec!["interfaces[0].name"]),
        (
            "link prefix",
            UNDERLAY.replace("asn: 65001", "asn: 65001\n  hostLinkCIDR: fd00::/64"),
            vec!["hostLinkCIDR", "IPv4"],
        ),
    ] {
        let error = apply(&api, &yaml).await.expect_err(what);
        for word in words {
            assert!(error.contains(word), "{what}: `{word}` is not in: {error}");
        }
    }
}
