//! Questions that people have for agents: one at a time for each, and none is waited for without end. No I/O.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use calico_vni_proto::{
    ANSWER_MAX,
    wire::{self, answer, node_answer, question},
};
use prost::Message;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tracing::debug;

use super::{Agents, Session};

/// How long an answer may take, and the turn before it. An agent gives FRR less, so that it can say so.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// Octets of the longest answer: what it lists, and its numbers.
const LONGEST: usize = ANSWER_MAX + 1024;

/// Why an agent says nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Unanswered {
    #[error("its agent is not connected")]
    Away,
    #[error("an agent of version {0} cannot be asked: update it")]
    Old(String),
    #[error("its agent has not answered within {} s", PATIENCE.as_secs())]
    Silent,
    #[error("its agent's answer is too long")]
    Long,
    #[error("its agent answers what this controller does not know: it is newer; update the controller")]
    Newer,
}

/// The way of questions to one stream of an agent.
pub(super) struct Line {
    questions: mpsc::Sender<wire::Question>,
    /// Held by who asks.
    turn: tokio::sync::Mutex<u64>,
    waits: Mutex<Option<Waiting>>,
}

/// Who waits for the answer to the last question.
struct Waiting {
    id: u64,
    tell: oneshot::Sender<Result<wire::Answer, Unanswered>>,
}

impl Line {
    async fn ask(&self, about: question::About) -> Result<node_answer::About, Unanswered> {
        let mut last = self.turn.lock().await;
        *last += 1;
        let (tell, told) = oneshot::channel();
        *self.waits.lock().unwrap_or_else(PoisonError::into_inner) = Some(Waiting { id: *last, tell });
        let question = wire::Question { id: *last, about: Some(about) };
        self.questions.send(question).await.map_err(|_| Unanswered::Away)?;
        match told.await.map_err(|_| Unanswered::Away)??.about {
            Some(answer::About::Sessions(sessions)) => Ok(node_answer::About::Sessions(sessions)),
            Some(answer::About::Routes(routes)) => Ok(node_answer::About::Routes(routes)),
            Some(answer::About::Refused(why)) => Ok(node_answer::About::Refused(why)),
            None => Err(Unanswered::Newer),
        }
    }

    fn answered(&self, answer: wire::Answer) {
        let mut waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Waiting { tell, .. }) = waits.take_if(|waiting| waiting.id == answer.id) else {
            debug!(id = answer.id, "an answer that nobody waits for");
            return;
        };
        let fits = answer.encoded_len() <= LONGEST;
        // Who asked may have gone.
        tell.send(if fits { Ok(answer) } else { Err(Unanswered::Long) }).ok();
    }
}

impl Agents {
    /// Nodes that there is something to ask about: all that are offered something, and all whose agents are connected.
    pub fn nodes(&self) -> BTreeSet<String> {
        let inner = self.lock();
        inner.offers.keys().chain(inner.connected.keys()).cloned().collect()
    }

    /// Asks a node's agent.
    pub async fn ask(&self, node: &str, about: question::About) -> wire::NodeAnswer {
        let known = {
            let inner = self.lock();
            let connected = inner.connected.get(node);
            connected.map(|c| (c.version.clone(), c.ended.clone(), c.line.clone()))
        };
        let (version, answer) = match known {
            None => (String::new(), Err(Unanswered::Away)),
            Some((version, _, None)) => (version.clone(), Err(Unanswered::Old(version))),
            Some((version, ended, Some(line))) => {
                let asked = timeout(PATIENCE, ended.run_until_cancelled(line.ask(about))).await;
                (
                    version,
                    asked.map_or(Err(Unanswered::Silent), |answer| answer.unwrap_or(Err(Unanswered::Away))),
                )
            }
        };
        let about = answer.unwrap_or_else(|why| node_answer::About::Refused(why.to_string()));
        wire::NodeAnswer { node: node.to_owned(), version, about: Some(about) }
    }
}

impl Session {
    /// From now on the agent can be asked; the questions come here.
    pub fn questions(&self) -> mpsc::Receiver<wire::Question> {
        let (questions, asked) = mpsc::channel(1);
        let line = Line { questions, turn: tokio::sync::Mutex::default(), waits: Mutex::default() };
        if let Some(connected) = self.agents.lock().connected.get_mut(&self.node)
            && connected.session == self.id
        {
            connected.line = Some(Arc::new(line));
        }
        asked
    }

    /// What the agent says to a question.
    pub fn answered(&self, answer: wire::Answer) {
        let line = {
            let inner = self.agents.lock();
            let connected = inner.connected.get(&self.node).filter(|c| c.session == self.id);
            connected.and_then(|connected| connected.line.clone())
        };
        if let Some(line) = line {
            line.answered(answer);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{sync::Notify, time::Instant};
    use tokio_util::sync::CancellationToken;

    use super::*;

    fn table() -> Arc<Agents> {
        Agents::new(Arc::new(Notify::new()), CancellationToken::new(), Arc::default())
    }

    fn about() -> question::About {
        question::About::Sessions(wire::AboutSessions {})
    }

    /// An answer that can be told from others.
    fn sessions(more: u64) -> wire::Sessions {
        wire::Sessions { sessions: vec![], more }
    }

    /// Answers the next question.
    async fn answers(
        session: &Session,
        questions: &mut mpsc::Receiver<wire::Question>,
        about: answer::About,
    ) {
        let question = questions.recv().await.unwrap();
        session.answered(wire::Answer { id: question.id, about: Some(about) });
    }

    /// Asks, and says why there is no answer.
    async fn refusal(agents: &Agents, node: &str) -> String {
        match agents.ask(node, about()).await.about.unwrap() {
            node_answer::About::Refused(why) => why,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_asker_gets_the_answer_to_its_own_question() {
        let agents = table();
        let session = agents.join("n1", "1", None);
        let mut questions = session.questions();
        let agent = async {
            for number in 0..3 {
                let question = questions.recv().await.unwrap();
                assert_eq!(question.about, Some(about()));
                // Neither an answer to what was asked before nor one to what nobody asked is taken for it.
                for (id, more) in [(question.id - 1, 98), (question.id + 1, 99), (question.id, number)] {
                    session
                        .answered(wire::Answer { id, about: Some(answer::About::Sessions(sessions(more))) });
                }
            }
        };
        let ask = || agents.ask("n1", about());
        let (one, two, three, ()) = tokio::join!(ask(), ask(), ask(), agent);
        for (number, answer) in (0..).zip([one, two, three]) {
            let about = Some(node_answer::About::Sessions(sessions(number)));
            assert_eq!(answer, wire::NodeAnswer { node: "n1".into(), version: "1".into(), about });
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_answer_holds_up_nobody_but_who_asks_it() {
        let agents = table();
        let (slow, quick) = (agents.join("slow", "1", None), agents.join("quick", "1", None));
        let (mut unread, mut questions) = (slow.questions(), quick.questions());
        let began = Instant::now();
        // However often it is asked, one question waits, and nothing else is kept.
        let ask = || refusal(&agents, "slow");
        let others = async {
            let word = answer::About::Sessions(sessions(1));
            let (answer, ()) =
                tokio::join!(agents.ask("quick", about()), answers(&quick, &mut questions, word));
            assert_eq!(answer.about, Some(node_answer::About::Sessions(sessions(1))));
            began.elapsed()
        };
        let (one, two, three, elapsed) = tokio::join!(ask(), ask(), ask(), others);
        assert_eq!([one, two, three], ["its agent has not answered within 15 s"; 3]);
        assert_eq!((elapsed, began.elapsed()), (Duration::ZERO, PATIENCE));
        let stale = unread.try_recv().unwrap();
        assert!(unread.try_recv().is_err());

        // It comes to itself: its late answer is nobody's, and the next question is answered.
        slow.answered(wire::Answer { id: stale.id, about: Some(answer::About::Sessions(sessions(99))) });
        let word = answer::About::Sessions(sessions(2));
        let (answer, ()) = tokio::join!(agents.ask("slow", about()), answers(&slow, &mut unread, word));
        assert_eq!(answer.about, Some(node_answer::About::Sessions(sessions(2))));
    }

    #[tokio::test(start_paused = true)]
    async fn who_cannot_be_asked_is_told_at_once_and_in_words() {
        let agents = table();
        let began = Instant::now();
        assert_eq!(refusal(&agents, "n1").await, "its agent is not connected");
        let old = agents.join("n1", "0.0.9", None);
        assert_eq!(refusal(&agents, "n1").await, "an agent of version 0.0.9 cannot be asked: update it");
        drop(old);
        let session = agents.join("n1", "1", None);
        let mut questions = session.questions();
        let end = async {
            questions.recv().await.unwrap();
            session.rest();
        };
        let (said, ()) = tokio::join!(refusal(&agents, "n1"), end);
        assert_eq!(said, "its agent is not connected", "its stream ended");
        let session = agents.join("n1", "1", None);
        let mut questions = session.questions();
        let words = answer::About::Refused("FRR is away".to_owned());
        let (said, ()) = tokio::join!(refusal(&agents, "n1"), answers(&session, &mut questions, words));
        assert_eq!((said.as_str(), began.elapsed()), ("FRR is away", Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_beyond_all_measure_is_not_kept() {
        let agents = table();
        let session = agents.join("n1", "1", None);
        let mut questions = session.questions();
        let long = |octets| {
            let route = wire::BgpRoute { path: "x".repeat(octets), ..Default::default() };
            answer::About::Routes(wire::Routes { routes: vec![route], more: 0 })
        };
        let most = long(ANSWER_MAX - 16);
        let (answer, ()) = tokio::join!(agents.ask("n1", about()), answers(&session, &mut questions, most));
        assert!(matches!(answer.about, Some(node_answer::About::Routes(_))));
        let more = long(LONGEST);
        let (said, ()) = tokio::join!(refusal(&agents, "n1"), answers(&session, &mut questions, more));
        assert_eq!(said, "its agent's answer is too long");
    }
}
