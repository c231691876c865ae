//! What people ask of the node's FRR, by way of the controller. FRR is asked, the answer is kept short, and nothing is changed.

use std::time::Duration;

use calico_vni_proto::{
    ANSWER_MAX,
    model::NodeConfig,
    names,
    wire::{self, answer, question},
};
use prost::Message;
use tokio::time::timeout;

use crate::frr::{Driver, RouteState, SessionState};

/// How long FRR may take. The controller waits a little longer, so that it hears this.
const PATIENCE: Duration = Duration::from_secs(10);

/// Octets at most that an entry takes in a list beyond its own: the field's number and its length.
const FRAME: usize = 4;

/// The answer, by FRR and the configuration that was taken last.
pub async fn answer(frr: Driver, config: Option<NodeConfig>, question: wire::Question) -> wire::Answer {
    let looked = timeout(PATIENCE, look(&frr, config.as_ref(), question.about)).await;
    let late = || Err(format!("FRR has not answered within {} s", PATIENCE.as_secs()));
    let about = looked.unwrap_or_else(|_| late()).unwrap_or_else(answer::About::Refused);
    wire::Answer { id: question.id, about: Some(about) }
}

/// The answer while another question is being answered: this agent looks at one at a time.
pub fn busy(question: &wire::Question) -> wire::Answer {
    let refused = answer::About::Refused("it is answering another question: try again".to_owned());
    wire::Answer { id: question.id, about: Some(refused) }
}

async fn look(
    frr: &Driver,
    config: Option<&NodeConfig>,
    about: Option<question::About>,
) -> Result<answer::About, String> {
    let tenants = config.map_or(&[][..], |config| &config.tenants);
    match about {
        Some(question::About::Sessions(_)) => {
            let sessions = frr.sessions().await.map_err(|error| error.to_string())?;
            let name_of = |vrf: &String| {
                let tenant = tenants.iter().find(|tenant| names::vrf(tenant.vni) == *vrf);
                tenant.map(|tenant| tenant.name.clone()).unwrap_or_default()
            };
            let session = |state: SessionState| wire::BgpSession {
                tenant: state.vrf.as_ref().map(name_of).unwrap_or_default(),
                vrf: state.vrf.unwrap_or_default(),
                peer: state.peer.to_string(),
                asn: state.remote_asn,
                state: state.state,
                uptime_seconds: state.uptime.as_secs(),
                prefixes_received: state.prefixes_received,
                prefixes_sent: state.prefixes_sent,
            };
            let (sessions, more) = kept(sessions.into_iter().map(session).collect());
            Ok(answer::About::Sessions(wire::Sessions { sessions, more }))
        }
        Some(question::About::Routes(wire::AboutRoutes { tenant })) => {
            let carried = tenants.iter().find(|carried| carried.name == tenant);
            let carried = carried.ok_or_else(|| format!("it carries no Tenant `{tenant}`"))?;
            let routes = frr.routes(&names::vrf(carried.vni)).await.map_err(|error| error.to_string())?;
            let (bird_v4, bird_v6) = (carried.host_v4, carried.host_v6);
            let route = |state: RouteState| wire::BgpRoute {
                prefix: state.prefix.to_string(),
                next_hop: state.next_hop.map(|address| address.to_string()).unwrap_or_default(),
                from_fabric: state.peer.is_some_and(|peer| peer != bird_v4 && peer != bird_v6),
                best: state.best,
                path: state.path,
            };
            let (routes, more) = kept(routes.into_iter().map(route).collect());
            Ok(answer::About::Routes(wire::Routes { routes, more }))
        }
        None => Err(format!(
            "an agent of version {} does not know this question: update it",
            env!("CARGO_PKG_VERSION")
        )),
    }
}

/// As many of the first as an answer may hold, and how many are left out.
fn kept<M: Message>(mut all: Vec<M>) -> (Vec<M>, u64) {
    let mut octets = 0;
    let fits = |one: &&M| {
        octets += one.encoded_len() + FRAME;
        octets <= ANSWER_MAX
    };
    let fit = all.iter().take_while(fits).count();
    let more = all.len() - fit;
    all.truncate(fit);
    (all, more as u64)
}

#[cfg(test)]
mod tests {
    use tokio::{net::UnixListener, time::Instant};

    use super::*;

    async fn refusal(frr: Driver, about: impl Into<Option<question::About>>) -> String {
        let answer = answer(frr, None, wire::Question { id: 7, about: about.into() }).await;
        assert_eq!(answer.id, 7);
        let Some(answer::About::Refused(why)) = answer.about else { panic!("{answer:?}") };
        why
    }

    fn about_sessions() -> question::About {
        question::About::Sessions(wire::AboutSessions {})
    }

    #[tokio::test(start_paused = true)]
    async fn an_frr_that_hangs_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let bgpd = UnixListener::bind(dir.path().join("bgpd.vty")).unwrap();
        let began = Instant::now();
        let why = refusal(Driver::new(dir.path().to_owned()), about_sessions()).await;
        assert_eq!((why.as_str(), began.elapsed()), ("FRR has not answered within 10 s", PATIENCE));
        drop(bgpd);
        let why = refusal(Driver::new(dir.path().to_owned()), about_sessions()).await;
        assert!(why.contains("bgpd does not answer"), "{why}");
    }

    #[tokio::test]
    async fn what_cannot_be_answered_is_told_in_words() {
        let nowhere = || Driver::new("/nonexistent".into());
        let routes = question::About::Routes(wire::AboutRoutes { tenant: "red".into() });
        assert_eq!(refusal(nowhere(), routes).await, "it carries no Tenant `red`");
        let newer = refusal(nowhere(), None).await;
        assert!(newer.contains("does not know this question"), "{newer}");
    }

    #[test]
    fn an_answer_is_kept_short_and_says_how_much_is_left_out() {
        let route =
            |number: u32| wire::BgpRoute { prefix: format!("10.0.0.{number}/32"), ..Default::default() };
        let all: Vec<_> = (0..100_000).map(route).collect();
        let (routes, more) = kept(all.clone());
        assert_eq!(routes.len() as u64 + more, 100_000);
        assert_eq!(routes, all[..routes.len()], "the first of them");
        let octets = wire::Routes { routes, more: 0 }.encoded_len();
        assert!((ANSWER_MAX * 9 / 10..=ANSWER_MAX).contains(&octets), "{octets}");
        assert_eq!(kept(all[..3].to_vec()), (all[..3].to_vec(), 0));
    }
}
