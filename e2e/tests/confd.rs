//! The stand-in for confd against BIRD 1.6: golden files, what BIRD parses, and every trap of Calico's own rendering.
//!
//! `UPDATE_GOLDEN=1` writes the golden files again.

#[path = "confd/live.rs"]
mod live;
#[path = "confd/server.rs"]
mod server;
#[path = "confd/support.rs"]
mod support;

use std::{env, fs, path::Path};

use calico_vni_e2e::calico::{
    Family,
    confd::{File, Files},
    filter::Refused,
};
use support::{bird_refuses, cluster, config};

/// Two nodes, of which n1 has the label of tenant red, and a pool.
const NODES: &str = "
kind: Node
metadata:
  name: n1
  labels: { tenant.calico-vni.io/red: ready }
  annotations: { projectcalico.org/IPv4Address: 172.18.0.11/24, projectcalico.org/IPv6Address: 'fd18::11/64' }
---
kind: Node
metadata: { name: n2, annotations: { projectcalico.org/IPv4Address: 172.18.0.12/24 } }
---
kind: IPPool
metadata: { name: red }
spec: { cidr: 10.200.0.0/16 }
";

fn peer(name: &str, spec: &str) -> String {
    format!(
        "---\nkind: BGPPeer\nmetadata: {{ name: {name} }}\nspec: {{ asNumber: 65001, sourceAddress: None, {spec} }}\n"
    )
}

fn filter(name: &str, spec: &str) -> String {
    format!("---\nkind: BGPFilter\nmetadata: {{ name: {name} }}\nspec: {{ {spec} }}\n")
}

/// The text of one protocol; none if there is no such protocol.
fn protocol<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let start = text.find(&format!("protocol bgp {name} from"))?;
    let end = text[start..].find("\n}\n").unwrap();
    Some(&text[start..start + end])
}

#[test]
fn golden_files_and_bird_takes_each() {
    let mut checked = 0;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/confd");
    for case in ["tenants", "global"] {
        let cluster = cluster(&fs::read_to_string(root.join(case).join("objects.yaml")).unwrap());
        for (node, family) in cluster.nodes.keys().flat_map(|node| Family::ALL.map(|family| (node, family))) {
            let config = config(&cluster, node, family);
            assert_eq!(config.refused, None, "{case} {node} {family}");
            assert_eq!(bird_refuses(family, &config.text()), None, "{case} {node} {family}");
            let golden = root.join(case).join(format!("{node}.{}.cfg", family.daemon()));
            if env::var_os("UPDATE_GOLDEN").is_some() {
                fs::write(&golden, config.text()).unwrap();
            }
            let expected = fs::read_to_string(&golden).unwrap_or_default();
            similar_asserts::assert_eq!(config.text(), expected, "{}", golden.display());
            checked += 1;
        }
    }
    assert_eq!(checked, 8);
}

#[test]
fn a_quote_in_a_password_breaks_the_whole_file() {
    let red = peer("red", "node: n1, peerIP: 169.254.192.1");
    let text = |password: &str| {
        let mut cluster = cluster(&format!("{NODES}{red}"));
        cluster.peers.get_mut("red").unwrap().password = Some(password.to_owned());
        config(&cluster, "n1", Family::V4).text()
    };
    assert!(text("secret").contains("  password \"secret\";\n"));
    assert_eq!(bird_refuses(Family::V4, &text("secret")), None);
    let refusal = bird_refuses(Family::V4, &text("sec\"ret")).unwrap();
    assert!(refusal.contains("syntax error"), "{refusal}");
}

#[test]
fn a_missing_filter_leaves_the_peer_unfiltered() {
    let red = peer("red", "node: n1, peerIP: 169.254.192.1, filters: [gone]");
    let open = peer("red", "node: n1, peerIP: 169.254.192.1");
    let text = |peer: &str| config(&cluster(&format!("{NODES}{peer}")), "n1", Family::V4).text();
    assert!(text(&red).contains("protocol bgp Node_169_254_192_1 from"));
    assert_eq!(text(&red), text(&open));
}

#[test]
fn a_filter_of_one_family_and_direction_leaves_the_others_open() {
    let peers = peer("red", "node: n1, peerIP: 169.254.192.1, filters: [red]")
        + &peer("red-v6", "node: n1, peerIP: 'fd42::1', filters: [red]");
    let cluster = cluster(&format!("{NODES}{peers}{}", filter("red", "exportV4: [{ action: Reject }]")));
    let v4 = config(&cluster, "n1", Family::V4).text();
    let v4 = protocol(&v4, "Node_169_254_192_1").unwrap();
    assert!(v4.contains("'bgp_red_exportFilterV4'();"), "{v4}");
    assert!(!v4.contains("importFilter"), "{v4}");
    let v6 = config(&cluster, "n1", Family::V6).text();
    assert!(!v6.contains("bgp_red"), "{v6}");
    assert!(protocol(&v6, "Node_fd42__1").is_some(), "{v6}");
}

/// The verdict that is given without BIRD is BIRD's.
#[test]
fn an_unusable_filter_is_one_that_bird_refuses() {
    for (rule, why) in [
        ("{ action: Accept }", None),
        ("{ cidr: 10.0.0.0/8, matchOperator: In, prefixLength: { min: 8, max: 8 }, action: Accept }", None),
        ("{ cidr: 10.0.0.0/8, matchOperator: In, prefixLength: { min: 0 }, action: Accept }", None),
        ("{ cidr: 10.0.0.0/8, matchOperator: In, prefixLength: { }, action: Accept }", None),
        (
            "{ cidr: 0.0.0.0/0, matchOperator: NotEqual, source: RemotePeers, interface: 'cali*', action: Reject }",
            None,
        ),
        ("{ prefixLength: { min: 30, max: 20 }, action: Accept }", None),
        (
            "{ cidr: 10.0.0.0/8, matchOperator: In, prefixLength: { min: 26, max: 24 }, action: Accept }",
            Some("from 26 to 24"),
        ),
        (
            "{ cidr: 10.0.0.0/16, matchOperator: NotIn, prefixLength: { max: 15 }, action: Accept }",
            Some("max >= 16"),
        ),
        (
            "{ cidr: 10.0.0.0/8, matchOperator: In, prefixLength: { min: 33 }, action: Accept }",
            Some("from 33 to 32"),
        ),
        ("{ cidr: 10.1.0.0/8, matchOperator: In, action: Accept }", Some("write 10.0.0.0/8")),
        ("{ cidr: 'fd00::/8', matchOperator: In, action: Accept }", Some("is not IPv4")),
        ("{ cidr: 10.0.0.0/33, matchOperator: In, action: Accept }", Some("is no prefix")),
        ("{ cidr: 10.0.0.0/8, action: Accept }", Some("without a matchOperator")),
        ("{ interface: 'a\"b', action: Accept }", Some("cannot be quoted")),
    ] {
        // No peer names the filter: it is in the file all the same.
        let cluster =
            cluster(&format!("{NODES}{}", filter("f", &format!("exportV4: [{{ action: Reject }}, {rule}]"))));
        let config = config(&cluster, "n2", Family::V4);
        let told = config.refused.as_ref().map(ToString::to_string);
        let bird = bird_refuses(Family::V4, &config.text());
        assert_eq!(told.is_some(), bird.is_some(), "{rule}: {told:?}, BIRD: {bird:?}");
        assert_eq!(told.is_some(), why.is_some(), "{rule}: {told:?}");
        if let (Some(told), Some(why)) = (told, why) {
            assert!(told.starts_with("BGPFilter f, exportV4[1]: ") && told.contains(why), "{told}");
        }
    }
}

#[test]
fn a_peer_without_an_asn_stops_its_node() {
    let cluster = cluster(&format!(
        "{NODES}---\nkind: BGPPeer\nmetadata: {{ name: p }}\nspec: {{ node: n1, peerIP: 192.0.2.1 }}\n"
    ));
    assert_eq!(config(&cluster, "n1", Family::V4).refused, Some(Refused::NoAsn("p".into())));
    assert_eq!(config(&cluster, "n2", Family::V4).refused, None);
}

fn give(files: &mut Files, yaml: &str) -> Vec<File> {
    let due = files.due(&cluster(yaml));
    for file in &due {
        files.taken(file.clone());
    }
    due
}

fn names(files: &[File]) -> Vec<(&str, Family)> {
    files.iter().map(|file| (file.node.as_str(), file.family)).collect()
}

#[test]
fn an_unusable_filter_freezes_every_node_until_it_is_gone() {
    let mut files = Files::default();
    let all = [("n1", Family::V4), ("n1", Family::V6), ("n2", Family::V4), ("n2", Family::V6)];
    assert_eq!(names(&give(&mut files, NODES)), all);
    assert_eq!(names(&give(&mut files, NODES)), [], "nothing changed");

    // The new peer is not seen, though the filter that stops it is nobody's.
    let bad = filter(
        "bad",
        "exportV4: [{ cidr: 10.0.0.0/8, matchOperator: In, prefixLength: { min: 9, max: 8 }, action: Accept }]",
    );
    let red = peer("red", "nodeSelector: all(), peerIP: 169.254.192.1")
        + &peer("red-v6", "nodeSelector: all(), peerIP: 'fd42::1'");
    let due = give(&mut files, &format!("{NODES}{red}{bad}"));
    assert_eq!(names(&due), [("n1", Family::V6)], "only the family of the rule stands still");
    assert!(files.refused("n2", Family::V4).unwrap().to_string().contains("BGPFilter bad, exportV4[0]"));

    // Blocks and pools are in files of their own, which nothing stops.
    let block = "---\nkind: BlockAffinity\nmetadata: { name: b }\nspec: { node: n2, cidr: 10.200.0.0/26, state: confirmed }\n";
    let due = give(&mut files, &format!("{NODES}{red}{bad}{block}"));
    assert_eq!(names(&due), [("n2", Family::V4)]);
    assert!(due[0].text.contains("route 10.200.0.0/26 blackhole;"));
    assert!(!due[0].text.contains("169_254_192_1"), "{}", due[0].text);
    assert_eq!(bird_refuses(Family::V4, &due[0].text), None);

    // A node that comes now has no older file to keep.
    let n3 = "---\nkind: Node\nmetadata: { name: n3, annotations: { projectcalico.org/IPv4Address: 172.18.0.13/24 } }\n";
    let due = give(&mut files, &format!("{NODES}{n3}{red}{bad}{block}"));
    assert_eq!(names(&due), [("n3", Family::V6)]);

    let due = give(&mut files, &format!("{NODES}{n3}{red}{block}"));
    assert_eq!(names(&due), [("n1", Family::V4), ("n2", Family::V4), ("n3", Family::V4)]);
    assert!(due.iter().all(|file| file.text.contains("protocol bgp Node_169_254_192_1 from")));
    assert_eq!(files.refused("n2", Family::V4), None);
}

#[test]
fn a_file_that_was_not_taken_is_due_again() {
    let mut files = Files::default();
    let first = files.due(&cluster(NODES));
    assert_eq!(files.due(&cluster(NODES)), first);
    for file in first {
        files.taken(file);
    }
    assert_eq!(files.due(&cluster(NODES)), []);
}

#[test]
fn a_global_peer_suppresses_a_node_peer_of_the_same_address_and_port() {
    let node = peer("a", "node: n1, peerIP: 169.254.192.1, filters: [red]");
    let global = peer("b", "peerIP: 169.254.192.1");
    let other_port = peer("c", "node: n1, peerIP: '169.254.192.1:1790'");
    let cluster = cluster(&format!(
        "{NODES}{node}{global}{other_port}{}",
        filter("red", "exportV4: [{ action: Reject }]")
    ));
    let n1 = config(&cluster, "n1", Family::V4).text();
    assert_eq!(protocol(&n1, "Node_169_254_192_1"), None);
    assert!(!protocol(&n1, "Global_169_254_192_1").unwrap().contains("bgp_red"));
    assert!(
        protocol(&n1, "Node_169_254_192_1_port_1790")
            .unwrap()
            .contains("neighbor 169.254.192.1 port 1790 as 65001;")
    );
    let n2 = config(&cluster, "n2", Family::V4).text();
    assert!(protocol(&n2, "Global_169_254_192_1").is_some(), "it is on every node");
    assert_eq!(bird_refuses(Family::V4, &n1), None);
}

#[test]
fn of_two_peers_of_one_address_the_first_by_name_wins() {
    let peers = peer("red", "node: n1, peerIP: 169.254.192.1, filters: [red]")
        + &peer("blue", "nodeSelector: all(), peerIP: 169.254.192.1, filters: [blue]");
    let filters =
        filter("red", "exportV4: [{ action: Reject }]") + &filter("blue", "exportV4: [{ action: Reject }]");
    let n1 = config(&cluster(&format!("{NODES}{peers}{filters}")), "n1", Family::V4).text();
    let session = protocol(&n1, "Node_169_254_192_1").unwrap();
    assert!(session.contains("bgp_blue") && !session.contains("bgp_red"), "{session}");
    assert_eq!(n1.matches("neighbor 169.254.192.1 ").count(), 1);
}

#[test]
fn a_peer_follows_the_nodes_label() {
    let red = peer("red", "nodeSelector: \"tenant.calico-vni.io/red == 'ready'\", peerIP: 169.254.192.1");
    let mut files = Files::default();
    give(&mut files, &format!("{NODES}{red}"));
    let due = give(&mut files, &format!("{}{red}", NODES.replace("red: ready", "red: leaving")));
    assert_eq!(names(&due), [("n1", Family::V4)]);
    assert_eq!(protocol(&due[0].text, "Node_169_254_192_1"), None);
    let due = give(&mut files, &format!("{NODES}{red}"));
    assert_eq!(names(&due), [("n1", Family::V4)], "n2 never had the label");
    assert!(protocol(&due[0].text, "Node_169_254_192_1").is_some());
    let broken = peer("red", "nodeSelector: \"tenant.calico-vni.io/red = 'ready'\", peerIP: 169.254.192.1");
    let due = give(&mut files, &format!("{NODES}{broken}"));
    assert_eq!(
        protocol(&due[0].text, "Node_169_254_192_1"),
        None,
        "a selector that does not parse selects nobody"
    );
}

#[test]
fn filters_never_apply_to_the_mesh() {
    let red = peer("red", "nodeSelector: all(), peerIP: 169.254.192.1, filters: [red]");
    let rules = "exportV4: [{ action: Reject }], importV4: [{ action: Reject }]";
    let n1 = config(&cluster(&format!("{NODES}{red}{}", filter("red", rules))), "n1", Family::V4).text();
    let mesh = protocol(&n1, "Mesh_172_18_0_12").unwrap();
    assert!(!mesh.contains("bgp_red"), "{mesh}");
    assert!(
        mesh.contains("source address 172.18.0.11;") && mesh.contains("neighbor 172.18.0.12 as 64512;"),
        "{mesh}"
    );
    assert!(
        mesh.contains("passive on;"),
        "of the two nodes the one with the greater address connects: {mesh}"
    );
}

#[test]
fn the_source_is_the_nodes_address_unless_none_is_wanted() {
    let red = peer("red", "node: n1, peerIP: 169.254.192.1");
    let text = |peer: &str| config(&cluster(&format!("{NODES}{peer}")), "n1", Family::V4).text();
    let none = text(&red);
    assert!(!protocol(&none, "Node_169_254_192_1").unwrap().contains("source address"));
    for with in ["sourceAddress: UseNodeIP, ", ""] {
        let own = text(&red.replace("sourceAddress: None, ", with));
        assert!(protocol(&own, "Node_169_254_192_1").unwrap().contains("source address 172.18.0.11;"));
    }
}

#[test]
fn a_node_without_an_ipv4_address_gets_nothing() {
    let node =
        "kind: Node\nmetadata: { name: n9, annotations: { projectcalico.org/IPv6Address: 'fd18::19/64' } }\n";
    let mut files = Files::default();
    assert_eq!(give(&mut files, node), []);
    let why = files.refused("n9", Family::V6).unwrap().to_string();
    assert_eq!(why, "Node n9 has no annotation projectcalico.org/IPv4Address");
}
