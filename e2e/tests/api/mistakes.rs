//! Mistakes: each fixture below `mistakes/` holds one, the same done right, and the words by which it is refused.
//!
//! `right` and `wrong` are merged into the object `base` of `bases.yaml`. With `stands`, that object is made first (and
//! gets `status`), and both are changes of it. `as` is who does it.

use std::time::Duration;

use calico_vni_e2e::wait;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::server::{Server, bases, fixtures, merged};

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Mistake {
    base: String,
    #[serde(default = "break_glass")]
    r#as: String,
    right_as: Option<String>,
    stands: Option<Value>,
    status: Option<Value>,
    right: Value,
    wrong: Value,
    says: Vec<String>,
}

fn break_glass() -> String {
    "break-glass".into()
}

/// Gives the tenants their pools, and waits until the policies are in force: the API server takes a moment to read them.
pub async fn world(server: &Server) {
    let pools = [
        (
            "red",
            json!([
                { "name": "red", "cidr": "10.200.0.0/16", "accepted": true },
                { "name": "red-six", "cidr": "fd00:200::/64", "accepted": false },
            ]),
        ),
        (
            "open",
            json!([
                { "name": "open", "cidr": "10.201.0.0/16", "accepted": true },
                { "name": "open-six", "cidr": "fd00:201::/64", "accepted": true },
            ]),
        ),
    ];
    let tenant = |name: &str| merged(bases()["tenant"].clone(), &json!({ "metadata": { "name": name } }));
    for (name, pools) in pools {
        let status = json!({ "status": { "pools": pools } });
        server.merge("break-glass", &tenant(name), Some("status"), &status, false).await.unwrap();
    }
    for policy in ["pool-vni-word", "pod-names-ipv6-pool", "node-index-by-kubelet"] {
        let mistake = &fixtures::<Mistake>("mistakes")[policy];
        wait::until(&format!("the policy that refuses {policy}"), Duration::from_mins(2), async || {
            let (_, wrong) = attempt(server, &bases()[&mistake.base], mistake).await;
            anyhow::ensure!(
                wrong.is_err_and(|error| error.contains(&mistake.says[0])),
                "it is not yet in force"
            );
            Ok(())
        })
        .await
        .unwrap();
    }
}

/// Every mistake is refused in words that name the field, the value and the way out; what is right is taken.
pub async fn refused(server: &Server) {
    let (bases, mistakes) = (bases(), fixtures::<Mistake>("mistakes"));
    assert!(mistakes.len() >= 120, "{} mistakes", mistakes.len());
    let mut failures = Vec::new();
    for (name, mistake) in &mistakes {
        let base = &bases[&mistake.base];
        let (right, wrong) = attempt(server, base, mistake).await;
        if let Err(error) = right {
            failures.push(format!("{name}: what is right is refused: {error}"));
        }
        match wrong {
            Ok(_) => failures.push(format!("{name}: the mistake is taken")),
            Err(error) => {
                let missing: Vec<_> = mistake.says.iter().filter(|word| !error.contains(*word)).collect();
                if !missing.is_empty() {
                    failures.push(format!("{name}: {missing:?} is not in: {error}"));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), mistakes.len(), failures.join("\n"));
}

type Answer = Result<Value, String>;

async fn attempt(server: &Server, base: &Value, mistake: &Mistake) -> (Answer, Answer) {
    let right_as = mistake.right_as.as_ref().unwrap_or(&mistake.r#as);
    let Some(stands) = &mistake.stands else {
        return (
            server.create(right_as, &merged(base.clone(), &mistake.right), true).await,
            server.create(&mistake.r#as, &merged(base.clone(), &mistake.wrong), true).await,
        );
    };
    let stands = merged(base.clone(), stands);
    server.create("break-glass", &stands, false).await.unwrap();
    if let Some(status) = &mistake.status {
        let status = json!({ "status": status });
        server.merge("break-glass", &stands, Some("status"), &status, false).await.unwrap();
    }
    let answers = (
        server.merge(right_as, &stands, None, &mistake.right, true).await,
        server.merge(&mistake.r#as, &stands, None, &mistake.wrong, true).await,
    );
    // A namespace is gone only later, so it stays, without what the fixture gave it.
    if stands["kind"] != "Namespace" {
        server.delete(&stands).await;
    }
    answers
}
