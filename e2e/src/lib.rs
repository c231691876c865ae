//! The lab: the whole system on one machine, and the scenarios that are played in it.
//!
//! The API side (etcd, kube-apiserver, the controller, the stand-in for Calico) runs outside; the nodes and the fabric
//! run behind [`nodes`], in network namespaces of this machine or of a virtual machine with a kernel that has VRF.

pub mod api;
pub mod calico;
pub mod chart;
pub mod kind;
pub mod lab;
pub mod leaf;
pub mod look;
pub mod matrix;
pub mod nodes;
pub mod paths;
pub mod program;
pub mod release;
pub mod remains;
pub mod run;
pub mod scenarios;
pub mod sink;
pub mod site;
pub mod steady;
pub mod step;
pub mod topology;
pub mod wait;
pub mod world;
