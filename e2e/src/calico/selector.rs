//! Calico's selector language, over one object's labels.
//!
//! `||` binds weaker than `&&`, and `!` negates the one operation that follows it. `!=`, `not in` and `!has` hold where
//! the label is absent; all others need it. Pure.

use std::collections::BTreeMap;

/// Why a selector is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("selector {selector:?} at character {at}: expected {expected}")]
pub struct SelectorError {
    selector: String,
    at: usize,
    expected: &'static str,
}

/// A parsed selector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector(Expr);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Expr {
    All,
    Has(String),
    Compare { label: String, how: Compare, values: Vec<String>, absent: bool },
    Not(Box<Expr>),
    And(Vec<Expr>),
    Or(Vec<Expr>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compare {
    In,
    NotIn,
    Contains,
    StartsWith,
    EndsWith,
}

impl Selector {
    /// Parses a selector; an empty one selects all.
    pub fn parse(selector: &str) -> Result<Self, SelectorError> {
        let mut parser = Parser { text: selector, at: 0 };
        parser.skip_blanks();
        if parser.rest().is_empty() {
            return Ok(Self(Expr::All));
        }
        let expr = parser.any_of()?;
        if parser.rest().is_empty() { Ok(Self(expr)) } else { Err(parser.expected("&&, || or the end")) }
    }

    /// Whether an object of these labels is selected.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.holds(labels)
    }
}

impl Expr {
    fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        match self {
            Self::All => true,
            Self::Has(label) => labels.contains_key(label),
            Self::Compare { label, how, values, absent } => {
                labels.get(label).map_or(*absent, |have| how.holds(have, values))
            }
            Self::Not(inner) => !inner.holds(labels),
            Self::And(parts) => parts.iter().all(|part| part.holds(labels)),
            Self::Or(parts) => parts.iter().any(|part| part.holds(labels)),
        }
    }
}

impl Compare {
    fn holds(self, have: &str, values: &[String]) -> bool {
        let any = |test: fn(&str, &str) -> bool| values.iter().any(|value| test(have, value));
        match self {
            Self::In => any(|have, value| have == value),
            Self::NotIn => !any(|have, value| have == value),
            Self::Contains => any(|have, value| have.contains(value)),
            Self::StartsWith => any(|have, value| have.starts_with(value)),
            Self::EndsWith => any(|have, value| have.ends_with(value)),
        }
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn expected(&self, expected: &'static str) -> SelectorError {
        SelectorError { selector: self.text.to_owned(), at: self.at, expected }
    }

    fn skip_blanks(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start_matches([' ', '\t']).len();
    }

    /// Takes `token` and the blanks after it, if it is next.
    fn take(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
            self.skip_blanks();
        }
        found
    }

    /// Takes these words, with or without blanks between them, if they are next. What has to follow (a quote or a brace)
    /// is no part of a word, so where the last one ends needs no look.
    fn take_words(&mut self, words: &[&str]) -> bool {
        let start = self.at;
        let found = words.iter().all(|word| self.take(word));
        if !found {
            self.at = start;
        }
        found
    }

    fn need(&mut self, token: &str, expected: &'static str) -> Result<(), SelectorError> {
        if self.take(token) { Ok(()) } else { Err(self.expected(expected)) }
    }

    fn any_of(&mut self) -> Result<Expr, SelectorError> {
        let mut parts = vec![self.all_of()?];
        while self.take("||") {
            parts.push(self.all_of()?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Expr::Or(parts) })
    }

    fn all_of(&mut self) -> Result<Expr, SelectorError> {
        let mut parts = vec![self.operation()?];
        while self.take("&&") {
            parts.push(self.operation()?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Expr::And(parts) })
    }

    fn operation(&mut self) -> Result<Expr, SelectorError> {
        let mut negated = false;
        while self.take("!") {
            negated = !negated;
        }
        let expr = if self.take("(") {
            let inner = self.any_of()?;
            self.need(")", ")")?;
            inner
        } else if self.take("all(") {
            self.need(")", ") after all(")?;
            Expr::All
        } else if self.take("has(") {
            let label = self.label()?;
            self.need(")", ") after the label of has(")?;
            Expr::Has(label)
        } else {
            self.comparison()?
        };
        Ok(if negated { Expr::Not(Box::new(expr)) } else { expr })
    }

    fn comparison(&mut self) -> Result<Expr, SelectorError> {
        let label = self.label()?;
        let (how, absent, set) = if self.take("==") {
            (Compare::In, false, false)
        } else if self.take("!=") {
            (Compare::NotIn, true, false)
        } else if self.take_words(&["contains"]) {
            (Compare::Contains, false, false)
        } else if self.take_words(&["starts", "with"]) {
            (Compare::StartsWith, false, false)
        } else if self.take_words(&["ends", "with"]) {
            (Compare::EndsWith, false, false)
        } else if self.take_words(&["not", "in"]) {
            (Compare::NotIn, true, true)
        } else if self.take_words(&["in"]) {
            (Compare::In, false, true)
        } else {
            return Err(self.expected("an operator after the label"));
        };
        let values = if set { self.set()? } else { vec![self.string()?] };
        Ok(Expr::Compare { label, how, values, absent })
    }

    fn set(&mut self) -> Result<Vec<String>, SelectorError> {
        self.need("{", "{")?;
        let mut values = Vec::new();
        while !self.take("}") {
            values.push(self.string()?);
            if !self.take(",") {
                self.need("}", ", or }")?;
                break;
            }
        }
        Ok(values)
    }

    fn label(&mut self) -> Result<String, SelectorError> {
        let rest = self.rest();
        let label = &rest[..rest.find(|c| !is_label_char(c)).unwrap_or(rest.len())];
        if label.is_empty() {
            return Err(self.expected("a label, all(), has(), ! or ("));
        }
        self.take(label);
        Ok(label.to_owned())
    }

    fn string(&mut self) -> Result<String, SelectorError> {
        let quote = self.rest().chars().next().filter(|c| matches!(c, '\'' | '"'));
        let quote = quote.ok_or_else(|| self.expected("a quoted string"))?;
        let inner = &self.rest()[1..];
        let value = &inner[..inner.find(quote).ok_or_else(|| self.expected("a closing quote"))?];
        self.at += value.len() + 2;
        self.skip_blanks();
        Ok(value.to_owned())
    }
}

fn is_label_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '/' | '-')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether `selector` selects a node with the labels rack=r1 and tenant.calico-vni.io/red=ready.
    fn selects(selector: &str) -> bool {
        let labels = [("rack", "r1"), ("tenant.calico-vni.io/red", "ready"), ("empty", "")];
        let labels = labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        Selector::parse(selector).unwrap().matches(&labels)
    }

    #[test]
    fn single_operations() {
        for yes in [
            "",
            "  ",
            "all()",
            "all( )",
            "has(rack)",
            "has( empty )",
            "!has(zone)",
            "rack == 'r1'",
            "rack==\"r1\"",
            "rack != 'r2'",
            "zone != 'a'",
            "rack in {'r0', 'r1'}",
            "rack in {'r1',}",
            "rack not in {'r2'}",
            "rack notin {'r2'}",
            "rack not in {}",
            "zone not in {'a'}",
            "rack contains '1'",
            "rack starts with 'r'",
            "rack ends with '1'",
            "tenant.calico-vni.io/red == 'ready'",
        ] {
            assert!(selects(yes), "{yes}");
        }
        for no in [
            "!all()",
            "has(zone)",
            "!has(rack)",
            "rack == 'r2'",
            "zone == ''",
            "rack != 'r1'",
            "rack in {}",
            "zone in {'a'}",
            "rack not in {'r1'}",
            "zone starts with ''",
            "tenant.calico-vni.io/blue == 'ready'",
            "tenant.calico-vni.io/red == 'no'",
        ] {
            assert!(!selects(no), "{no}");
        }
    }

    #[test]
    fn and_binds_stronger_than_or_and_not_binds_strongest() {
        assert!(selects("all() || all() && !all()"));
        assert!(!selects("(all() || all()) && !all()"));
        assert!(selects("!has(zone) && has(rack)"));
        assert!(!selects("!(has(zone) || has(rack))"));
        assert!(selects("!!has(rack)"));
        assert!(selects("!(rack == 'r2') && (has(zone) || rack in {'r1'})"));
    }

    #[test]
    fn what_is_no_selector_says_where() {
        for (text, at) in [
            ("rack", 4),
            ("rack = 'r1'", 5),
            ("rack == r1", 8),
            ("rack == 'r1", 8),
            ("(rack == 'r1'", 13),
            ("rack == 'r1' has(rack)", 13),
            ("has(rack", 8),
            ("rack in 'r1'", 8),
            ("rack in {'r1'", 13),
            ("&& all()", 0),
            ("all() &&", 8),
        ] {
            assert_eq!(Selector::parse(text).unwrap_err().at, at, "{text}");
        }
    }
}
