//! How answers are printed: a table, or the answer itself as JSON or YAML. Writes to standard output.

use std::{
    fmt::{self, Display},
    io::{ErrorKind, Write},
};

use anyhow::Context;
use clap::ValueEnum;
use serde::Serialize;

/// How to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people: tables and sentences.
    #[default]
    #[value(alias = "text")]
    Table,
    /// For programs.
    Json,
    /// For programs, and to read.
    Yaml,
}

/// An answer in that format; `table` is asked for the one that people read.
pub fn render(
    answer: &impl Serialize,
    format: Format,
    table: impl FnOnce() -> String,
) -> anyhow::Result<String> {
    // By way of JSON, so that enums are plain maps in YAML too.
    let value = || serde_json::to_value(answer).context("the answer");
    Ok(match format {
        Format::Table => table(),
        Format::Json => serde_json::to_string_pretty(&value()?).context("the answer")? + "\n",
        Format::Yaml => serde_yaml::to_string(&value()?).context("the answer")?,
    })
}

/// Prints it. A reader that has seen enough (`| head`) is no error.
pub fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("standard output"),
        _ => Ok(()),
    }
}

/// A span of time by its two largest units, as kubectl tells ages.
pub fn span(seconds: u64) -> String {
    match (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m{}s", seconds % 60),
        (0, hours, minutes) => format!("{hours}h{minutes}m"),
        (days, hours, _) => format!("{days}d{hours}h"),
    }
}

/// Without what a terminal would obey: some of what is printed is an agent's own words.
pub fn tame(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// Columns as kubectl prints them: as wide as their widest cell, three spaces apart.
#[derive(Clone, Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// One with these headings.
    pub fn new<const N: usize>(headings: [&str; N]) -> Self {
        Self { rows: vec![headings.map(str::to_owned).to_vec()] }
    }

    /// Adds a row.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.map(|cell| if cell.is_empty() { "-".to_owned() } else { tame(&cell) }).to_vec());
    }

    /// Whether it has no row.
    pub fn is_empty(&self) -> bool {
        self.rows.len() == 1
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows[0].len();
        let width = |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max();
        let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
        for row in &self.rows {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            writeln!(f, "{}", cells.collect::<Vec<_>>().join("   ").trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_has_two_units_at_most() {
        let spans = [0, 7, 60, 61, 3_600, 3_661, 90_000, 86_400 * 12 + 59];
        assert_eq!(spans.map(span), ["0s", "7s", "1m0s", "1m1s", "1h0m", "1h1m", "1d1h", "12d0h"]);
    }

    #[test]
    fn columns_line_up_and_lines_end_clean() {
        let mut table = Table::new(["NAME", "VNI"]);
        table.row(["a-long-name".into(), String::new()]);
        table.row(["b".into(), "1001".into()]);
        table.row(["\u{1b}[2J".into(), "1\n2".into()]);
        assert_eq!(
            table.to_string(),
            "NAME          VNI\na-long-name   -\nb             1001\n [2J          1 2\n"
        );
    }
}
