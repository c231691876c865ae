//! Completion: scripts for shells, and answers to kubectl, which asks `kubectl_complete-vni` with the words so far.
//!
//! Reads the command line's own description; of the cluster, names alone.

use calico_vni_crds::Tenant;
use clap::{Arg, ArgAction, Command, CommandFactory, ValueHint};
use clap_complete::{Shell, generate};
use k8s_openapi::api::core::v1::Node;
use kube::api::ApiResource;

use crate::{
    cli::{Arguments, Connection},
    input::Cluster,
};

/// Cobra's directive: nothing to add to these words.
const NO_FILES: &str = ":4";
/// Cobra's directive: the shell may offer files.
const FILES: &str = ":0";

/// What belongs at the place of the last word.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Wanted {
    /// One of these words, each with what it means.
    Words(Vec<(String, String)>),
    /// Name of a Tenant.
    Tenant,
    /// Name of a Node.
    Node,
    /// A file.
    File,
    /// Nobody knows.
    Nothing,
}

/// A script for a shell, for the program by its own name.
pub fn script(shell: Shell) -> String {
    let mut command = Arguments::command().name("kubectl-vni").bin_name("kubectl-vni");
    let mut script = Vec::new();
    generate(shell, &mut command, "kubectl-vni", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// The answer to kubectl: a candidate a line with what it means after a tab, and at the end a directive.
pub async fn answer(words: &[String]) -> String {
    let (candidates, directive) = match wanted(&Arguments::command(), words) {
        Wanted::Words(words) => (words, NO_FILES),
        Wanted::Tenant => (names(&ApiResource::erase::<Tenant>(&())).await, NO_FILES),
        Wanted::Node => (names(&ApiResource::erase::<Node>(&())).await, NO_FILES),
        Wanted::File => (Vec::new(), FILES),
        Wanted::Nothing => (Vec::new(), NO_FILES),
    };
    let last = words.last().map_or("", String::as_str);
    let mut lines = String::new();
    for (word, about) in candidates.iter().filter(|(word, _)| word.starts_with(last)) {
        lines.push_str(word);
        if !about.is_empty() {
            lines.extend(["\t", about]);
        }
        lines.push('\n');
    }
    lines + directive + "\n"
}

/// Names in the cluster; none where it does not answer, since a shell is no place for errors.
async fn names(resource: &ApiResource) -> Vec<(String, String)> {
    let Ok(cluster) = Cluster::connect(&Connection::default()).await else { return Vec::new() };
    let objects = cluster.list(resource).await.ok().flatten().unwrap_or_default();
    let name =
        |object: &serde_json::Value| Some((object["metadata"]["name"].as_str()?.to_owned(), String::new()));
    objects.iter().filter_map(name).collect()
}

/// Walks along the words as the parser would.
fn wanted(root: &Command, words: &[String]) -> Wanted {
    let Some((last, before)) = words.split_last() else { return Wanted::Nothing };
    let (mut command, mut positional, mut pending) = (root, 0, None);
    for word in before {
        if pending.take().is_some() {
            continue;
        }
        if word.starts_with('-') && word.len() > 1 {
            pending = flag(command, word).filter(|arg| takes_value(arg) && !word.contains('='));
        } else if let Some(inner) = command.find_subcommand(word) {
            command = inner;
        } else {
            positional += 1;
        }
    }
    if let Some(arg) = pending {
        return value(arg);
    }
    if last.starts_with('-') {
        let flags = command.get_arguments().filter(|arg| !arg.is_hide_set());
        let named = flags.filter_map(|arg| Some((format!("--{}", arg.get_long()?), help(arg.get_help()))));
        return Wanted::Words(named.collect());
    }
    let mut inner = command.get_subcommands().filter(|inner| !inner.is_hide_set()).peekable();
    if inner.peek().is_some() {
        return Wanted::Words(inner.map(|c| (c.get_name().to_owned(), help(c.get_about()))).collect());
    }
    command.get_positionals().nth(positional).map_or(Wanted::Nothing, value)
}

fn flag<'c>(command: &'c Command, word: &str) -> Option<&'c Arg> {
    let name = word.split('=').next().unwrap_or_default();
    command.get_arguments().find(|arg| match name.strip_prefix("--") {
        Some(long) => arg.get_long() == Some(long),
        None => arg.get_short().is_some_and(|short| name.strip_prefix('-') == Some(&short.to_string())),
    })
}

fn takes_value(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Set | ArgAction::Append)
}

fn value(arg: &Arg) -> Wanted {
    let possible = arg.get_possible_values();
    if !possible.is_empty() {
        let words = possible.iter().filter(|value| !value.is_hide_set());
        return Wanted::Words(words.map(|v| (v.get_name().to_owned(), help(v.get_help()))).collect());
    }
    let names = arg.get_value_names().and_then(|names| names.first()).map_or("", |name| name.as_str());
    match (names, arg.get_value_hint()) {
        ("TENANT", _) => Wanted::Tenant,
        ("NODE", _) => Wanted::Node,
        (_, ValueHint::FilePath | ValueHint::AnyPath) => Wanted::File,
        _ => Wanted::Nothing,
    }
}

/// The first sentence's first line.
fn help(text: Option<&clap::builder::StyledStr>) -> String {
    text.map(ToString::to_string).unwrap_or_default().lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(words: &[&str]) -> Wanted {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        wanted(&Arguments::command(), &words)
    }

    fn words(wanted: Wanted) -> Vec<String> {
        let Wanted::Words(words) = wanted else { panic!("{wanted:?} are no words") };
        words.into_iter().map(|(word, _)| word).collect()
    }

    #[test]
    fn commands_flags_and_values_are_found_where_they_belong() {
        let commands = words(at(&[""]));
        assert!(commands.contains(&"plan".to_owned()) && !commands.contains(&"__complete".to_owned()));
        assert!(words(at(&["plan", "--c"])).contains(&"--cluster".to_owned()));
        assert_eq!(words(at(&["plan", "-o", ""])), ["table", "json", "yaml"]);
        assert_eq!(at(&["plan", "-f", ""]), Wanted::File);
        // A flag without a value takes none of the words.
        assert_eq!(words(at(&["plan", "--cluster", "--output", "j"])), ["table", "json", "yaml"]);
        assert_eq!(at(&["plan", ""]), Wanted::Nothing);
    }

    #[test]
    fn every_shell_gets_a_script_that_names_the_program() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = script(shell);
            assert!(script.contains("kubectl-vni") && script.contains("plan"), "{shell}: {script}");
        }
    }
}
