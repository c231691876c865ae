//! What became of tenants: their status, their routes at the leaf, who reaches whom.

use anyhow::{Context as _, Result, ensure};
use calico_vni_crds::tenant::Tenant;
use kube::Api;

use super::{PATIENCE, World};
use crate::{
    leaf,
    matrix::{self, Cell, Place, Way},
    nodes::protocol::Probed,
    wait,
};

impl World {
    /// A Tenant.
    pub async fn tenant(&self, name: &str) -> Result<Tenant> {
        Api::<Tenant>::all(self.client.clone()).get(name).await.with_context(|| format!("Tenant {name}"))
    }

    /// Waits until a Tenant is programmed on every node that it should be on.
    pub async fn programmed(&self, name: &str) -> Result<Tenant> {
        wait::until(&format!("Tenant {name} to be programmed"), PATIENCE, async || {
            let tenant = self.tenant(name).await?;
            let status = tenant.status.clone().unwrap_or_default();
            let condition = status.conditions.iter().find(|c| c.type_ == "Programmed");
            let done = condition
                .is_some_and(|c| c.status == "True" && c.observed_generation == tenant.metadata.generation);
            let nodes = status.nodes.unwrap_or_default();
            ensure!(
                done && nodes.desired > 0 && nodes.programmed == nodes.desired,
                "{condition:?}, nodes {nodes:?}"
            );
            Ok(tenant)
        })
        .await
    }

    /// Waits until the guards of all nodes hold these prefixes, or none of them.
    pub async fn guarded(&self, prefixes: &[&str], all: bool) -> Result<()> {
        for node in &self.lab.members {
            wait::until(
                &format!("the guard of {} to know of {prefixes:?}", node.name),
                PATIENCE,
                async || {
                    let argv = ["nft", "list", "table", "inet", "calico-vni"];
                    let table = self.lab.nodes().run(&node.name, &argv).await?;
                    let wrong: Vec<_> =
                        prefixes.iter().filter(|prefix| table.contains(**prefix) != all).collect();
                    ensure!(
                        wrong.is_empty(),
                        "{} {wrong:?}",
                        if all { "it does not hold" } else { "it still holds" }
                    );
                    Ok(())
                },
            )
            .await?;
        }
        Ok(())
    }

    /// Waits until the leaf has a type-5 route for every block of the pool, by the tenant's route target.
    pub async fn blocks_at_leaf(&self, pool: &str, vni: u32) -> Result<()> {
        wait::until(&format!("type-5 routes of pool {pool} at the leaf"), PATIENCE, async || {
            let routes = leaf::type5(self.lab.nodes()).await?;
            for (node, block) in self.blocks(pool).await? {
                let target = format!("RT:{}:{vni}", crate::topology::ROUTER_ASN);
                let found = routes.iter().find(|r| r.prefix == block && r.targets.contains(&target));
                ensure!(
                    found.is_some(),
                    "no route to {block} of {node} with {target}; the leaf has {routes:?}"
                );
            }
            Ok(())
        })
        .await
    }

    /// Sends the probes of cells.
    pub async fn probe(&self, places: &[Place], cells: &[Cell]) -> Result<Vec<Probed>> {
        self.lab.nodes().probe(cells.iter().map(|c| matrix::probe(c, places)).collect()).await
    }

    /// Waits until everybody reaches whom they have to, then tries every cell once, also those that must stay closed.
    /// One wrong cell is an error that shows the table.
    pub async fn matrix(&self, places: &[Place], ways: &[Way]) -> Result<Matrix> {
        let cells = matrix::cells(places, ways);
        let open: Vec<Cell> = cells.iter().filter(|c| c.reach).copied().collect();
        wait::until("everybody to reach whom they have to", PATIENCE, async || {
            let verdict = matrix::judge(places, &open, &self.probe(places, &open).await?);
            ensure!(verdict.wrong.is_empty(), "{}", verdict.wrong.join("; "));
            Ok(())
        })
        .await?;
        let mut results = Vec::new();
        // Way by way: all probes at once would be more than an emulated machine can carry in time.
        for way in ways {
            let of_way: Vec<Cell> = cells.iter().filter(|c| c.way == *way).copied().collect();
            results.extend(self.probe(places, &of_way).await?);
        }
        let verdict = matrix::judge(places, &cells, &results);
        let matrix = Matrix { places: places.to_vec(), cells, results };
        ensure!(
            verdict.wrong.is_empty(),
            "the matrix is wrong: {}\n{}",
            verdict.wrong.join("; "),
            matrix.table(ways)
        );
        Ok(matrix)
    }
}

/// A matrix in which every cell is right.
#[derive(Clone, Debug)]
pub struct Matrix {
    places: Vec<Place>,
    cells: Vec<Cell>,
    results: Vec<Probed>,
}

impl Matrix {
    /// The table of these ways.
    pub fn table(&self, ways: &[Way]) -> String {
        let chosen = self.cells.iter().zip(&self.results).filter(|(cell, _)| ways.contains(&cell.way));
        let (cells, results): (Vec<Cell>, Vec<Probed>) = chosen.map(|(c, r)| (*c, r.clone())).unzip();
        matrix::table(&self.places, &cells, &results)
    }

    /// Cells that answer.
    pub fn open(&self) -> usize {
        self.cells.iter().filter(|cell| cell.reach).count()
    }

    /// Cells in which nothing arrives.
    pub fn closed(&self) -> usize {
        self.cells.len() - self.open()
    }
}
