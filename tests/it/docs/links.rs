//! Links: each leads to a file and a heading that exist.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::{files, pages, repository};

/// The lines of a page outside fenced blocks.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut fenced = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    })
}

/// The anchors of a page, as GitHub makes them of its headings.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut anchors = BTreeSet::new();
    for line in prose(text) {
        let title = line.trim_start_matches('#');
        if title.len() == line.len() || !title.starts_with(' ') {
            continue;
        }
        let kept = title.trim().chars().filter(|character| character.is_alphanumeric() || " -_".contains(*character));
        let anchor: String = kept.flat_map(char::to_lowercase).map(|c| if c == ' ' { '-' } else { c }).collect();
        let times = seen.entry(anchor.clone()).or_default();
        anchors.insert(if *times == 0 { anchor } else { format!("{anchor}-{times}") });
        *times += 1;
    }
    anchors
}

/// Where the links of a page lead. Code spans have none.
fn targets(text: &str) -> Vec<String> {
    let joined = prose(text).collect::<Vec<_>>().join("\n");
    let without_code: String = joined.split('`').step_by(2).collect::<Vec<_>>().join(" ");
    let mut found: Vec<String> = Vec::new();
    for rest in without_code.split("](").skip(1) {
        let target: String = rest.split(')').next().unwrap_or_default().split_whitespace().collect();
        found.push(target);
    }
    // Definitions: `[name]: target`.
    for line in without_code.lines().filter(|line| line.starts_with('[')) {
        if let Some((_, target)) = line.split_once("]: ") {
            found.push(target.trim().to_owned());
        }
    }
    found
}

#[test]
fn every_link_leads_to_a_file_and_a_heading_that_exist() {
    let mut broken = Vec::new();
    let mut checked = 0;
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        let shown = page.strip_prefix(repository()).unwrap();
        for target in targets(&text) {
            if target.starts_with("https://") {
                continue;
            }
            checked += 1;
            let (path, anchor) = target.split_once('#').map_or((&target[..], None), |(path, id)| (path, Some(id)));
            let file = if path.is_empty() { page.clone() } else { page.parent().unwrap().join(path) };
            let Ok(file) = file.canonicalize() else {
                broken.push(format!("{shown:?}: {target}: no such file"));
                continue;
            };
            if !file.starts_with(repository().canonicalize().unwrap()) {
                broken.push(format!("{shown:?}: {target}: outside of the repository"));
            }
            let Some(anchor) = anchor else { continue };
            let found = std::fs::read_to_string(&file).is_ok_and(|text| anchors(&text).contains(anchor));
            if !found {
                broken.push(format!("{shown:?}: {target}: no such heading"));
            }
        }
    }
    assert!(checked > 100, "{checked} links");
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// Every `docs/...md` that a text names, without the host of an address.
fn named(text: &str) -> Vec<String> {
    let is_of_path = |character: char| character.is_ascii_alphanumeric() || "/._-".contains(character);
    let starts = text.match_indices("docs/").filter(|(at, _)| {
        let before = text[..*at].chars().next_back();
        !before.is_some_and(|character| is_of_path(character) && character != '/')
    });
    let paths = starts.map(|(at, _)| text[at..].chars().take_while(|c| is_of_path(*c)).collect::<String>());
    paths.filter(|path: &String| path.ends_with(".md")).collect()
}

#[test]
fn every_page_that_the_code_names_exists() {
    let mut files: Vec<PathBuf> = [
        ("src", "rs"),
        ("tests", "rs"),
        ("benches", "rs"),
        ("build", "rs"),
        ("lua", "lua"),
        ("lua", "toml"),
        ("proto", "proto"),
        ("deploy", "yaml"),
        ("deploy", "json"),
        ("examples", "py"),
    ]
    .into_iter()
    .flat_map(|(directory, ending)| files(directory, ending))
    .collect();
    files.extend(
        ["dev", "Dockerfile", "docker-compose.yml", "Cargo.toml", "deny.toml", "benches/counts.toml"]
            .map(|name| repository().join(name)),
    );
    let mut missing = BTreeSet::new();
    let mut checked = 0;
    for file in files.iter().filter(|file| !file.ends_with(Path::new("tests/it/docs/links.rs"))) {
        for path in named(&std::fs::read_to_string(file).unwrap()) {
            checked += 1;
            if !repository().join(&path).is_file() {
                missing.insert(format!("{:?} names {path}", file.strip_prefix(repository()).unwrap()));
            }
        }
    }
    assert!(checked > 50, "{checked} names");
    assert!(missing.is_empty(), "{}", missing.into_iter().collect::<Vec<_>>().join("\n"));
}
