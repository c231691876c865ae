//! What docs/underlay.md shows of FRR is FRR's language, as vtysh(1) of this machine knows it.

use std::{fs, process::Command};

use calico_vni_e2e::paths;
use pulldown_cmark::{CodeBlockKind, Event, Parser, Tag, TagEnd};

/// Blocks of a page that say that they are FRR's.
fn blocks(page: &str) -> Vec<String> {
    let mut blocks: Vec<String> = Vec::new();
    let mut inside = false;
    for event in Parser::new(page) {
        match event {
            Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(language))) if &*language == "frr" => {
                inside = true;
                blocks.push(String::new());
            }
            Event::End(TagEnd::CodeBlock) => inside = false,
            Event::Text(text) if inside => blocks.last_mut().unwrap().push_str(&text),
            _ => {}
        }
    }
    blocks
}

/// What vtysh does not understand; nothing is asked of daemons.
fn complaint(configuration: &str) -> Option<String> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("frr.conf");
    fs::write(&file, configuration).unwrap();
    let output = Command::new("vtysh").args(["--dryrun", "--inputfile"]).arg(&file).output();
    let output = output.expect("vtysh starts (package frr; `make deps` installs it)");
    (!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn frr_understands_what_the_guide_shows() {
    let page = fs::read_to_string(paths::checkout().join("docs/underlay.md")).unwrap();
    let blocks = blocks(&page);
    assert!(blocks.len() == 2, "{blocks:?}");
    for block in &blocks {
        assert_eq!(complaint(block), None, "{block}");
    }
    let wrong = blocks[0].replace("advertise-all-vni", "advertise-every-vni");
    let told = complaint(&wrong).expect("a line that FRR does not know is found");
    assert!(told.contains("advertise-every-vni"), "{told}");
}
