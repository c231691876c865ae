//! Writes between their success and their being seen: an object whose change has not come back through the watch yet
//! looks as if it still had to be written.
//!
//! A plan follows from one observation, however long it takes to carry it out. So what was written since that
//! observation waits for the next one, and no clock says otherwise.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use super::write::{Key, Stored, Write};

/// Longest wait for an echo, from the first observation after the write on. What was deleted again before its creation
/// was seen never has one.
const LONGEST: Duration = Duration::from_secs(10);

/// Objects whose last write has not been seen, by kind and name.
#[derive(Default)]
pub struct Echoes(BTreeMap<(&'static str, String), Echo>);

struct Echo {
    /// The version that the write followed from.
    seen: Option<String>,
    /// Whether nothing has been observed since.
    fresh: bool,
    until: Instant,
}

impl Echoes {
    /// It was written.
    pub fn written(&mut self, write: &Write, stored: &Stored, now: Instant) {
        let Key { kind, name, .. } = write.key();
        let seen = write.seen().map(ToOwned::to_owned);
        // A write that changed nothing is not told by a watch.
        if seen.is_some() && seen == stored.version {
            return;
        }
        self.0.insert((kind, name), Echo { seen, fresh: true, until: now + LONGEST });
    }

    /// Until when this write has to wait, as it follows from an object that was written since. `None`: it has not.
    pub fn awaited(&self, write: &Write) -> Option<Instant> {
        let Key { kind, name, .. } = write.key();
        let echo = self.0.get(&(kind, name))?;
        (echo.seen.as_deref() == write.seen()).then_some(echo.until)
    }

    /// Something new is observed. Forgets those that were waited for long enough.
    pub fn observed(&mut self, now: Instant) {
        self.0.retain(|_, echo| {
            if std::mem::take(&mut echo.fresh) {
                echo.until = now + LONGEST;
            }
            now < echo.until
        });
    }
}

#[cfg(test)]
mod tests {
    use super::{super::write::Identity, *};

    fn label(seen: &str) -> Write {
        let at = Identity { name: "n1".into(), uid: "u".into(), seen: seen.into() };
        Write::LabelNode { at, labels: BTreeMap::new() }
    }

    fn stored(version: &str) -> Stored {
        Stored { version: Some(version.into()), object: None }
    }

    #[test]
    fn an_echo_is_awaited_until_the_object_is_seen_changed() {
        let now = Instant::now();
        let mut echoes = Echoes::default();
        echoes.written(&label("1"), &stored("2"), now);
        assert_eq!(echoes.awaited(&label("1")), Some(now + LONGEST));
        assert_eq!(echoes.awaited(&label("2")), None);
    }

    #[test]
    fn time_counts_from_the_first_observation_after_the_write() {
        let written = Instant::now();
        let mut echoes = Echoes::default();
        echoes.written(&label("1"), &stored("2"), written);
        // A plan that took an hour to carry out.
        let seen = written + 360 * LONGEST;
        assert!(echoes.awaited(&label("1")).is_some());
        echoes.observed(seen);
        assert_eq!(echoes.awaited(&label("1")), Some(seen + LONGEST));
        echoes.observed(seen + LONGEST / 2);
        assert_eq!(echoes.awaited(&label("1")), Some(seen + LONGEST), "not from each observation anew");
        echoes.observed(seen + LONGEST);
        assert_eq!(echoes.awaited(&label("1")), None);
    }

    #[test]
    fn a_write_that_changed_nothing_has_no_echo() {
        let mut echoes = Echoes::default();
        echoes.written(&label("1"), &stored("1"), Instant::now());
        assert_eq!(echoes.awaited(&label("1")), None);
    }
}
