//! What several of the others tell: a condition that was found, and lists in the words of a message.

/// How many of a list a message names.
pub(super) const NAMED: usize = 3;

/// A condition of one object, whoever found it.
#[derive(Clone, Debug)]
pub(super) struct Told {
    /// Whether it holds.
    pub holds: bool,
    /// One word.
    pub reason: &'static str,
    /// What is so, with the way out where it is wrong.
    pub message: String,
}

/// The first few, and how many more there are.
pub(super) fn some_of(mut items: impl Iterator<Item = String>) -> String {
    let named: Vec<String> = items.by_ref().take(NAMED).collect();
    match items.count() {
        0 => named.join("; "),
        more => format!("{}; and {more} more", named.join("; ")),
    }
}

/// The same of words in the middle of a sentence; `None` where there are none.
pub(super) fn few(words: &[String]) -> Option<String> {
    let (named, more) = words.split_at(NAMED.min(words.len()));
    match (named, more) {
        ([], _) => None,
        (named, []) => Some(named.join(", ")),
        (named, more) => Some(format!("{} and {} more", named.join(", "), more.len())),
    }
}
