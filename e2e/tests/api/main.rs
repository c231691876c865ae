//! The API as users meet it, on a real API server: what it takes, what it refuses and in which words.

mod fields;
mod mistakes;
mod reading;
mod server;
mod upgrade;

use server::Server;

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_told_and_what_is_right_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let files = ["deploy/rbac.yaml", "e2e/tests/api/world.yaml", "deploy/admission.yaml"];
    let server = Server::start(dir.path(), &files).await;
    mistakes::world(&server).await;
    mistakes::refused(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn definitions_keep_every_field_and_read_well() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]).await;
    fields::kept(&server).await;
    reading::tables(&server).await;
    reading::waiting(&server).await;
    upgrade::unknown_fields_stay(&server).await;
}
