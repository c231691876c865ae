//! Writes that somebody else undoes, again and again.
//!
//! Drift is put right at once, twice. Whoever undoes the same write a third time means it, and two controllers that
//! correct each other would load the API server and every watcher of it without an end: from then on each correction
//! rests twice as long as the one before, and is told.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use super::write::{Key, Write};

/// A write that is undone within this time after it was done is part of the same fight.
const MEMORY: Duration = Duration::from_mins(10);
/// Corrections without a rest.
const TOLERATED: u32 = 2;
/// First and longest rest.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_mins(5);

/// The last write of each kind to each object.
#[derive(Default)]
pub struct Fights(BTreeMap<Key, Round>);

struct Round {
    content: Write,
    undone: u32,
    at: Instant,
    until: Instant,
}

impl Fights {
    /// It was written.
    pub fn written(&mut self, key: &Key, write: &Write, now: Instant) {
        if key.op == "delete" || key.op == "release" {
            // What is made again afterwards is another object.
            self.0.retain(|other, _| (other.kind, &other.name) != (key.kind, &key.name));
            return;
        }
        let content = write.content();
        let undone = match self.0.get(key) {
            Some(last) if last.content == content && now < last.at + MEMORY => last.undone + 1,
            _ => 0,
        };
        let rest = match undone.checked_sub(TOLERATED) {
            None | Some(0) => Duration::ZERO,
            Some(more) => FIRST.saturating_mul(1 << (more - 1).min(16)).min(LONGEST),
        };
        self.0.insert(key.clone(), Round { content, undone, at: now, until: now + rest });
    }

    /// Until when this write rests, since the same was undone so often. `None`: it does not.
    pub fn rests(&self, key: &Key, write: &Write, now: Instant) -> Option<Instant> {
        let round = self.0.get(key)?;
        (now < round.until && round.content == write.content()).then_some(round.until)
    }

    /// How often the last write was undone, where that is more than chance.
    pub fn undone(&self, key: &Key) -> Option<u32> {
        self.0.get(key).map(|round| round.undone).filter(|undone| *undone > TOLERATED)
    }

    /// Forgets what is long ago.
    pub fn expire(&mut self, now: Instant) {
        self.0.retain(|_, round| now < (round.at + MEMORY).max(round.until));
    }
}

#[cfg(test)]
mod tests {
    use super::{super::write::Identity, *};

    fn label(value: &str, seen: u32) -> Write {
        let at = Identity { name: "n1".into(), uid: "u".into(), seen: seen.to_string() };
        Write::LabelNode { at, labels: [("red".to_owned(), Some(value.to_owned()))].into() }
    }

    #[test]
    fn the_same_write_rests_longer_each_time_it_is_undone_and_another_does_not() {
        let mut fights = Fights::default();
        let mut now = Instant::now();
        let mut rests = Vec::new();
        for seen in 0..6 {
            let write = label("on", seen);
            fights.written(&write.key(), &write, now);
            let rest =
                fights.rests(&write.key(), &label("on", 99), now).map_or(Duration::ZERO, |until| until - now);
            rests.push(rest.as_secs());
            assert_eq!(fights.rests(&write.key(), &label("off", 99), now), None);
            now += rest;
        }
        assert_eq!(rests, [0, 0, 0, 1, 2, 4]);
        assert_eq!(fights.undone(&label("on", 0).key()), Some(5));

        let other = label("off", 7);
        fights.written(&other.key(), &other, now);
        assert_eq!(fights.undone(&other.key()), None);
    }

    #[test]
    fn what_is_long_ago_is_no_fight() {
        let mut fights = Fights::default();
        let mut now = Instant::now();
        for _ in 0..10 {
            let write = label("on", 0);
            fights.written(&write.key(), &write, now);
            now += MEMORY;
        }
        assert_eq!(fights.undone(&label("on", 0).key()), None);
        fights.expire(now);
        assert!(fights.0.is_empty());
    }
}
