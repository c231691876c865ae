//! A finding: what is wrong with what, the true cause, and the remedy. Types only.

use serde::Serialize;

/// How much it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Level {
    /// Something does not work.
    Problem,
    /// Something may not be what its owner meant.
    Hint,
}

/// Something that was found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// How much it matters.
    pub level: Level,
    /// Kind and name of the object.
    pub about: String,
    /// One word, as in conditions where they know it.
    pub reason: String,
    /// What is so, and why that is wrong.
    pub cause: String,
    /// What to do.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub remedy: String,
    /// The same as commands, with words in capitals to be replaced.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub commands: Vec<String>,
    /// Whether it goes by itself within seconds while everything works.
    #[serde(skip)]
    pub fleeting: bool,
}

impl Finding {
    /// A problem.
    pub fn problem(about: impl Into<String>, reason: &str, cause: impl Into<String>) -> Self {
        Self {
            level: Level::Problem,
            about: about.into(),
            reason: reason.to_owned(),
            cause: cause.into(),
            remedy: String::new(),
            commands: Vec::new(),
            fleeting: false,
        }
    }

    /// A hint.
    pub fn hint(about: impl Into<String>, reason: &str, cause: impl Into<String>) -> Self {
        Self { level: Level::Hint, ..Self::problem(about, reason, cause) }
    }

    /// With what to do about it.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = remedy.into();
        self
    }

    /// With a command that does it, or that shows more.
    #[must_use]
    pub fn command(mut self, command: impl Into<String>) -> Self {
        self.commands.push(command.into());
        self
    }

    /// One that goes by itself while everything works.
    #[must_use]
    pub fn fleeting(mut self) -> Self {
        self.fleeting = true;
        self
    }
}

/// Of a second look, what is told: what goes by itself is told only where both have seen it.
pub fn lasting(first: &[Finding], second: Vec<Finding>) -> Vec<Finding> {
    let seen = |finding: &Finding| {
        first.iter().any(|before| before.reason == finding.reason && before.about == finding.about)
    };
    second.into_iter().filter(|finding| !finding.fleeting || seen(finding)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_only_on_its_way_is_not_told() {
        let found = |about: &str| Finding::problem(about, "R", "c");
        let first = [found("a").fleeting(), found("b").fleeting()];
        let second = vec![found("b").fleeting(), found("c").fleeting(), found("d")];
        let told: Vec<String> = lasting(&first, second).into_iter().map(|finding| finding.about).collect();
        assert_eq!(told, ["b", "d"]);
    }
}
