//! The image without Docker: its commands on the program, as the Dockerfile has them.
#![cfg(target_os = "linux")]

use std::path::Path;
use std::process::Command;

fn run(program: &str, arguments: &[&str], directory: &Path) -> String {
    let output = Command::new(program).args(arguments).current_dir(directory).output().expect(program);
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The instructions of the Dockerfile, each in one line.
fn instructions() -> Vec<String> {
    let text = include_str!("../../Dockerfile").replace("\\\n", " ");
    text.lines().filter(|line| !line.trim_start().starts_with('#')).map(str::to_owned).collect()
}

#[test]
fn the_program_of_the_image_is_stripped_and_its_symbols_are_kept_beside_it() {
    let instructions = instructions();
    let split: Vec<_> = instructions.iter().filter_map(|line| line.strip_prefix("RUN objcopy ")).collect();
    let [split] = split.as_slice() else { panic!("one instruction splits the program: {instructions:?}") };
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let built = directory.path().join("target/release/tollgate");
    std::fs::create_dir_all(built.parent().unwrap()).unwrap();
    // A small one stands for it: that of the tests has 200 MB of symbols, and other tests need the disk.
    std::fs::write(directory.path().join("small.c"), "int main(void) {\n  return 42;\n}\n").unwrap();
    run("cc", &["-g", "-Wl,--build-id", "-o", built.to_str().unwrap(), "small.c"], directory.path());
    run("sh", &["-c", &format!("objcopy {split}")], directory.path());

    let sections = |file: &str| run("readelf", &["--wide", "--section-headers", file], directory.path());
    let (program, symbols) = (sections("tollgate"), sections("tollgate.debug"));
    for section in [".debug_info", ".debug_line", ".symtab"] {
        assert!(!program.contains(section) && symbols.contains(section), "{section}\n{program}\n{symbols}");
    }
    let ended = Command::new(directory.path().join("tollgate")).status().unwrap();
    assert_eq!(ended.code(), Some(42), "it still runs");

    // A debugger knows where the other half is, and that it is the other half.
    assert!(run("readelf", &["--string-dump=.gnu_debuglink", "tollgate"], directory.path()).contains("tollgate.debug"));
    let build_id = |file: &str| {
        let notes = run("readelf", &["--notes", file], directory.path());
        let id = notes.lines().find_map(|line| line.trim().strip_prefix("Build ID: ").map(str::to_owned));
        id.unwrap_or_else(|| panic!("{file} has a build id: {notes}"))
    };
    assert_eq!(build_id("tollgate"), build_id("tollgate.debug"));
    let names = run("nm", &["--defined-only", "tollgate.debug"], directory.path());
    let main = names.lines().find_map(|line| line.strip_suffix(" T main")).expect("it has an address");
    let found = run("addr2line", &["--exe=tollgate", main], directory.path());
    assert!(found.contains("small.c:1"), "the stripped program leads to the lines of its code: {found}");
}

#[test]
fn the_image_has_the_stripped_program_and_the_symbols_can_be_had() {
    let instructions = instructions();
    let stages: Vec<_> = instructions.iter().filter(|line| line.starts_with("FROM ")).map(String::as_str).collect();
    assert_eq!(
        stages,
        ["FROM ${BUILDER} AS build", "FROM scratch AS debug", "FROM ${RUNTIME}"],
        "the last is the image"
    );
    let copied: Vec<_> = instructions.iter().filter_map(|line| line.strip_prefix("COPY --from=build ")).collect();
    assert_eq!(copied, ["/src/tollgate.debug /", "/src/tollgate /usr/local/bin/tollgate"]);
}

/// The image has what `build.rs` reads: what it declares to be read again, and its own modules.
#[test]
fn the_image_is_built_from_everything_that_the_build_reads() {
    let build = include_str!("../../build.rs");
    let watched = build.lines().filter_map(|line| line.trim().strip_prefix("println!(\"cargo::rerun-if-changed="));
    let watched: Vec<_> = watched.filter_map(|rest| rest.split('"').next()).collect();
    assert!(watched.len() >= 3 && watched.contains(&"build"), "{watched:?}");
    let (instructions, ignored) = (instructions(), include_str!("../../.dockerignore"));
    for name in watched {
        let copy = format!("COPY {name} {name}");
        assert!(instructions.contains(&copy), "the Dockerfile lacks {copy}");
        assert!(ignored.lines().any(|line| line == format!("!{name}")), ".dockerignore leaves out {name}");
    }
}

#[test]
fn the_image_runs_without_root_and_knows_its_health() {
    let instructions = instructions();
    let last = instructions.iter().rposition(|line| line.starts_with("FROM ")).unwrap();
    let of = |name: &str| {
        let found: Vec<_> = instructions[last..].iter().filter_map(|line| line.strip_prefix(name)).collect();
        let [found] = found[..] else { panic!("the image has one {name}: {found:?}") };
        found.trim()
    };
    // By number: Kubernetes cannot see whether a name is root.
    let (user, group) = of("USER ").split_once(':').unwrap();
    assert!([user, group].iter().all(|id| id.parse::<u32>().is_ok_and(|id| id > 0)), "{user}:{group}");
    let program: Vec<String> = serde_json::from_str(of("ENTRYPOINT ")).unwrap();
    let [program] = <[String; 1]>::try_from(program).expect("a program without a shell");
    let (_, check) = of("HEALTHCHECK ").split_once(" CMD ").unwrap();
    let check: Vec<String> = serde_json::from_str(check).unwrap();
    assert_eq!(check, [program, "health".to_owned()]);
    let command: Vec<String> = serde_json::from_str(of("CMD ")).unwrap();
    assert_eq!(command, ["serve"]);
}

#[test]
fn the_build_of_the_image_fetches_nothing_but_crates() {
    for line in instructions() {
        assert!(!line.starts_with("ADD "), "{line}");
        for word in ["curl", "wget", "git ", "apt-get", "http://", "https://", "--mount", "--network"] {
            assert!(!line.contains(word), "{line}");
        }
        assert!(!line.contains("cargo ") || line.contains("--locked"), "{line}");
    }
    // Docker would fetch this frontend.
    assert!(!include_str!("../../Dockerfile").starts_with("# syntax="));
}
