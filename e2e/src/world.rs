//! The whole system around a running [`Lab`]: API server, controller, routers, BIRD fed by the stand-in for Calico, pods.
//!
//! The lab knows namespaces and wires; this knows who runs in them and how they find each other.

use std::{collections::BTreeMap, fs, net::IpAddr, ops::RangeInclusive, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use calico_vni_crds::calico::{CalicoApi, IpPool};
use futures::future::{try_join, try_join_all};
use tokio::process::Command as Local;
use tokio_util::sync::CancellationToken;

use crate::{
    api::{ApiSide, Process, User},
    calico::{ipam, ipam::Ipam},
    chart,
    lab::Lab,
    matrix::{Kind, Place},
    paths,
    release::Release,
    run,
    site::free_ports,
    step,
    topology::{self, Addresses, FABRIC_TENANTS, Node, OUTSIDE, OUTSIDE_ADDRESSES, PodLink},
    wait,
};

mod cluster;
mod confd;
mod evidence;
mod router;
mod tenants;

pub use router::Router;
pub use tenants::Matrix;

/// What a busy machine may take for what takes seconds.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Our definitions.
const DEFINITIONS: &str = "crds/generated";

/// Namespace, accounts and rights.
const RIGHTS: &str = "deploy/rbac.yaml";

/// What the API server refuses at once.
pub const ADMISSION: &str = "deploy/admission.yaml";

/// Port on every node's own loopback by which its agent reaches the controller.
const CONTROLLER: u16 = 9443;

/// Everything that runs.
pub struct World {
    /// Namespaces and wires.
    pub lab: Lab,
    /// API server and kubectl.
    pub api: ApiSide,
    /// Addresses of pods.
    pub ipam: Ipam,
    /// Group of Calico's kinds in this run.
    pub calico: CalicoApi,
    /// The administrator's client.
    pub client: kube::Client,
    /// Which controller and agents are started, and whose files are applied.
    pub release: Release,
    controller: Process,
    controller_port: u16,
    pods: Vec<Place>,
    /// How pods are wired, by their names.
    links: BTreeMap<String, PodLink>,
    stop: CancellationToken,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl World {
    /// Starts everything, with this release. Tenants and their pools come later, by whoever plays a scenario.
    pub async fn start(calico: CalicoApi, release: Release) -> Result<Self> {
        let programs = paths::kube()?;
        let directory = run::directory()?;
        let data = directory.join("api");
        let (lab, api) = try_join(Lab::start(&directory, release), ApiSide::start(&data, &programs)).await?;
        run::record(&directory, &lab.site, &api)?;
        step!("API server ready: export KUBECONFIG={}", api.kubeconfig(User::Admin).display());
        let client = api.client(User::Admin).await?;
        let [controller_port] = free_ports()?;
        let mut world = Self {
            ipam: Ipam::new(client.clone(), calico, []),
            controller: Process::none("controller", api.dir()),
            controller_port,
            pods: Vec::new(),
            links: BTreeMap::new(),
            stop: CancellationToken::new(),
            lab,
            api,
            calico,
            client: client.clone(),
            release,
        };
        world.cluster().await?;
        world.start_confd().await?;
        world.start_controller().await?;
        try_join_all(world.lab.members.iter().map(|node| world.router(node).start(&world))).await?;
        world.underlay_up().await?;
        Ok(world)
    }

    /// What a cluster with Calico holds before anybody has heard of tenants, and the Underlay.
    async fn cluster(&self) -> Result<()> {
        let calico_crds = match self.calico {
            CalicoApi::V3 => "e2e/calico-crds/v3",
            CalicoApi::CrdV1 => "e2e/calico-crds/v1",
        };
        self.apply_file(calico_crds).await?;
        self.apply_definitions().await?;
        self.apply_rights().await?;
        // The role is bound to the user that the controller is here, as it is to its service account in a cluster.
        let (role, user) =
            ("--clusterrole=calico-vni-controller", format!("--user={}", User::Controller.name()));
        self.kubectl(&["create", "clusterrolebinding", "lab", role, &user]).await?;
        for node in &self.lab.members {
            let (v4, v6) = node.networks();
            self.ipam.put_node(&ipam::node(&node.name, Some(v4), Some(v6), BTreeMap::new())).await?;
        }
        self.apply(&self.manifest("BGPConfiguration", "default", &serde_json::json!({ "asNumber": 64512 })))
            .await?;
        let kind = match self.calico {
            CalicoApi::V3 => "IPAMConfiguration",
            CalicoApi::CrdV1 => "IPAMConfig",
        };
        self.apply(&self.manifest(kind, "default", &serde_json::json!({ "strictAffinity": true }))).await?;
        let (v4, v6) = topology::default_pools();
        for (name, cidr) in [("default", v4.to_string()), ("default-v6", v6.to_string())] {
            self.apply(&self.manifest("IPPool", name, &serde_json::json!({ "cidr": cidr }))).await?;
        }
        self.apply_file("examples/underlay.yaml").await?;
        Ok(())
    }

    /// Applies our definitions, and waits until all that are there can be used.
    pub async fn apply_definitions(&self) -> Result<()> {
        self.apply_file(DEFINITIONS).await?;
        self.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=120s"])
            .await
            .map(drop)
    }

    /// Applies what else the chart makes in the API server: rights and policies.
    pub async fn apply_rights(&self) -> Result<()> {
        for file in [RIGHTS, ADMISSION] {
            self.apply_file(file).await?;
        }
        Ok(())
    }

    /// Starts the controller, as the user whose rights are those of `deploy/rbac.yaml`.
    pub async fn start_controller(&mut self) -> Result<()> {
        self.controller = self.controller_at("controller", self.controller_port)?;
        let (port, controller) = (self.controller_port, &mut self.controller);
        wait::until("the controller to listen", Duration::from_mins(1), async || {
            controller.check().map_err(wait::hopeless)?;
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.context("it does not yet").map(drop)
        })
        .await?;
        step!("controller ready; its log: {}", self.controller.log().display());
        Ok(())
    }

    /// Starts another controller that knows nothing of the first. No agent dials it.
    pub fn second_controller(&self) -> Result<Process> {
        self.controller_at("second-controller", 0)
    }

    fn controller_at(&self, name: &'static str, port: u16) -> Result<Process> {
        let mut command = Local::new(self.release.program("calico-vni-controller")?);
        command.env("KUBECONFIG", self.api.kubeconfig(User::Controller)).args([
            "--grpc-listen",
            &format!("127.0.0.1:{port}"),
            "--http-listen",
            "127.0.0.1:0",
        ]);
        Process::start(name, &command, self.api.dir())
    }

    /// Asks the controller to end (SIGTERM) and waits until it has.
    pub async fn stop_controller(&mut self) -> Result<()> {
        self.controller.stop().await
    }

    /// Kills the controller (SIGKILL).
    pub async fn kill_controller(&mut self) -> Result<()> {
        self.controller.kill().await
    }

    async fn underlay_up(&self) -> Result<()> {
        let all = format!("{0}/{0}", self.lab.members.len());
        wait::until("all routers to have their sessions with the leaf", Duration::from_mins(3), async || {
            let seen = self
                .kubectl(&["get", "underlay", "fabric", "-o", "jsonpath={.status.sessions.ready}"])
                .await?;
            ensure!(seen == all, "sessions {seen} of {all}");
            Ok(())
        })
        .await?;
        step!("routers ready: {all} sessions with the leaf");
        Ok(())
    }

    /// `kubectl vni` as somebody, started where the repository's files are.
    pub fn vni(&self, user: User, arguments: &[&str]) -> Result<Local> {
        let mut command = Local::new(Release::This.program("kubectl-vni")?);
        command.env("KUBECONFIG", self.api.kubeconfig(user)).args(arguments);
        command.current_dir(paths::checkout()).kill_on_drop(true);
        Ok(command)
    }

    /// What `kubectl vni` tells of the routers, as JSON. The controller is on this machine and no pod that could be forwarded to.
    pub async fn routers_say(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        let controller = format!("http://127.0.0.1:{}", self.controller_port);
        let asking = ["-o", "json", "--controller", &controller];
        let output = self
            .vni(User::Admin, &[arguments, &asking].concat())?
            .output()
            .await
            .context("start kubectl-vni")?;
        let [said, errors] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
        ensure!(output.status.success(), "{}: {errors}{said}", output.status);
        serde_json::from_str(&said).context("what kubectl-vni prints")
    }

    /// kubectl as the administrator.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.api.kubectl(args).await
    }

    /// helm as the administrator, in our namespace.
    pub async fn helm(&self, args: &[&str]) -> Result<String> {
        chart::helm(Some(&self.api.kubeconfig(User::Admin)), args).await
    }

    /// `kubectl apply` of a file or folder of the release, read for the group in which this run serves Calico's kinds.
    pub async fn apply_file(&self, path: &str) -> Result<String> {
        let whole = self.release.source()?.join(path);
        if self.calico == CalicoApi::V3 || whole.is_dir() {
            return self.kubectl(&["apply", "-f", &whole.to_string_lossy()]).await;
        }
        let text = fs::read_to_string(&whole).with_context(|| format!("cannot read {path}"))?;
        self.apply_text(
            &text.replace("apiVersion: projectcalico.org/v3", "apiVersion: crd.projectcalico.org/v1"),
        )
        .await
    }

    /// `kubectl apply` of one object.
    pub async fn apply(&self, object: &serde_json::Value) -> Result<String> {
        self.apply_text(&object.to_string()).await
    }

    async fn apply_text(&self, text: &str) -> Result<String> {
        let file = self.api.dir().join("apply.yaml");
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        self.kubectl(&["apply", "-f", &file.to_string_lossy()]).await
    }

    /// An object of one of Calico's kinds in this run's group.
    pub fn manifest(&self, kind: &str, name: &str, spec: &serde_json::Value) -> serde_json::Value {
        let version = format!("{}/{}", self.calico.group(), self.calico.version());
        serde_json::json!({ "apiVersion": version, "kind": kind, "metadata": { "name": name }, "spec": spec })
    }

    /// Full resource name of one of Calico's kinds, for kubectl.
    pub fn resource(&self, plural: &str) -> String {
        format!("{plural}.{}", self.calico.group())
    }

    /// Pods with an address of a pool and one of its twin `<pool>-v6`, `count` on every node, named
    /// `<tenant>-<node>-<letter>`. A tenant of `None` is the default pools.
    pub async fn add_pods(&mut self, pool: &str, tenant: Option<&str>, count: u8) -> Result<()> {
        self.add_lettered_pods(pool, tenant, 'a'..=char::from(b'a' + count - 1)).await
    }

    /// The same with these letters, on every node one of each.
    pub async fn add_lettered_pods(
        &mut self,
        pool: &str,
        tenant: Option<&str>,
        letters: RangeInclusive<char>,
    ) -> Result<()> {
        let pools = self.pools_of_both_families(pool).await?;
        let short = tenant.unwrap_or("dflt");
        let (mut links, mut places) = (Vec::new(), Vec::new());
        for node in &self.lab.members {
            for letter in letters.clone() {
                let name = format!("{short}-{}-{letter}", node.name);
                // Interface names have 15 characters at most.
                let interface = format!("cali{}{letter}{}", &short[..short.len().min(4)], node.name);
                let kind = Kind::Pod { tenant: tenant.map(str::to_owned), node: node.name.clone() };
                let (link, place) = self.pod(&pools, node, name, interface, kind).await?;
                links.push(link);
                places.push(place);
            }
        }
        self.lab.add_pods(&links).await?;
        self.pods.extend(places);
        step!("{} pods of pools {pool} and {pool}-v6", links.len());
        self.links.extend(links.into_iter().map(|link| (link.netns.clone(), link)));
        Ok(())
    }

    /// Takes all pods of a tenant away and gives the blocks of these pools back.
    pub async fn remove_pods(&mut self, tenant: &str, pools: &[&str]) -> Result<()> {
        let of_tenant =
            |place: &Place| matches!(&place.kind, Kind::Pod { tenant: Some(t), .. } if t == tenant);
        let (gone, stay): (Vec<Place>, Vec<Place>) = self.pods.drain(..).partition(of_tenant);
        self.pods = stay;
        for place in gone {
            let link = self.links.remove(&place.name).context("a pod that was never wired")?;
            self.lab.remove_pod(&link).await?;
            for address in [link.addresses.v4.into(), link.addresses.v6.into()] {
                self.ipam.release_address(address).await;
            }
        }
        for pool in pools {
            for (node, block) in self.blocks(pool).await? {
                self.ipam.release_block(&node, block).await?;
            }
        }
        Ok(())
    }

    /// A pod of the default pools on a node that plays a shared service. Who may reach it is the Underlay's affair.
    pub async fn add_service(&mut self, name: &str, node: &Node) -> Result<Addresses> {
        let pools = self.pools_of_both_families("default").await?;
        let interface = format!("cali{name}");
        let (link, place) = self.pod(&pools, node, name.to_owned(), interface, Kind::Service).await?;
        self.lab.add_pods(&[link]).await?;
        let addresses = place.addresses;
        self.pods.push(place);
        Ok(addresses)
    }

    async fn pools_of_both_families(&self, pool: &str) -> Result<[IpPool; 2]> {
        let (v4, v6) = (pool.to_owned(), format!("{pool}-v6"));
        Ok(try_join(self.pool(&v4), self.pool(&v6)).await?.into())
    }

    async fn pod(
        &self,
        pools: &[IpPool; 2],
        node: &Node,
        name: String,
        interface: String,
        kind: Kind,
    ) -> Result<(PodLink, Place)> {
        let mut addresses = Vec::new();
        for pool in pools {
            addresses.push(self.ipam.assign_address(pool, &node.name).await?);
        }
        let [IpAddr::V4(v4), IpAddr::V6(v6)] = addresses[..] else {
            bail!("a pod wants an address of each family, not {addresses:?}")
        };
        let addresses = Addresses { v4, v6 };
        let link = PodLink { node: node.clone(), netns: name.clone(), addresses, interface };
        Ok((link, Place { netns: name.clone(), name, addresses, kind }))
    }

    /// All pods, the external hosts of these tenants, the nodes, and the host outside.
    pub fn places(&self, tenants: &[&str]) -> Vec<Place> {
        let place = |name: &str, addresses, kind| Place {
            name: name.to_owned(),
            netns: name.to_owned(),
            addresses,
            kind,
        };
        let external = FABRIC_TENANTS.iter().filter(|t| tenants.contains(&t.name)).map(|tenant| {
            let kind = Kind::External { tenant: tenant.name.to_owned() };
            place(&tenant.host(), tenant.host_addresses(), kind)
        });
        let nodes = self.lab.members.iter().map(|node| place(&node.name, node.addresses(), Kind::Node));
        let outside = place(OUTSIDE, OUTSIDE_ADDRESSES, Kind::Outside);
        self.pods.iter().cloned().chain(external).chain(nodes).chain([outside]).collect()
    }

    /// Prints how to look around in a lab that stays up.
    pub fn tell_how_to_reach(&self) {
        let (lab, kube) = (paths::checkout().join("target/debug/lab"), paths::checkout().join("target/kube"));
        let lab = lab.display();
        println!(
            "
The lab is up until Ctrl-C, or `{lab} down`. To look around:
  export KUBECONFIG={} PATH={}:$PATH
  kubectl get tenants,underlays
  {lab} exec n1 -- ip rule                     # a node; n1-router is its router, `ip netns` lists all
  {lab} exec n1 -- vtysh --vty_socket /run/frr/n1 -c 'show bgp l2vpn evpn summary'
  {lab} exec leaf -- vtysh --vty_socket /run/frr/leaf -c 'show bgp l2vpn evpn route type prefix'
  {lab} exec n1 -- birdc -s {} show protocols
Logs: {}",
            self.api.kubeconfig(User::Admin).display(),
            kube.display(),
            crate::sink::control_socket("n1", crate::calico::Family::V4),
            self.lab.directory.display()
        );
    }

    /// Ends everything in good order and removes what it wrote.
    pub async fn stop(mut self) -> Result<()> {
        self.stop.cancel();
        self.stop_controller().await?;
        let directory = self.lab.directory.clone();
        drop(self);
        fs::remove_dir_all(&directory).with_context(|| format!("remove {}", directory.display()))
    }

    /// Fails if one of the processes outside has ended.
    pub fn check(&mut self) -> Result<()> {
        self.api.check()?;
        self.controller.check()
    }
}

/// Name of the forwarder that joins a node's agent to the controller.
pub fn link(node: &str) -> String {
    format!("{node}-controller")
}

/// Where a node's FRR has its sockets, on the node side.
pub fn frr_dir(node: &str) -> String {
    format!("/var/run/frr/{node}")
}
