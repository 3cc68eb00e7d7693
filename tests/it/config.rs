//! `tollgate config`, and what `tollgate serve` says of variables.

use std::io::{BufRead as _, BufReader};
use std::process::{Output, Stdio};

use crate::support::scratch;
use crate::support::served::tollgate;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// `tollgate config` with these flags and variables.
fn config(flags: &[&str], variables: &[(&str, &str)]) -> Output {
    tollgate().arg("config").args(flags).envs(variables.iter().copied()).output().unwrap()
}

#[test]
fn a_flag_goes_before_a_variable_before_the_file_before_the_default_and_each_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tollgate.toml");
    std::fs::write(&path, "# a comment\nworkers = 3\nredis-batch = 3\nredis-connections = 3\n").unwrap();
    let file = path.to_str().unwrap();
    let variables = [("TOLLGATE_CONFIG", file), ("TOLLGATE_WORKERS", "2"), ("TOLLGATE_REDIS_BATCH", "2")];
    let output = config(&["--workers", "1"], &variables);
    let told = text(&output.stdout);
    for line in [
        "workers = 1  # flag --workers",
        "redis-batch = 2  # variable TOLLGATE_REDIS_BATCH",
        &format!("redis-connections = 3  # file {file} line 4"),
        "redis-timeout = \"2s\"  # default",
        "# catalog: the example that is built in  # default",
    ] {
        assert!(told.lines().any(|told| told == line), "{line}\n{told}");
    }
    assert!(output.status.success());
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn a_secret_is_shown_nowhere() {
    let variables =
        [("TOLLGATE_REDIS_URL", "redis://user:hush@mymaster"), ("TOLLGATE_REDISURL", "redis://user:hush@h")];
    let sentinels = "--redis-sentinel=rediss://:hush@s1,rediss://:hush@s2";
    let output = config(&[sentinels], &variables);
    let told = text(&output.stdout) + &text(&output.stderr);
    assert!(told.contains("[\"redis://user:***@mymaster\"]"), "{told}");
    assert!(told.contains("[\"rediss://:***@s1\", \"rediss://:***@s2\"]"), "{told}");
    assert!(told.contains("TOLLGATE_REDISURL is not a setting") && !told.contains("hush"), "{told}");
    let output = config(&[sentinels, sentinels, "--listen=redis://:hush@h"], &variables);
    let told = text(&output.stdout) + &text(&output.stderr);
    assert!(told.contains("listen is") && told.contains("names a Sentinel twice") && !told.contains("hush"), "{told}");
}

#[test]
fn a_bad_configuration_names_every_problem_and_where_it_came_from() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tollgate.toml");
    std::fs::write(&path, "redis-batch = 0\nlisten-on = \"here\"\n").unwrap();
    let file = path.to_str().unwrap();
    let output = config(&["--config", file, "--log", "a=loud"], &[("TOLLGATE_REDIS_TIMEOUT", "soon")]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(text(&output.stdout), "");
    let told = text(&output.stderr);
    for problem in [
        &format!("redis-batch is 0 (file {file} line 1): choose 1 to 1000"),
        &format!("{file}, line 2: listen-on is not a setting"),
        "log is \"a=loud\" (flag --log)",
        "redis-timeout is \"soon\" (variable TOLLGATE_REDIS_TIMEOUT): write a duration",
    ] {
        assert!(told.contains(problem), "{problem}\n{told}");
    }
    let told = text(&config(&[], &[("TOLLGATE_CONFIG", "/nonexistent/tollgate.toml")]).stderr);
    assert!(told.contains("cannot read /nonexistent/tollgate.toml (variable TOLLGATE_CONFIG): "), "{told}");
}

#[test]
fn an_empty_variable_is_as_one_that_is_not_set() {
    let names = ["CONFIG", "LISTEN", "WORKERS", "CATALOG", "REDIS_URL", "REDIS_SENTINEL", "FAIL_OPEN", "LOG"];
    let names = names.map(|name| format!("TOLLGATE_{name}"));
    let variables = names.each_ref().map(|name| (name.as_str(), ""));
    let (without, with) = (config(&[], &[]), config(&[], &variables));
    assert!(with.status.success(), "{}", text(&with.stderr));
    assert_eq!(text(&with.stdout), text(&without.stdout));
    let verify = tollgate().arg("verify").envs(variables).output().unwrap();
    assert!(text(&verify.stderr).contains("no Redis is named"), "{}", text(&verify.stderr));
}

#[test]
fn serving_warns_of_a_mistyped_variable_by_its_name_and_minds_no_service_of_kubernetes() {
    let mut child = tollgate()
        .args(["serve", "--listen", "127.0.0.1:0", "--redis-url", "redis://127.0.0.1:1", "--redis-timeout", "10ms"])
        .args(["--data-dir", scratch("variables").to_str().unwrap()])
        .envs([
            ("TOLLGATE_LISTN", "hush"),
            ("TOLLGATE_PORT", "tcp://10.0.0.1:50051"),
            ("TOLLGATE_SERVICE_HOST", "10.0.0.1"),
        ])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines: Vec<_> = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap).collect();
    child.wait().unwrap();
    let warnings: Vec<_> = lines.iter().filter(|line| line.contains("WARN")).collect();
    assert_eq!(warnings.len(), 1, "{lines:?}");
    assert!(warnings[0].contains("TOLLGATE_LISTN is not a setting"), "{warnings:?}");
    assert!(!lines.iter().any(|line| line.contains("hush")), "{lines:?}");
    assert!(lines.iter().any(|line| line.contains("cannot reach Redis")), "it got past its settings: {lines:?}");
}
