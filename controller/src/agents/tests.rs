//! The table of agents, without agents: what is said, what is offered, and who is left out.

use futures::FutureExt;

use super::*;

pub(crate) fn offer(guard: &[u8], config: &[u8]) -> Offer {
    let guard = Offered::new(guard.to_vec(), Message::Guard);
    Offer { guard, config: Some(Offered::new(config.to_vec(), Message::Config)), asn: Some(65000) }
}

fn table() -> (Arc<Agents>, Arc<Notify>) {
    let changed = Arc::new(Notify::new());
    (Agents::new(changed.clone(), CancellationToken::new(), Arc::default()), changed)
}

fn signalled(changed: &Notify) -> bool {
    changed.notified().now_or_never().is_some()
}

fn applied(config: &[u8], tenants: &[(&str, u32, &str)]) -> wire::Applied {
    wire::Applied {
        config_digest: Digest::of(config).to_wire(),
        guard_digest: Digest::of(b"g").to_wire(),
        tenants: tenants
            .iter()
            .map(|(name, vni, error)| wire::TenantResult {
                name: (*name).into(),
                vni: *vni,
                error: (*error).into(),
            })
            .collect(),
    }
}

#[test]
fn an_agent_counts_from_its_first_result_and_only_changes_call_for_a_plan() {
    let (agents, changed) = table();
    let session = agents.join("n1", "1", None);
    session.health(wire::Health { frr_running: true, ..Default::default() });
    assert!(agents.said().is_empty());
    assert!(signalled(&changed));

    session.applied(applied(b"a", &[("red", 1001, ""), ("blue", 1002, "no device")]));
    assert!(signalled(&changed));
    let agent = &agents.said()["n1"];
    assert!(agent.frr_running);
    assert_eq!(agent.programmed, [("red".to_owned(), 1001)].into());
    assert_eq!(agent.failed["blue"], "no device");

    session.applied(applied(b"a", &[("red", 1001, ""), ("blue", 1002, "no device")]));
    assert!(!signalled(&changed), "the same result again is no news");

    drop(session);
    assert!(signalled(&changed));
    assert!(agents.said().is_empty());
}

#[test]
fn a_result_without_health_says_nothing_of_frr() {
    let (agents, changed) = table();
    let session = agents.join("n1", "1", None);
    session.applied(applied(b"a", &[("red", 1001, "")]));
    assert!(agents.said().is_empty(), "or every label would go whenever an agent connects again");
    session.health(wire::Health { frr_running: false, ..Default::default() });
    assert!(signalled(&changed));
    assert!(!agents.said()["n1"].awaited);
}

#[test]
fn a_refusal_says_nothing_of_what_stands() {
    let (agents, _) = table();
    agents.offer([("n1".to_owned(), offer(b"g", b"bad"))].into());
    let session = agents.join("n1", "1", None);
    session.health(wire::Health { frr_running: true, ..Default::default() });
    session.rejected(wire::Rejected { digest: Digest::of(b"bad").to_wire(), reason: "cannot".into() });
    assert!(agents.said()["n1"].awaited && agents.said()["n1"].rejected.is_some());
    agents.offer([("n1".to_owned(), offer(b"g", b"good"))].into());
    assert!(agents.said().is_empty());
    session.applied(applied(b"old", &[("red", 1001, "")]));
    assert!(!agents.said()["n1"].awaited);
}

#[test]
fn a_second_stream_takes_the_place_of_the_first() {
    let (agents, changed) = table();
    let first = agents.join("n1", "1", None);
    first.applied(applied(b"a", &[("red", 1001, "")]));
    let second = agents.join("n1", "1", None);
    assert!(first.ended.is_cancelled());
    second.applied(applied(b"a", &[("blue", 1002, "")]));
    second.health(wire::Health { frr_running: true, ..Default::default() });
    first.applied(applied(b"a", &[]));
    drop(first);
    assert_eq!(agents.said()["n1"].programmed, [("blue".to_owned(), 1002)].into());
    assert!(!second.ended.is_cancelled());
    assert!(signalled(&changed));
}

#[test]
fn what_was_said_holds_while_an_agent_comes_again() {
    let (agents, changed) = table();
    agents.offer([("n1".to_owned(), offer(b"g", b"a"))].into());
    let first = agents.join("n1", "1", None);
    first.applied(applied(b"a", &[("red", 1001, "")]));
    first.health(wire::Health { frr_running: true, ..Default::default() });
    assert!(signalled(&changed));
    first.rest();
    assert!(first.ended.is_cancelled());
    let said = agents.said();
    assert_eq!(said["n1"].programmed, [("red".to_owned(), 1001)].into());
    let second = agents.join("n1", "2", None);
    drop(first);
    assert_eq!(agents.said(), said);
    assert_eq!(agents.standing(), Standing { connected: 1, in_step: 1 });
    assert_eq!(agents.versions(), [("2".to_owned(), 1)].into());
    assert_eq!(agents.others(), [("n1".to_owned(), "2".to_owned())].into());
    second.applied(applied(b"a", &[("red", 1001, "")]));
    assert!(!signalled(&changed), "nothing has changed by it");
    second.rest();
    drop(second);
    assert!(agents.said().is_empty() && signalled(&changed), "who does not come again is gone");
}

#[test]
fn a_refusal_counts_while_what_was_refused_is_wanted() {
    let (agents, _) = table();
    agents.offer([("n1".to_owned(), offer(b"g", b"bad"))].into());
    let session = agents.join("n1", "1", None);
    session.health(wire::Health { frr_running: true, ..Default::default() });
    session.rejected(wire::Rejected { digest: Digest::of(b"bad").to_wire(), reason: "cannot".into() });
    assert_eq!(agents.said()["n1"].rejected.as_deref(), Some("cannot"));
    session.applied(applied(b"old", &[]));
    assert_eq!(agents.said()["n1"].rejected.as_deref(), Some("cannot"), "an older result settles nothing");
    agents.offer([("n1".to_owned(), offer(b"g", b"good"))].into());
    assert_eq!(agents.said()["n1"].rejected, None);
    agents.offer([("n1".to_owned(), offer(b"g", b"bad"))].into());
    session.applied(applied(b"bad", &[]));
    assert_eq!(agents.said()["n1"].rejected, None);
}

#[test]
fn the_asn_is_that_of_the_configuration_that_was_acknowledged() {
    let (agents, _) = table();
    agents.offer([("n1".to_owned(), offer(b"g", b"a"))].into());
    let session = agents.join("n1", "1", None);
    session.health(wire::Health { frr_running: true, ..Default::default() });
    session.applied(applied(b"a", &[]));
    assert_eq!(agents.said()["n1"].asn, Some(65000));
    let moved = Offer { asn: Some(65001), ..offer(b"g", b"b") };
    agents.offer([("n1".to_owned(), moved)].into());
    assert_eq!(agents.said()["n1"].asn, Some(65000), "what is offered is not held yet");
    session.applied(applied(b"a", &[]));
    assert_eq!(agents.said()["n1"].asn, Some(65000), "nor by a late word on what was before");
    session.applied(applied(b"b", &[]));
    assert_eq!(agents.said()["n1"].asn, Some(65001));
}

#[test]
fn what_is_heard_is_about_what_is_offered() {
    let (agents, changed) = table();
    let digest = |body: &[u8]| Some(Digest::of(body));
    let session = agents.join("n1", "1", digest(b"old"));
    assert!(signalled(&changed), "what it may be offered depends on what it holds");
    let heard = || agents.heard().remove("n1").unwrap();
    assert_eq!((heard().holds, heard().in_step, heard().frr_running), (digest(b"old"), false, true));

    // The guard is offered though the configuration waits for its turn.
    agents.offer([("n1".to_owned(), Offer { config: None, ..offer(b"g", b"") })].into());
    session.applied(applied(b"old", &[]));
    assert_eq!(agents.standing(), Standing { connected: 1, in_step: 1 });
    assert!(!heard().in_step, "it was offered none");

    agents.offer([("n1".to_owned(), offer(b"g", b"a"))].into());
    session.health(wire::Health { frr_running: true, ..Default::default() });
    assert!(heard().health, "of what it held");
    session.applied(applied(b"a", &[("red", 1001, "no device")]));
    assert_eq!((heard().holds, heard().in_step, heard().health), (digest(b"a"), true, false));
    assert_eq!(heard().failed["red"], "no device");
    let fabric = wire::Session { established: true, ..Default::default() };
    let down = wire::Session { established: false, ..Default::default() };
    let of_tenant = wire::Session { tenant: "red".into(), ..fabric.clone() };
    signalled(&changed);
    session.health(wire::Health {
        frr_running: true,
        sessions: vec![fabric, down, of_tenant],
        ..Default::default()
    });
    assert_eq!((heard().health, heard().sessions), (true, 1));
    assert!(signalled(&changed));
    session.applied(applied(b"a", &[("red", 1001, "")]));
    assert!(heard().health, "the same configuration again");

    session.rejected(wire::Rejected { digest: Digest::of(b"b").to_wire(), reason: "bad".into() });
    assert_eq!(heard().refused, None, "nobody wants that of it");
    agents.offer([("n1".to_owned(), offer(b"g", b"b"))].into());
    assert_eq!(heard().refused.as_deref(), Some("bad"));
    drop(session);
    assert!(agents.heard().is_empty());
}

#[test]
fn a_version_is_a_short_word_whatever_an_agent_says() {
    let (agents, _) = table();
    let _same = agents.join("n1", VERSION, None);
    let _odd = agents.join("n2", &format!("1.0\n{{\"x\"}}\u{7f}{}", "x".repeat(999)), None);
    let others = agents.others();
    assert_eq!(others.keys().collect::<Vec<_>>(), ["n2"]);
    assert!(others["n2"].starts_with("1.0{\"x\"}x") && others["n2"].len() == VERSION_MAX, "{others:?}");
}

#[test]
fn offers_reach_known_nodes_and_only_when_they_differ() {
    let (agents, _) = table();
    let mut early = agents.join("n1", "1", None);
    assert!(early.offers.borrow_and_update().is_none());
    agents.offer([("n1".to_owned(), offer(b"g", b"1"))].into());
    assert!(early.offers.has_changed().unwrap());
    assert_eq!(*early.offers.borrow_and_update(), Some(offer(b"g", b"1")));
    agents.offer([("n1".to_owned(), offer(b"g", b"1"))].into());
    assert!(!early.offers.has_changed().unwrap());
    let late = agents.join("n1", "1", None);
    assert_eq!(*late.offers.borrow(), Some(offer(b"g", b"1")));
}
