//! Runs the examples of README, of "Getting started", and of the pages about concepts and guides, as they stand.
//!
//! A page is read from top to bottom. `console` blocks are calls and commands with their answers; a `yaml` block is a catalog, by
//! which the calls below it are served; `python` blocks stand in `examples/python`; `sh` blocks have flags that exist. A block that
//! none of this knows fails, so that no example is skipped in silence.
//!
//! In an answer, `...` stands for what is left out: fields of an object, items of a list, or lines.

mod console;
mod page;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use tollgate::catalog;

use crate::support::served::tollgate;
use page::{Page, contains_in_order};

/// Its snippets are held by `tests/production/envoy_proxy.rs`, against configurations that run in a real Envoy.
const ENVOY: &str = "docs/guides/envoy.md";

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files of a directory with this ending, by their paths in the repository.
fn files(directory: &str, ending: &str) -> Vec<String> {
    let entries = std::fs::read_dir(repository().join(directory)).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e == ending));
    let mut names: Vec<_> =
        paths.map(|path| format!("{directory}/{}", path.file_name().unwrap().to_str().unwrap())).collect();
    names.sort();
    names
}

/// Every page whose examples run.
fn pages() -> Vec<Page> {
    let mut paths = vec!["README.md".to_owned(), "docs/getting-started.md".to_owned()];
    paths.extend(files("docs/concepts", "md"));
    paths.extend(files("docs/guides", "md"));
    assert!(paths.len() >= 12, "{paths:?}");
    paths.into_iter().filter(|path| path != ENVOY).map(Page::read).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_and_command_of_the_pages_answers_as_they_say() {
    let mut calls = 0;
    let mut commands = 0;
    for page in pages() {
        let mut session = console::Session::new();
        for block in &page.blocks {
            let place = format!("{}:{}", page.path, block.line);
            match block.language {
                "yaml" if block.is_whole_catalog() => session.serve(block.text),
                "console" if console::is_call(block.text) => {
                    session.call(block.text, &place).await;
                    calls += 1;
                }
                "console" => {
                    session.command(block.text, &place);
                    commands += 1;
                }
                _ => {}
            }
        }
    }
    assert!(calls >= 25 && commands >= 2, "the pages have {calls} calls and {commands} commands");
}

#[test]
fn every_block_of_the_pages_is_of_a_kind_that_is_held() {
    for page in pages() {
        for block in &page.blocks {
            let known = ["console", "mermaid", "python", "sh", "text", "yaml"].contains(&block.language);
            assert!(known, "{}:{}: a block of {:?}", page.path, block.line, block.language);
        }
    }
}

#[test]
fn the_catalogs_of_the_pages_are_valid_and_none_warns() {
    let mut checked = 0;
    for page in pages() {
        for block in page.blocks.iter().filter(|block| block.language == "yaml") {
            let text = block.catalog();
            let parsed = catalog::check(&text, jiff::tz::db())
                .unwrap_or_else(|problems| panic!("{}:{}: {problems}\n{text}", page.path, block.line));
            assert_eq!(parsed.warnings, [], "{}:{}", page.path, block.line);
            checked += 1;
        }
    }
    assert!(checked >= 5, "the pages have {checked} catalogs");
}

#[test]
fn the_python_of_the_pages_is_that_of_the_examples() {
    let texts: Vec<_> = files("examples/python", "py")
        .into_iter()
        .map(|path| std::fs::read_to_string(repository().join(path)).unwrap())
        .collect();
    let mut checked = 0;
    for page in pages() {
        for block in page.blocks.iter().filter(|block| block.language == "python") {
            let found = texts.iter().any(|text| contains_in_order(text, block.text));
            assert!(found, "{}:{}: no file of examples/python has:\n{}", page.path, block.line, block.text);
            checked += 1;
        }
    }
    assert!(checked >= 5, "the pages have {checked} Python snippets");
}

/// The flags of `tollgate serve`, and of the other commands that pages show.
fn flags() -> BTreeSet<String> {
    let commands: [&[&str]; 7] =
        [&["serve"], &["config"], &["verify"], &["health"], &["keys", "create"], &["keys", "list"], &["keys", "token"]];
    let mut found = BTreeSet::new();
    for command in commands {
        let output = tollgate().args(command).arg("--help").output().unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        let words = help.split([' ', '\n', '=', '[', ']', ',', '.', ')', '(']);
        found.extend(words.filter(|word| word.starts_with("--")).map(str::to_owned));
    }
    assert!(found.len() >= 30, "{found:?}");
    found
}

#[test]
fn the_flags_in_the_commands_of_the_pages_exist() {
    let flags = flags();
    let mut checked = 0;
    for page in pages() {
        for block in page.blocks.iter().filter(|block| block.language == "sh") {
            let commands = block.text.replace("\\\n", " ");
            for command in commands.lines().filter(|line| line.contains("tollgate ")) {
                let before_comment = command.split(" #").next().unwrap_or_default();
                for flag in before_comment.split_whitespace().filter(|word| word.starts_with("--")) {
                    let flag = flag.split('=').next().unwrap_or_default();
                    assert!(flags.contains(flag), "{}:{}: {flag}", page.path, block.line);
                    checked += 1;
                }
            }
        }
    }
    assert!(checked >= 2, "the pages have {checked} flags");
}

#[test]
fn the_index_of_the_pages_names_every_page() {
    let index = std::fs::read_to_string(repository().join("docs/README.md")).unwrap();
    let mut open: Vec<PathBuf> = vec![repository().join("docs")];
    let mut named = 0;
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            // Decisions have an index of their own, which is their folder.
            if path.is_dir() && path.file_name().is_some_and(|name| name != "adr") {
                open.push(path);
            } else if path.extension().is_some_and(|ending| ending == "md") {
                let page = path.strip_prefix(repository().join("docs")).unwrap().to_str().unwrap();
                assert!(page == "README.md" || index.contains(&format!("]({page})")), "docs/README.md lacks {page}");
                named += 1;
            }
        }
    }
    assert!(named >= 20, "{named}");
}

#[test]
fn the_readme_is_one_screen() {
    let lines = std::fs::read_to_string(repository().join("README.md")).unwrap().lines().count();
    assert!(lines <= 150, "README.md has {lines} lines: move what does not sell to a page below docs/");
}

#[test]
fn every_link_for_language_models_leads_to_a_file() {
    let index = std::fs::read_to_string(repository().join("llms.txt")).unwrap();
    let links: Vec<_> = index.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()).collect();
    assert!(links.len() >= 20, "{links:?}");
    for link in links {
        assert!(repository().join(link).is_file(), "llms.txt: {link}");
    }
}
