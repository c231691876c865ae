//! For tests: asks over HTTP, and reads the text form of OpenMetrics as strictly as it is written down, so that what
//! Prometheus would refuse is refused here.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    net::SocketAddr,
    path::Path,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// Status and body of an answer, by a connection of its own.
///
/// # Panics
/// Where nobody answers, or not in HTTP.
pub async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.expect("somebody listens");
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("it is taken");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("it is answered");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    assert!(!head.to_ascii_lowercase().contains("transfer-encoding"), "the body is whole: {head}");
    (status, body.to_owned())
}

/// A metric with all its samples.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Family {
    /// `counter`, `gauge`, `histogram` or `info`.
    pub kind: String,
    /// What it says.
    pub help: String,
    /// Labels, but for a histogram's `le`.
    pub labels: BTreeSet<String>,
}

/// What was scraped.
#[derive(Clone, Debug, Default)]
pub struct Scrape {
    /// By the name without the suffixes of its samples.
    pub families: BTreeMap<String, Family>,
    samples: BTreeMap<(String, BTreeMap<String, String>), f64>,
}

impl Scrape {
    /// Reads it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut scrape = Self::default();
        let body = text.strip_suffix("# EOF\n").ok_or("it does not end with # EOF")?;
        for line in body.lines() {
            let words: Vec<&str> = line.splitn(4, ' ').collect();
            match words.as_slice() {
                ["#", "HELP", name, help] => {
                    let family = Family { help: (*help).to_owned(), ..Family::default() };
                    if scrape.families.insert((*name).to_owned(), family).is_some() {
                        return Err(format!("{name} is there twice"));
                    }
                }
                ["#", what @ ("TYPE" | "UNIT"), name, value] => {
                    let family = scrape.families.get_mut(*name).ok_or_else(|| format!("{line}: no HELP"))?;
                    if *what == "TYPE" {
                        (*value).clone_into(&mut family.kind);
                    } else if !name.ends_with(&format!("_{value}")) {
                        return Err(format!("{name} does not end in its unit {value}"));
                    }
                }
                _ => scrape.sample(line)?,
            }
        }
        Ok(scrape)
    }

    fn sample(&mut self, line: &str) -> Result<(), String> {
        let (series, value) = line.rsplit_once(' ').ok_or_else(|| format!("no value: {line}"))?;
        let value: f64 = value.parse().map_err(|_| format!("no number: {line}"))?;
        let (name, labels) = match series.split_once('{') {
            Some((name, rest)) => {
                (name, labels(rest.strip_suffix('}').ok_or_else(|| format!("no }}: {line}"))?)?)
            }
            None => (series, BTreeMap::new()),
        };
        let (_, family) = self
            .families
            .iter_mut()
            .find(|(of, family)| {
                let suffixes: &[&str] = match family.kind.as_str() {
                    "counter" => &["_total"],
                    "gauge" => &[""],
                    "info" => &["_info"],
                    "histogram" => &["_sum", "_count", "_bucket"],
                    _ => &[],
                };
                name.strip_prefix(of.as_str()).is_some_and(|suffix| suffixes.contains(&suffix))
            })
            .ok_or_else(|| format!("of no metric that was announced: {line}"))?;
        let histogram = family.kind == "histogram";
        family.labels.extend(labels.keys().filter(|key| !(histogram && *key == "le")).cloned());
        if self.samples.insert((name.to_owned(), labels), value).is_some() {
            return Err(format!("there twice: {series}"));
        }
        Ok(())
    }

    /// The value of one series.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        self.samples.get(&(name.to_owned(), labels)).copied()
    }

    /// Labels and values of all series of that name.
    pub fn series(&self, name: &str) -> Vec<(BTreeMap<String, String>, f64)> {
        let samples = self.samples.iter().filter(|((of, _), _)| of == name);
        samples.map(|((_, labels), value)| (labels.clone(), *value)).collect()
    }

    /// A row for each metric, by the name that is asked for in a query.
    fn table(&self) -> String {
        let rows = self.families.iter().map(|(name, family)| {
            let suffix = match family.kind.as_str() {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            let labels: Vec<String> = family.labels.iter().map(|label| format!("`{label}`")).collect();
            let help = family.help.trim_end_matches('.');
            format!("| `{name}{suffix}` | {} | {} | {help} |\n", family.kind, labels.join(", "))
        });
        rows.collect()
    }
}

fn labels(mut text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut labels = BTreeMap::new();
    while !text.is_empty() {
        let (key, rest) = text.split_once("=\"").ok_or_else(|| format!("no label: {text}"))?;
        let mut value = String::new();
        let mut rest = rest.chars();
        loop {
            match rest.next().ok_or_else(|| format!("no end: {text}"))? {
                '"' => break,
                '\\' => value.push(match rest.next() {
                    Some('n') => '\n',
                    Some(escaped @ ('"' | '\\')) => escaped,
                    other => return Err(format!("no escape: {other:?}")),
                }),
                plain => value.push(plain),
            }
        }
        if labels.insert(key.to_owned(), value).is_some() {
            return Err(format!("label {key} is there twice"));
        }
        text = rest.as_str();
        text = text.strip_prefix(',').unwrap_or(text);
    }
    Ok(labels)
}

/// Compares the table below a heading of `docs/metrics.md` with what was scraped, which has to have a series of each metric;
/// `UPDATE_GOLDEN=1` writes it anew.
///
/// # Panics
/// Where they differ.
pub fn assert_documented(docs: &Path, heading: &str, scrape: &Scrape) {
    let bare = scrape.families.iter().filter(|(name, family)| {
        family.kind.is_empty() || !scrape.samples.keys().any(|(sample, _)| sample.starts_with(name.as_str()))
    });
    let bare: Vec<_> = bare.map(|(name, _)| name).collect();
    assert!(bare.is_empty(), "the test has to fill these, or their labels are not known: {bare:?}");
    let text = fs::read_to_string(docs).expect("the page is there");
    let head = format!("## {heading}\n");
    let (before, after) = text.split_once(&head).expect("the heading is there");
    let rule = "|---|---|---|---|\n";
    let (columns, rest) = after.split_once(rule).expect("a table is there");
    let rows = rest.lines().take_while(|line| line.starts_with('|')).map(|line| line.len() + 1).sum();
    let (written, rest) = rest.split_at(rows);
    let table = scrape.table();
    if env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(docs, format!("{before}{head}{columns}{rule}{table}{rest}")).expect("it can be written");
        return;
    }
    assert_eq!(written, table, "{}: run with UPDATE_GOLDEN=1 and read the difference", docs.display());
}
