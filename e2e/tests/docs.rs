//! Documents lead somewhere: every link, every anchor, every file of the repository that they name; and the book has every page.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use calico_vni_e2e::paths;
use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

/// What a page names.
#[derive(Default)]
struct Page {
    /// Its headings, as links have them.
    anchors: BTreeSet<String>,
    /// Where it links to.
    links: Vec<String>,
    /// Words of its code, in the text and in blocks.
    words: Vec<String>,
}

impl Page {
    fn read(path: &Path) -> Self {
        Self::parse(&fs::read_to_string(path).unwrap())
    }

    fn parse(text: &str) -> Self {
        let mut page = Self::default();
        let mut heading: Option<String> = None;
        let mut block = false;
        let mut twice: BTreeMap<String, usize> = BTreeMap::new();
        for event in Parser::new_ext(text, Options::ENABLE_TABLES) {
            if let (Some(heading), Event::Text(text) | Event::Code(text)) = (&mut heading, &event) {
                heading.push_str(text);
            }
            match event {
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::End(TagEnd::Heading(_)) => {
                    let anchor = anchor(&heading.take().unwrap());
                    let times = twice.entry(anchor.clone()).or_default();
                    page.anchors.insert(if *times == 0 { anchor } else { format!("{anchor}-{times}") });
                    *times += 1;
                }
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                    page.links.push(dest_url.into_string());
                }
                Event::Start(Tag::CodeBlock(_)) => block = true,
                Event::End(TagEnd::CodeBlock) => block = false,
                Event::Code(code) => page.words.extend(words(&code)),
                Event::Text(code) if block => page.words.extend(words(&code)),
                _ => {}
            }
        }
        page
    }
}

/// As a link has a heading: lower case, words joined by a hyphen, other signs left out.
fn anchor(heading: &str) -> String {
    let sign = |c: char| match c {
        ' ' => Some('-'),
        c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c.to_ascii_lowercase()),
        _ => None,
    };
    heading.chars().filter_map(sign).collect()
}

fn words(code: &str) -> Vec<String> {
    code.split_whitespace().map(str::to_owned).collect()
}

/// All pages of the checkout that are not built.
fn pages(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let (path, name) = (entry.path(), entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            // Below `src` are parts of pages that are generated elsewhere.
            if name != "target" && name != "src" && !name.to_str().unwrap().starts_with('.') {
                found.extend(pages(&path));
            }
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
    found
}

/// Links that lead nowhere, and files that are named and not there.
fn broken(path: &Path, page: &Page) -> Vec<String> {
    let leads = |link: &str| {
        let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
        let target = if file.is_empty() { path.to_owned() } else { path.parent().unwrap().join(file) };
        let has = || match file {
            "" => page.anchors.contains(anchor),
            _ => Page::read(&target).anchors.contains(anchor),
        };
        target.exists() && (anchor.is_empty() || has())
    };
    let links = page.links.iter().filter(|link| !link.contains("://") && !leads(link));
    let files = page.words.iter().filter(|word| names_a_file(word) && !paths::checkout().join(word).exists());
    links.chain(files).map(|what| format!("{}: {what}", path.display())).collect()
}

/// Whether a word of code names a file or folder of the repository.
fn names_a_file(word: &str) -> bool {
    ["deploy/", "docs/", "examples/", "crds/", "e2e/", "controller/", "router-sidecar/"]
        .iter()
        .any(|folder| word.starts_with(folder))
}

#[test]
fn what_pages_name_is_there() {
    let pages = pages(paths::checkout());
    let readme = paths::checkout().join("README.md");
    assert!(pages.contains(&readme), "{pages:?}");
    let found: Vec<String> = pages.iter().flat_map(|path| broken(path, &Page::read(path))).collect();
    assert_eq!(found, [""; 0]);
}

#[test]
fn what_is_not_there_is_found() {
    let text = "# A `b`, c\n# A `b`, c\n[a](#a-b-c) [b](#a-b-c-1) [c](docs/api.md#tenant) [d](https://example.com/x)\n\
                [e](#a) [f](docs/nowhere.md) [g](docs/api.md#nothing) `deploy/rbac.yaml` `cat deploy/nothing.yaml`\n\n\
                ```\nkubectl apply -f examples/quickstart.yaml -f examples/nothing.yaml\n[h](nowhere)\n```\n";
    let readme = paths::checkout().join("README.md");
    let found = broken(&readme, &Page::parse(text));
    let found: Vec<&str> =
        found.iter().filter_map(|told| told.split_once(": ")).map(|(_, what)| what).collect();
    let wrong =
        ["#a", "docs/nowhere.md", "docs/api.md#nothing", "deploy/nothing.yaml", "examples/nothing.yaml"];
    assert_eq!(found, wrong);
}

#[test]
fn the_book_has_every_page_once() {
    let docs = paths::checkout().join("docs");
    let mut chapters = Page::read(&docs.join("SUMMARY.md")).links;
    chapters.sort();
    let mut files: Vec<String> = pages(&docs)
        .iter()
        .map(|page| page.strip_prefix(&docs).unwrap().to_str().unwrap().to_owned())
        .filter(|name| name != "SUMMARY.md")
        .chain(["../README.md", "../CONTRIBUTING.md"].map(str::to_owned))
        .collect();
    files.sort();
    assert_eq!(chapters, files, "docs/SUMMARY.md and the files of docs/");
}
