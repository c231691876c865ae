//! What to tell next. Pure; the time is passed in.

use std::{collections::BTreeMap, time::Duration};

use calico_vni_planner::plan::{About, Notice};
use tokio::time::Instant;

/// Events of one object for one reason: this many at once, and one more in each such time.
const WORDS: (u32, Duration) = (4, Duration::from_mins(1));
/// The same of all Events together.
const ALL: (u32, Duration) = (50, Duration::from_millis(100));
/// API servers keep Events for an hour (`--event-ttl`): as long a notice that comes again is a repetition.
const MEMORY: Duration = Duration::from_hours(1);
/// First and longest rest of a notice that could not be told.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_mins(5);

/// What was told, and how much more may be.
pub(super) struct Queue {
    told: BTreeMap<Notice, Told>,
    failed: BTreeMap<Notice, Failed>,
    words: BTreeMap<(About, String), Bucket>,
    all: Bucket,
}

struct Told {
    /// Name of its Event; `None` when that is gone.
    event: Option<String>,
    /// How often it came up.
    count: i32,
    /// Whether it is as it was told.
    stands: bool,
    at: Instant,
}

struct Failed {
    attempts: u32,
    until: Instant,
}

/// What to do.
#[derive(Debug, PartialEq)]
pub(super) enum Tell {
    /// Write an Event.
    New(Notice),
    /// Count up the one there is.
    Again { notice: Notice, event: String, count: i32 },
    /// Nothing before that time, or before something changes.
    Wait(Option<Instant>),
}

impl Queue {
    /// Nothing was told yet.
    pub fn new(now: Instant) -> Self {
        Self {
            told: BTreeMap::new(),
            failed: BTreeMap::new(),
            words: BTreeMap::new(),
            all: Bucket::full(now),
        }
    }

    /// What is not wanted any more is news when it comes again.
    pub fn keep(&mut self, wanted: impl Fn(&Notice) -> bool, now: Instant) {
        for (notice, told) in &mut self.told {
            told.stands &= wanted(notice);
        }
        self.told.retain(|_, told| told.stands || now < told.at + MEMORY);
        self.failed.retain(|notice, _| wanted(notice));
        self.words.retain(|_, bucket| !bucket.is_full(now));
    }

    /// The first of the wanted ones that may be told now.
    pub fn next<'a>(&mut self, wanted: impl Iterator<Item = &'a Notice>, now: Instant) -> Tell {
        let mut earliest: Option<Instant> = None;
        for notice in wanted {
            let told = self.told.get(notice);
            if told.is_some_and(|told| told.stands) {
                continue;
            }
            let about = (notice.about.clone(), notice.reason.clone());
            let ready = [
                self.all.ready(ALL, now),
                self.words.get(&about).map_or(now, |bucket| bucket.ready(WORDS, now)),
                self.failed.get(notice).map_or(now, |failed| failed.until),
            ];
            let ready = ready.into_iter().max().unwrap_or(now);
            if ready > now {
                earliest = Some(earliest.map_or(ready, |earliest| earliest.min(ready)));
                continue;
            }
            self.all.take(ALL, now);
            self.words.entry(about).or_insert_with(|| Bucket::full(now)).take(WORDS, now);
            return match told {
                Some(Told { event: Some(event), count, .. }) => {
                    Tell::Again { notice: notice.clone(), event: event.clone(), count: count + 1 }
                }
                _ => Tell::New(notice.clone()),
            };
        }
        Tell::Wait(earliest)
    }

    /// It was told by the Event of that name; `None`: the one to be counted up is gone, so there has to be a new one.
    pub fn told(&mut self, notice: Notice, event: Option<String>, now: Instant) {
        self.failed.remove(&notice);
        let stands = event.is_some();
        let told = self.told.entry(notice).or_insert(Told { event: None, count: 0, stands, at: now });
        let count = if told.event == event { told.count + 1 } else { 1 };
        *told = Told { event, count, stands, at: now };
    }

    /// It could not be told.
    pub fn failed(&mut self, notice: Notice, now: Instant) {
        let failed = self.failed.entry(notice).or_insert(Failed { attempts: 0, until: now });
        failed.until = now + FIRST.saturating_mul(1 << failed.attempts.min(16)).min(LONGEST);
        failed.attempts += 1;
    }
}

/// A token bucket: when it will have been full again says how full it is.
struct Bucket {
    full_at: Instant,
}

impl Bucket {
    fn full(now: Instant) -> Self {
        Self { full_at: now }
    }

    fn is_full(&self, now: Instant) -> bool {
        self.full_at <= now
    }

    /// When a token is there.
    fn ready(&self, (burst, each): (u32, Duration), now: Instant) -> Instant {
        // With `burst - 1` tokens missing there is one left.
        let slack = each * (burst - 1);
        if self.full_at <= now + slack { now } else { self.full_at - slack }
    }

    fn take(&mut self, (_, each): (u32, Duration), now: Instant) {
        self.full_at = self.full_at.max(now) + each;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(pool: &str, message: &str) -> Notice {
        Notice { about: About::Pool(pool.into()), reason: "InvalidVNI".into(), message: message.into() }
    }

    /// Tells all that may be told; how many.
    fn drain(queue: &mut Queue, wanted: &[Notice], now: Instant) -> usize {
        queue.keep(|notice| wanted.contains(notice), now);
        let mut told = 0;
        loop {
            match queue.next(wanted.iter(), now) {
                Tell::New(notice) => queue.told(notice, Some(format!("event-{told}")), now),
                Tell::Again { notice, event, .. } => queue.told(notice, Some(event), now),
                Tell::Wait(_) => return told,
            }
            told += 1;
        }
    }

    #[test]
    fn a_notice_is_told_once_and_counted_when_it_comes_again() {
        let now = Instant::now();
        let mut queue = Queue::new(now);
        let wanted = [notice("a", "x")];
        assert_eq!(queue.next(wanted.iter(), now), Tell::New(notice("a", "x")));
        queue.told(notice("a", "x"), Some("e".into()), now);
        assert_eq!(queue.next(wanted.iter(), now), Tell::Wait(None));
        queue.keep(|_| false, now);
        let again = Tell::Again { notice: notice("a", "x"), event: "e".into(), count: 2 };
        assert_eq!(queue.next(wanted.iter(), now), again);
        // Its Event is gone meanwhile.
        queue.told(notice("a", "x"), None, now);
        assert_eq!(queue.next(wanted.iter(), now), Tell::New(notice("a", "x")));
        queue.told(notice("a", "x"), Some("f".into()), now);
        queue.keep(|_| false, now);
        let later = now + MEMORY;
        queue.keep(|_| false, later);
        assert_eq!(queue.next(wanted.iter(), later), Tell::New(notice("a", "x")), "as if never told");
    }

    #[test]
    fn one_object_that_changes_its_words_is_told_few_of_them() {
        let now = Instant::now();
        let mut queue = Queue::new(now);
        let told: usize = (0..100).map(|i| drain(&mut queue, &[notice("a", &i.to_string())], now)).sum();
        assert_eq!(told, WORDS.0 as usize);
        assert_eq!(drain(&mut queue, &[notice("b", "x")], now), 1, "nobody else is held up");
        assert_eq!(drain(&mut queue, &[notice("a", "y")], now + WORDS.1), 1);
    }

    #[test]
    fn a_thousand_bad_pools_are_no_flood_and_all_are_told() {
        let mut now = Instant::now();
        let mut queue = Queue::new(now);
        let wanted: Vec<Notice> = (0..1000).map(|i| notice(&format!("p{i}"), "x")).collect();
        let mut told = drain(&mut queue, &wanted, now);
        assert_eq!(told, ALL.0 as usize);
        let began = now;
        while told < wanted.len() {
            let Tell::Wait(Some(until)) = queue.next(wanted.iter(), now) else { panic!("told {told}") };
            now = until;
            told += drain(&mut queue, &wanted, now);
        }
        assert_eq!((now - began).as_secs(), 95);
        assert_eq!(drain(&mut queue, &wanted, now + MEMORY), 0);
    }

    #[test]
    fn what_cannot_be_told_rests_longer_each_time_and_holds_nobody_up() {
        let mut now = Instant::now();
        let mut queue = Queue::new(now);
        let wanted = [notice("a", "x"), notice("b", "x")];
        queue.failed(notice("a", "x"), now);
        assert_eq!(queue.next(wanted.iter(), now), Tell::New(notice("b", "x")));
        queue.told(notice("b", "x"), Some("e".into()), now);
        for rest in [1, 2, 4] {
            let Tell::Wait(Some(until)) = queue.next(wanted.iter(), now) else { panic!("it waits") };
            assert_eq!((until - now).as_secs(), rest);
            now = until;
            queue.failed(notice("a", "x"), now);
        }
    }
}
