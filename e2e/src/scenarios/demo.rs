//! The main job: two tenants over the fabric, one by an annotation alone and one by a Tenant, and everybody tries to
//! reach everybody.

use std::time::Instant;

use anyhow::{Result, ensure};
use calico_vni_crds::keys::VNI;
use ipnet::IpNet;

use crate::{
    leaf, look, step, wait,
    world::{Matrix, PATIENCE, World},
};

/// Pool of tenant red.
pub const RED: &str = "10.200.0.0/16";

/// The Tenant that the controller makes for pool red's annotation.
pub const RED_TENANT: &str = "vni-1001";

/// Pods of each pool on each node.
const PODS: u8 = 2;

/// Plays it.
pub async fn play(world: &mut World) -> Result<()> {
    world.put_pool("red", RED).await?;
    world.add_pods("default", None, PODS).await?;
    world.add_pods("red", Some("red"), PODS).await?;

    shell("kubectl annotate ippool red calico-vni.io/vni=1001");
    let annotated = Instant::now();
    print(&world.annotate_pool("red", VNI, "1001").await?);
    world.blocks_at_leaf("red", 1001).await?;
    step!(
        "from annotation to type-5 routes of both nodes at the leaf: {:.1} s",
        annotated.elapsed().as_secs_f64()
    );

    shell("kubectl apply -f examples/tenant-blue.yaml -f examples/pool-blue.yaml");
    print(&world.apply_file("examples/tenant-blue.yaml").await?);
    print(&world.apply_file("examples/pool-blue.yaml").await?);
    world.add_pods("blue", Some("blue"), PODS).await?;
    world.blocks_at_leaf("blue", 1002).await?;
    for tenant in [RED_TENANT, "blue"] {
        world.programmed(tenant).await?;
    }

    shell("kubectl get tenants,underlays");
    print(&world.kubectl(&["get", "tenants,underlays"]).await?);
    let kinds = [world.resource("bgppeers"), world.resource("bgpfilters")].join(",");
    shell("kubectl get bgppeers,bgpfilters -o yaml        # made by the controller");
    print(&world.kubectl(&["get", &kinds, "-o", "yaml"]).await?);
    shell("vtysh -c 'show bgp l2vpn evpn route type prefix'        # on the leaf");
    print(&leaf::type5_text(world.lab.nodes()).await?);

    let matrix = world.matrix(&world.places(&["red", "blue"])).await?;
    println!(
        "\nWho reaches whom (`ok`: an answer, as it must be; `.`: silence, as it must be):\n\n{}",
        matrix.table
    );
    all_right(&matrix);
    Ok(())
}

/// Tries every cell among the default pods, these tenants' pods and external hosts, and the nodes.
pub async fn all_cells(world: &World, tenants: &[&str]) -> Result<()> {
    all_right(&world.matrix(&world.places(tenants)).await?);
    Ok(())
}

/// Waits for the type-5 routes of all blocks of a pool at the leaf, and tells how long that took since `started`.
pub async fn route_at_leaf(world: &World, pool: IpNet, started: Instant) -> Result<()> {
    wait::until(&format!("type-5 routes of {pool} at the leaf"), PATIENCE, async || {
        let (blocks, text) = (look::blocks(world, pool).await?, look::leaf_type5(world).await?);
        ensure!(!blocks.is_empty(), "no node has a block of {pool}");
        let missing: Vec<_> = blocks.iter().filter(|(_, block)| !look::has_type5(&text, *block)).collect();
        ensure!(missing.is_empty(), "no route to {missing:?}");
        Ok(())
    })
    .await?;
    step!("type-5 routes of {pool} at the leaf after {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

fn all_right(matrix: &Matrix) {
    let Matrix { open, closed, .. } = matrix;
    step!("all {} cells are right: {open} answers, {closed} times silence", open + closed);
}

fn shell(command: &str) {
    println!("\n$ {command}");
}

fn print(text: &str) {
    println!("{}", text.trim_end());
}
