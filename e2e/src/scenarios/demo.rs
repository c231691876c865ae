//! The main job: two tenants over the fabric, one by an annotation alone and one by a Tenant, and everybody tries to
//! reach everybody.

use std::time::Instant;

use anyhow::Result;
use calico_vni_crds::keys::VNI;

use crate::{leaf, step, world::World};

/// Pods of each pool on each node.
const PODS: u8 = 2;

/// Plays it.
pub async fn play(world: &mut World) -> Result<()> {
    world.put_pool("red", "10.200.0.0/16").await?;
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
    for tenant in ["vni-1001", "blue"] {
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
    step!(
        "all {} cells are right: {} answers, {} times silence",
        matrix.open + matrix.closed,
        matrix.open,
        matrix.closed
    );
    Ok(())
}

fn shell(command: &str) {
    println!("\n$ {command}");
}

fn print(text: &str) {
    println!("{}", text.trim_end());
}
