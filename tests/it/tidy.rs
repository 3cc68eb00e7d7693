//! Rules of the repository, held by a test.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::docs;

/// Every file below a directory of the repository with this ending, and its text.
fn files(directory: &str, ending: &str) -> Vec<(PathBuf, String)> {
    let found: Vec<_> = docs::files(directory, ending)
        .into_iter()
        .map(|path| {
            let text = std::fs::read_to_string(&path).unwrap();
            (path, text)
        })
        .collect();
    assert!(!found.is_empty(), "{directory} has .{ending} files");
    found
}

#[test]
fn the_domain_knows_neither_tonic_nor_redis() {
    for (path, text) in files("src/domain", "rs") {
        for word in ["tonic", "redis::", "tokio", "prost", "crate::grpc", "crate::ledger", "crate::meter"] {
            assert!(
                !text.contains(&format!("use {word}")) && !text.contains(&format!(" {word}::")),
                "{path:?}: {word}"
            );
        }
    }
}

#[test]
fn only_the_ledger_talks_to_redis_and_only_grpc_to_tonic() {
    for (path, text) in files("src", "rs") {
        let place = path.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap();
        if !place.starts_with("ledger") {
            assert!(!text.contains("redis::cmd") && !text.contains("use redis::"), "{place:?} talks to Redis");
        }
        if !(place.starts_with("grpc")
            || place.starts_with("server")
            || ["server.rs", "commands.rs"].iter().any(|name| place == Path::new(name)))
        {
            assert!(!text.contains("tonic::"), "{place:?} talks to tonic");
        }
    }
}

/// The modules right below `src` that each of them names, tests excepted.
fn module_uses() -> BTreeMap<String, BTreeSet<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let module = |path: &Path| {
        let first = path.strip_prefix(&root).unwrap().components().next().unwrap();
        Path::new(first.as_os_str()).file_stem().unwrap().to_str().unwrap().to_owned()
    };
    let sources = files("src", "rs");
    let modules: BTreeSet<_> = sources.iter().map(|(path, _)| module(path)).collect();
    let mut uses = BTreeMap::<_, BTreeSet<_>>::new();
    for (path, text) in &sources {
        let code = text.split("#[cfg(test)]").next().unwrap();
        let named = code.split("crate::").skip(1).map(|rest| {
            rest.split(|letter: char| !letter.is_ascii_lowercase() && letter != '_').next().unwrap().to_owned()
        });
        let own = module(path);
        let others = named.filter(|name| modules.contains(name) && *name != own);
        uses.entry(own.clone()).or_default().extend(others);
    }
    uses
}

#[test]
fn no_module_needs_itself_by_way_of_others() {
    let mut uses = module_uses();
    assert!(uses["grpc"].contains("meter") && uses["meter"].contains("ledger"), "{uses:?}");
    // Whoever needs nothing that is left is no part of a cycle.
    while let Some(free) = uses.iter().find(|(_, needs)| needs.is_empty()).map(|(name, _)| name.clone()) {
        uses.remove(&free);
        for needs in uses.values_mut() {
            needs.remove(&free);
        }
    }
    assert!(uses.is_empty(), "these modules need each other: {uses:?}");
}

#[test]
fn one_place_spells_keys() {
    for (path, text) in files("src", "rs").into_iter().chain(files("lua", "lua")) {
        assert!(!text.contains("tollgate3:") || path.ends_with("ledger/keys.rs"), "{path:?} spells a key");
    }
}

#[test]
fn a_file_can_be_held_in_mind() {
    let code = files("src", "rs").into_iter().chain(files("tests", "rs")).chain(files("benches", "rs"));
    for (path, text) in code.chain(files("lua", "lua")) {
        let lines = text.lines().count();
        assert!(lines <= 650, "{path:?} has {lines} lines: split it along its meaning");
        let opening = text.lines().next().unwrap_or_default();
        let documented = ["//!", "#!lua", "-- "].iter().any(|start| opening.starts_with(start));
        assert!(documented, "{path:?} opens without telling the reader where they are");
        assert!(!text.contains(concat!("#[", "ignore")), "{path:?} has a test that does not run");
    }
}

#[test]
fn every_script_says_what_it_takes_and_answers_and_checks_before_it_writes() {
    const WRITES: [&str; 9] = [
        "call('SET'",
        "call('HSET'",
        "call('DEL'",
        "call('UNLINK'",
        "save_ledger(",
        "write_fields(",
        "write_tracked(",
        // What a denial leaves behind.
        "return deny(",
        "return block(",
    ];
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("lua");
    for (path, text) in files("lua", "lua").into_iter().filter(|(path, _)| path.parent() == Some(&scripts)) {
        assert!(text.starts_with("#!lua"), "{path:?} has flags");
        let writes = WRITES.iter().any(|write| text.contains(write));
        assert!(!writes || !text.contains("no-writes"), "{path:?} writes");
        for part in ["-- KEYS: ", "-- Answers: ", "-- uses: "] {
            assert!(text.contains(part), "{path:?} lacks {part}");
        }
        // The operation itself, which comes last.
        let name = path.file_stem().and_then(std::ffi::OsStr::to_str).unwrap();
        let text = text.find(&format!("\nlocal function {name}(")).map_or(&text[..], |start| &text[start..]);
        let first_write = WRITES.iter().filter_map(|write| text.find(write)).min();
        let Some(first_write) = first_write else { continue };
        for check in ["return fault(", "return stale(", "return committed_otherwise("] {
            assert!(text.rfind(check).is_none_or(|check| check < first_write), "{path:?} checks after its first write");
        }
        let marked = text.find("-- All checks are done").is_some_and(|mark| mark < first_write);
        assert!(marked || path.ends_with("user_delete.lua"), "{path:?} says where writes begin");
    }
}

#[test]
fn every_crate_comes_from_the_registry() {
    let lock: toml::Table = include_str!("../../Cargo.lock").parse().unwrap();
    let crates = lock["package"].as_array().unwrap();
    assert!(crates.len() > 100);
    for one in crates.iter().filter(|one| one["name"].as_str() != Some("tollgate")) {
        let from = one.get("source").and_then(toml::Value::as_str);
        assert_eq!(from, Some("registry+https://github.com/rust-lang/crates.io-index"), "{}", one["name"]);
        assert!(one.get("checksum").is_some(), "{}", one["name"]);
    }
}

/// A line as it reads: of a link only its text, as nobody can break its target.
fn read_width(line: &str) -> usize {
    let mut width = 0;
    for (index, piece) in line.split("](").enumerate() {
        let text = if index == 0 { piece } else { piece.split_once(')').map_or("", |(_, rest)| rest) };
        width += text.chars().count() + usize::from(index > 0);
    }
    width
}

#[test]
fn prose_ends_at_100_columns() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let at_root = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
    let at_root = at_root.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    let others = ["fuzz/README.md", "build/redis-layout.md", "benches/speed/profile.md"].map(|path| root.join(path));
    let more = at_root.chain(others).map(|path| (path.clone(), std::fs::read_to_string(path).unwrap()));
    let mut long = Vec::new();
    for (path, text) in files("docs", "md").into_iter().chain(more) {
        let mut fenced = false;
        for (number, line) in (1..).zip(text.lines()) {
            let start = line.trim_start();
            if start.starts_with("```") {
                fenced = !fenced;
            }
            // Code, tables and marks for generators stay as they are.
            let is_prose = !fenced && !["```", "|", "<!--"].iter().any(|other| start.starts_with(other));
            if is_prose && read_width(line) > 100 {
                long.push(format!("{}, line {number}", path.strip_prefix(root).unwrap().display()));
            }
        }
    }
    assert!(long.is_empty(), "longer than 100 columns: {}", long.join("; "));
}
