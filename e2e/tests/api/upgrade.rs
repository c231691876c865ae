//! Upgrades: a definition of the next version with one more field, and this version's types and patches beside it.

use std::time::Duration;

use calico_vni_crds::{Tenant, TenantStatus, generate, keys};
use calico_vni_e2e::{api::User, wait};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    core::DynamicObject,
};
use serde_json::json;

use crate::server::{Server, bases, merged};

/// What an older one wrote the newer reads; what the newer wrote stays while the older patches beside it.
pub async fn unknown_fields_stay(server: &Server) {
    let client = server.api.client(User::Admin).await.unwrap();
    let tenants: Api<Tenant> = Api::all(client.clone());
    let base = |name: &str, vni: u32| {
        let change = json!({ "metadata": { "name": name }, "spec": { "vni": vni } });
        merged(bases()["tenant"].clone(), &change)
    };
    server.create("break-glass", &base("older", 81), false).await.unwrap();
    let older = tenants.get("older").await.unwrap();

    let [this, _] = generate::definitions();
    define(&client, &next(this.clone())).await;
    let newer = merged(base("newer", 82), &json!({ "spec": { "colour": "crimson" } }));
    wait::until("the newer definition to be served", Duration::from_mins(2), async || {
        // Strict about fields, so it is refused for as long as the older definition is in force.
        server.create("break-glass", &newer, true).await.map(drop).map_err(anyhow::Error::msg)
    })
    .await
    .unwrap();
    server.create("break-glass", &newer, false).await.unwrap();
    assert_eq!(
        tenants.get("older").await.unwrap().spec,
        older.spec,
        "an older object reads as it was written"
    );
    let colour = async || {
        let resource = kube::core::ApiResource::erase::<Tenant>(&());
        let object = Api::<DynamicObject>::all_with(client.clone(), &resource).get("newer").await.unwrap();
        object.data["spec"]["colour"].clone()
    };

    // What the controller writes to a Tenant: its status by server-side apply, finalizers and allocations by merge.
    let status = TenantStatus { vni: Some(82), ..TenantStatus::default() };
    let apply = json!({ "apiVersion": "calico-vni.io/v1alpha1", "kind": "Tenant", "status": status });
    let params = PatchParams::apply(keys::FIELD_MANAGER).force();
    tenants.patch_status("newer", &params, &Patch::Apply(&apply)).await.unwrap();
    let merge = json!({ "metadata": { "finalizers": [keys::FINALIZER] } });
    tenants.patch("newer", &PatchParams::default(), &Patch::Merge(&merge)).await.unwrap();
    let link = json!({ "status": { "linkIndex": 9 } });
    tenants.patch_status("newer", &PatchParams::default(), &Patch::Merge(&link)).await.unwrap();
    let read = tenants.get("newer").await.unwrap();
    assert_eq!((read.spec.vni, read.status.unwrap().link_index), (Some(82), Some(9)));
    assert_eq!(colour().await, "crimson");
    // Back to this version: the field is out of sight, and comes back as long as nobody wrote the object.
    define(&client, &this).await;
    wait::until("this definition to be served again", Duration::from_mins(2), async || {
        anyhow::ensure!(colour().await.is_null(), "the next version's field is still shown");
        Ok(())
    })
    .await
    .unwrap();
    define(&client, &next(this.clone())).await;
    wait::until("the newer definition to be served again", Duration::from_mins(2), async || {
        anyhow::ensure!(colour().await == "crimson", "the next version's field is not shown");
        Ok(())
    })
    .await
    .unwrap();
    let release = json!({ "metadata": { "finalizers": null } });
    tenants.patch("newer", &PatchParams::default(), &Patch::Merge(&release)).await.unwrap();
    assert_eq!(colour().await, "crimson");
    define(&client, &this).await;
}

/// The same definition with one more optional field.
fn next(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    let schema = crd.spec.versions[0].schema.as_mut().and_then(|s| s.open_api_v3_schema.as_mut()).unwrap();
    let spec = schema.properties.as_mut().unwrap().get_mut("spec").unwrap();
    let text = serde_json::from_value(json!({ "type": "string" })).unwrap();
    spec.properties.as_mut().unwrap().insert("colour".into(), text);
    crd
}

async fn define(client: &Client, crd: &CustomResourceDefinition) {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let name = crd.metadata.name.as_deref().unwrap();
    let mut body = serde_json::to_value(crd).unwrap();
    body["apiVersion"] = "apiextensions.k8s.io/v1".into();
    body["kind"] = "CustomResourceDefinition".into();
    definitions.patch(name, &PatchParams::apply("upgrade").force(), &Patch::Apply(&body)).await.unwrap();
    let read = definitions.get(name).await.unwrap();
    assert_eq!(read.spec.conversion.unwrap().strategy, "None");
    assert_eq!(read.status.unwrap().stored_versions.unwrap(), ["v1alpha1"]);
}
