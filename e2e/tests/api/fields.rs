//! Fields: each fixture below `fields/` sets one, and it comes back as it was written, by the API server and by our types.

use std::collections::BTreeSet;

use calico_vni_crds::{Tenant, Underlay, generate};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrArray,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::server::{Server, bases, fixtures, merged};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Field {
    base: String,
    set: Value,
}

/// All fields are set by some fixture, and none is lost.
pub async fn kept(server: &Server) {
    let bases = bases();
    let mut set = BTreeSet::new();
    for (name, field) in fixtures::<Field>("fields") {
        let object = merged(bases[&field.base].clone(), &field.set);
        let stored =
            server.create("break-glass", &object, true).await.unwrap_or_else(|e| panic!("{name}: {e}"));
        holds(&stored, &object, &name);
        let ours = match field.base.as_str() {
            "tenant" => serde_json::to_value(serde_json::from_value::<Tenant>(stored).unwrap()),
            _ => serde_json::to_value(serde_json::from_value::<Underlay>(stored).unwrap()),
        };
        holds(&ours.unwrap(), &object, &name);
        paths(&field.base, &field.set["spec"], &mut set);
    }
    let mut all = BTreeSet::new();
    for (base, crd) in ["tenant", "underlay"].into_iter().zip(generate::definitions()) {
        let schema = crd.spec.versions[0].schema.clone().unwrap().open_api_v3_schema.unwrap();
        leaves(base, &schema.properties.unwrap()["spec"], &mut all);
    }
    let missing: Vec<_> = all.difference(&set).collect();
    assert!(missing.is_empty(), "no fixture sets {missing:#?}");
}

/// Whether all of `wanted` is in `found`; what is empty may be left out.
fn holds(found: &Value, wanted: &Value, what: &str) {
    match wanted {
        Value::Object(fields) => {
            for (key, value) in fields.iter().filter(|(_, value)| **value != json!({})) {
                holds(&found[key], value, &format!("{what}.{key}"));
            }
        }
        Value::Array(items) if found.as_array().is_some_and(|f| f.len() == items.len()) => {
            items.iter().enumerate().for_each(|(i, item)| holds(&found[i], item, &format!("{what}[{i}]")));
        }
        other => assert_eq!(found, other, "{what}"),
    }
}

fn paths(path: &str, value: &Value, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) if path.ends_with("matchLabels") || fields.is_empty() => {
            into.insert(path.to_owned());
        }
        Value::Object(fields) => {
            for (key, value) in fields {
                paths(&format!("{path}.{key}"), value, into);
            }
        }
        Value::Array(items) if items.iter().any(Value::is_object) => {
            for item in items {
                paths(path, item, into);
            }
        }
        _ => {
            into.insert(path.to_owned());
        }
    }
}

fn leaves(path: &str, schema: &JSONSchemaProps, into: &mut BTreeSet<String>) {
    let items = match &schema.items {
        Some(JSONSchemaPropsOrArray::Schema(items)) if items.properties.is_some() => items,
        _ => schema,
    };
    match &items.properties {
        Some(fields) => fields.iter().for_each(|(key, field)| leaves(&format!("{path}.{key}"), field, into)),
        None => {
            into.insert(path.to_owned());
        }
    }
}
