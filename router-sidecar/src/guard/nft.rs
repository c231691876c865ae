//! Loads and lists the guard with the `nft` program. Runs processes; touches the table of [`super::TABLE`] alone.
//!
//! A loaded table is known by two names: the digest of the ruleset that we wrote, which the table itself holds, and
//! the digest of its listing right after it was loaded. The listing is taken without what changes by itself (handles
//! and counts), so a table that somebody edited, or that lost an element, no longer has the second name.

use std::{collections::BTreeMap, process::Stdio};

use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::{io::AsyncWriteExt as _, process::Command, runtime};
use tracing::debug;

use super::{Counts, Ruleset, Standing, TABLE, Table};
use crate::netns::{Netns, NetnsError};

/// Why the guard could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The program could not be run.
    #[error("cannot run `nft {0}`: {1}; is the nftables package in the image?")]
    Run(String, #[source] std::io::Error),
    /// It refused.
    #[error("`nft {0}`: {1}")]
    Refused(String, String),
    /// What it said is not what it says by its documentation (libnftables-json(5)).
    #[error("`nft {0}` answered in a form that is not understood: {1}")]
    Answer(String, String),
}

/// The table as it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Digest of the ruleset that it was loaded from, by its own word.
    pub ruleset: String,
    /// Digest of what was listed.
    pub listed: String,
    /// Its named counters.
    pub counters: BTreeMap<String, Counts>,
    /// All that is in it.
    pub standing: Standing,
}

/// The table, or `None` where there is none.
pub async fn list(netns: &Netns) -> Result<Option<Listing>, NftError> {
    let args = format!("-j list table {TABLE}");
    match run(netns, &args, None).await {
        Ok(answer) => parse(&answer).map(Some).map_err(|e| NftError::Answer(args, e)),
        Err(NftError::Refused(_, reason)) if reason.contains("No such file or directory") => Ok(None),
        Err(error) => Err(error),
    }
}

/// Puts the ruleset in the place of what stands in the host's and in the router's namespace, each in one transaction,
/// and says how it is listed. Counters go on from where they are.
pub async fn load(host: &Netns, router: &Netns, ruleset: &Ruleset) -> Result<[Listing; 2], NftError> {
    let [of_host, of_router] = ruleset.tables(&ruleset.digest());
    // The router's first: what is let into a tenant's link is what the host's side has checked.
    let of_router = put(router, &of_router).await?;
    Ok([put(host, &of_host).await?, of_router])
}

/// Makes the table of what stands, so that no packet misses anything, or else replaces it.
async fn put(netns: &Netns, table: &Table) -> Result<Listing, NftError> {
    let standing = list(netns).await?;
    let updated = match &standing {
        Some(standing) => run(netns, "-f -", Some(&table.updating(&standing.standing))).await,
        None => Err(NftError::Refused(String::new(), "there is none".into())),
    };
    if let Err(reason) = updated {
        debug!(%reason, "the guard is replaced as a whole");
        let counters = standing.map(|standing| standing.counters).unwrap_or_default();
        run(netns, "-f -", Some(&table.replacing(&counters))).await?;
    }
    let gone = || "the table that was just loaded is not there".to_owned();
    list(netns).await?.ok_or_else(|| NftError::Answer(format!("-j list table {TABLE}"), gone()))
}

/// The named counters of the table, without the rest of it.
pub async fn counters(netns: &Netns) -> Result<BTreeMap<String, Counts>, NftError> {
    let args = format!("-j list counters table {TABLE}");
    let answer = run(netns, &args, None).await?;
    parse(&answer).map(|listing| listing.counters).map_err(|e| NftError::Answer(args, e))
}

/// Deletes the table; none is fine too.
pub async fn delete(netns: &Netns) -> Result<(), NftError> {
    run(netns, "-f -", Some(&format!("table {TABLE}\ndelete table {TABLE}\n"))).await.map(drop)
}

async fn run(netns: &Netns, args: &str, input: Option<&str>) -> Result<String, NftError> {
    let failed = |error| NftError::Run(args.to_owned(), error);
    let mut command = Command::new("nft");
    command
        .args(args.split(' '))
        .env("LC_ALL", "C")
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let runtime = runtime::Handle::current();
    let mut child = netns
        .run(|| {
            let _inside = runtime.enter();
            command.spawn()
        })?
        .map_err(failed)?;
    let stdin = child.stdin.take();
    let write = async {
        match (stdin, input) {
            (Some(mut stdin), Some(input)) => stdin.write_all(input.as_bytes()).await,
            _ => Ok(()),
        }
    };
    // Written while the answer is read: neither pipe can fill up and stop the other.
    let (written, output) = tokio::join!(write, child.wait_with_output());
    let output = output.map_err(failed)?;
    if output.status.success() {
        written.map_err(failed)?;
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    // The first line names the error; those below it quote the input.
    let reason =
        String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or("no reason given").to_owned();
    Err(NftError::Refused(args.to_owned(), reason))
}

fn parse(answer: &str) -> Result<Listing, String> {
    let answer: Value = serde_json::from_str(answer).map_err(|e| e.to_string())?;
    let objects = answer["nftables"].as_array().ok_or("no `nftables` list")?;
    let mut listing = Listing::default();
    let mut hash = Sha256::new();
    for object in objects {
        if object.get("metainfo").is_some() {
            continue;
        }
        if let Some(counter) = object.get("counter") {
            let count = |field: &str| counter[field].as_u64().unwrap_or_default();
            let name = counter["name"].as_str().ok_or("a counter without a name")?;
            listing.counters.insert(name.to_owned(), (count("packets"), count("bytes")));
        }
        for kind in ["chain", "set", "map", "counter"] {
            let Some(name) = object[kind]["name"].as_str() else { continue };
            listing.standing.names.entry(kind.to_owned()).or_default().insert(name.to_owned());
            if matches!(kind, "set" | "map") {
                let elements = object[kind]["elem"].as_array().map_or(&[][..], Vec::as_slice);
                if let Some(elements) = elements.iter().map(element).collect() {
                    listing.standing.elements.insert(name.to_owned(), elements);
                }
            }
        }
        if object["rule"]["chain"] == "digest" {
            object["rule"]["comment"].as_str().unwrap_or_default().clone_into(&mut listing.ruleset);
        }
        let mut object = object.clone();
        forget_what_changes(&mut object);
        hash.update(object.to_string());
        hash.update("\n");
    }
    listing.listed = hex::encode(hash.finalize());
    Ok(listing)
}

/// An element of a set or a map as it is written in a ruleset; `None` where it is none of ours (libnftables-json(5)).
fn element(value: &Value) -> Option<String> {
    match value {
        Value::String(word) => Some(word.clone()),
        Value::Number(number) => Some(number.to_string()),
        // Of a map: key and value.
        Value::Array(pair) => match &pair[..] {
            [key, value] => Some(format!("{} : {}", element(key)?, element(value)?)),
            _ => None,
        },
        Value::Object(object) => {
            let (kind, of) = object.iter().next()?;
            match kind.as_str() {
                "prefix" => Some(format!("{}/{}", of["addr"].as_str()?, of["len"].as_u64()?)),
                "concat" => {
                    let parts: Option<Vec<String>> = of.as_array()?.iter().map(element).collect();
                    Some(parts?.join(" . "))
                }
                "jump" | "goto" => Some(format!("{kind} {}", of["target"].as_str()?)),
                _ => None,
            }
        }
        _ => None,
    }
}

/// Takes out the kernel's handles and the counts.
fn forget_what_changes(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for field in ["handle", "packets", "bytes"] {
                fields.remove(field);
            }
            fields.values_mut().for_each(forget_what_changes);
        }
        Value::Array(values) => values.iter_mut().for_each(forget_what_changes),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(handle: u32, packets: u32, pool: &str) -> String {
        format!(
            r#"{{"nftables": [{{"metainfo": {{"version": "1.0.{handle}"}}}},
            {{"counter": {{"name": "tenant-red-1001", "handle": {handle}, "packets": {packets}, "bytes": 9}}}},
            {{"rule": {{"chain": "digest", "handle": {handle}, "comment": "abcd", "expr": [{{"return": null}}]}}}},
            {{"map": {{"name": "to4", "elem": [["{pool}", {{"jump": {{"target": "to"}}}}]]}}}}]}}"#
        )
    }

    #[test]
    fn handles_and_counts_do_not_count() {
        let one = parse(&answer(1, 5, "10.0.0.1")).unwrap();
        let two = parse(&answer(2, 6, "10.0.0.1")).unwrap();
        assert_eq!((one.ruleset.as_str(), one.counters["tenant-red-1001"]), ("abcd", (5, 9)));
        assert_eq!(one.listed, two.listed);
        assert_ne!(one.listed, parse(&answer(1, 5, "10.0.0.2")).unwrap().listed);
    }

    #[test]
    fn an_answer_of_another_form_is_an_error() {
        assert!(parse("{}").is_err());
        assert!(parse("nft").is_err());
    }
}
