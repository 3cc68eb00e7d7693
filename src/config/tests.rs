//! Tests of the sources of values, and of the problems that are reported with them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser as _;

use super::*;

/// The settings of these flags, as the command line has them.
fn flags(flags: &[&str]) -> Settings {
    let arguments = ["tollgate", "config"].iter().chain(flags);
    match Cli::parse_from(arguments).command {
        Command::Config(settings) => settings,
        other => panic!("{other:?}"),
    }
}

fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tollgate.toml");
    std::fs::write(&path, text).unwrap();
    (directory, path)
}

/// Returns the problems with the text of a file.
fn problems(text: &str) -> Vec<String> {
    Settings::default().resolve_with_file(Path::new("tollgate.toml"), text).unwrap_err().problems
}

#[test]
fn a_name_for_sentinels_is_no_address_to_verify() {
    let (_directory, path) = file("redis-url = [\"redis://:secret@mymaster\"]\nredis-sentinel = [\"redis://s\"]\n");
    let settings =
        |redis_url| VerifySettings { config: Some(path.clone().into()), redis_url, ..VerifySettings::default() };
    let told = settings(Vec::new()).resolve().unwrap_err().to_string();
    assert!(told.contains("--redis-url") && !told.contains("secret"), "{told}");
    let named = vec!["redis://node".to_owned()];
    assert_eq!(settings(named.clone()).resolve().unwrap().redis_url, named);
}

#[test]
fn what_to_verify_is_read_from_the_file_unless_it_is_named() {
    let (_directory, path) = file("workers = 0\nredis-url = [\"redis://a\", \"redis://b\"]\n");
    let settings = |config: &Path, url: &str| VerifySettings {
        config: Some(config.into()),
        redis_url: vec![url.to_owned()],
        ..VerifySettings::default()
    };
    assert_eq!(
        settings(&path, "").resolve().unwrap().redis_url,
        ["redis://a", "redis://b"],
        "an empty variable is none"
    );
    assert_eq!(settings(&path, "redis://c").resolve().unwrap().redis_url, ["redis://c"]);
    assert!(settings(Path::new(""), "").resolve().unwrap_err().to_string().contains("no Redis is named"));
}

#[test]
fn every_problem_is_reported_at_once_with_where_it_came_from() {
    let (_directory, path) =
        file("redis-timeout = \"soon\"\nworkers = [1, 2]\nredis-batch = 1979-05-27\n\nlisten = \"here\"\n");
    let path = path.to_str().unwrap();
    let settings = flags(&[
        "--config",
        path,
        "--listen=localhost",
        "--replay-window=-1m",
        "--settlement-window=",
        "--redis-connections=0",
        "--redis-url=redis://:secret@a,redis://:secret@a",
        "--redis-sentinel=redis://s",
        "--log=tollgate=loud",
        "--admin-listen=everywhere",
        "--otlp-endpoint=collector:4317",
        "--trace-ratio=1.5",
        "--log-format=xml",
        "--fail-open=perhaps",
    ]);
    let mut problems = settings.resolve().unwrap_err().problems;
    let mut named = [
        "listen is \"localhost\" (flag --listen): write an IP address".to_owned(),
        format!("redis-timeout is \"soon\" (file {path} line 1): write a duration from 10ms to 366 days"),
        format!("workers is [\"1\", \"2\"] (file {path} line 2): write one value"),
        format!("{path}, line 3: redis-batch must be a string, a number,"),
        "replay-window is \"-1m\" (flag --replay-window): write a duration from 0ns".to_owned(),
        "settlement-window is \"\" (flag --settlement-window): leave it out".to_owned(),
        "redis-connections is 0 (flag --redis-connections): choose 1 to 64".to_owned(),
        "fail-open is \"perhaps\" (flag --fail-open): write true or false".to_owned(),
        "redis-url names a node twice".to_owned(),
        "redis-sentinel needs one redis-url".to_owned(),
        "log is \"tollgate=loud\" (flag --log): ".to_owned(),
        "admin-listen is \"everywhere\" (flag --admin-listen): write an IP address".to_owned(),
        "trace-ratio is \"1.5\" (flag --trace-ratio): choose 0 to 1".to_owned(),
        "log-format is \"xml\" (flag --log-format): choose text or json".to_owned(),
        "otlp-endpoint is".to_owned(),
    ];
    problems.sort();
    named.sort();
    assert_eq!(problems.len(), named.len(), "{problems:#?}");
    for (problem, expected) in problems.iter().zip(&named) {
        assert!(problem.starts_with(expected) && !problem.contains("secret"), "{problem}\n{expected}");
    }
}

#[test]
fn a_flag_goes_before_the_file_and_the_file_before_the_default() {
    let (_directory, path) =
        file("listen = \"127.0.0.1:1\"\nreplay-window = \"30m\"\nfail-open = true\nworkers = 0x10\n");
    let (config, given) = flags(&["--config", path.to_str().unwrap(), "--listen", "127.0.0.1:2"]).resolve().unwrap();
    assert_eq!(config.listen.port(), 2);
    assert_eq!(config.replay_window, Duration::from_secs(1800));
    assert_eq!(config.settlement_window, Duration::from_secs(900));
    assert!(config.fail_open && !config.allow_eviction);
    assert_eq!(config.workers, 16);
    let origin = |name: &str| given.iter().find(|given| given.name == name).unwrap().origin.to_string();
    assert_eq!(origin("listen"), "flag --listen");
    assert_eq!(origin("replay-window"), format!("file {} line 2", path.display()));
    assert_eq!(origin("settlement-window"), "default");
}

#[test]
fn a_flag_without_a_value_is_true() {
    let (config, _) = flags(&["--fail-open", "--allow-eviction=false"]).resolve().unwrap();
    assert!(config.fail_open && !config.allow_eviction);
}

#[test]
fn a_list_may_be_one_text_with_commas_or_a_list() {
    for text in ["redis-url = \"redis://a,redis://b\"", "redis-url = [\"redis://a\", \"redis://b\"]"] {
        let (config, _) = Settings::default().resolve_with_file(Path::new("f"), text).unwrap();
        assert_eq!(config.redis_url, ["redis://a", "redis://b"]);
    }
}

#[test]
fn meanings_of_entries_that_cannot_be_are_told_at_start() {
    let listen = "envoy-listen = \"127.0.0.1:8081\"\n";
    for (text, told) in [
        ("envoy-entries = [\"k=user_id\"]".to_owned(), "envoy-entries needs envoy-listen"),
        (
            format!("{listen}envoy-entries = \"k=user\""),
            "envoy-entries is [\"k=user\"] (file tollgate.toml line 2): a meaning is user_id,",
        ),
        (
            format!("{listen}envoy-entries = [\"a*b=event\"]"),
            "envoy-entries is [\"a*b=event\"] (file tollgate.toml line 2): a key may have one `*`",
        ),
        (
            format!("{listen}envoy-entries = [\"k=event\", \"k=event:a\"]"),
            "envoy-entries says k=event and k=event:a, which contradict each other",
        ),
    ] {
        let found = problems(&text);
        assert!(found.len() == 1 && found[0].starts_with(told), "{found:?}");
    }
    let text = format!("{listen}envoy-entries = [\"httproute/*=ignore\", \"rule-0-match-0=user_id\"]");
    let (config, given) = Settings::default().resolve_with_file(Path::new("f"), &text).unwrap();
    assert_eq!(config.envoy_entries.len(), 2);
    assert!(given.iter().any(|given| given.to_string().starts_with("envoy-entries = [\"httproute/*=ignore\", ")));
    let commas = ["--envoy-listen=127.0.0.1:8081", "--envoy-entries=httproute/*=ignore,rule-0-match-0=user_id"];
    assert_eq!(flags(&commas).resolve().unwrap().0.envoy_entries, config.envoy_entries);
}

#[test]
fn what_is_bad_by_itself_is_not_told_twice() {
    // How many nodes the bad list would name is anybody's guess.
    let problems = problems("redis-url = [\"\"]\nredis-sentinel = [\"redis://s\"]\n");
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].starts_with("redis-url is"), "{problems:?}");
}

#[test]
fn what_to_log_is_a_level_or_targets_with_levels() {
    let shown = |text| log_filter(text).unwrap().to_string();
    assert_eq!(shown("info"), "info");
    assert_eq!(shown(" tollgate=debug , redis=warn,"), shown("tollgate=debug,redis=warn"));
    let pattern = "[span{field=a.*b...................+(c|d)}]=trace";
    for odd in
        ["tollgate=loud", "a=b=c", pattern, " [ö{ö)ö}]=trace", "tollgate[serve]=info", "[{a=b}]=info,[{a=b}]=info"]
    {
        assert!(log_filter(odd).is_err(), "{odd}");
    }
}

#[test]
fn a_bad_file_is_told_by_line_without_its_text() {
    let told = problems("listen = \"127.0.0.1:1\"\nredis-urls = [\"redis://:secret@h\"]\n");
    assert_eq!(told, ["tollgate.toml, line 2: redis-urls is not a setting; `tollgate serve --help` lists them"]);
    let secrets = [
        "redis-url = redis://:secret@h",
        "redis-url = { a = \"secret\" }",
        "redis-connections = \"redis://:secret@h\"",
        "\"redis://:secret@h\" = 1",
        "redis-url = \"redis://:secret@h\nlisten = 1",
        "secret redis-url",
        "redis-url = \"a\"\nredis-url = \"secret\"",
    ];
    for text in secrets {
        for problem in problems(text) {
            assert!(problem.contains("line ") && !problem.contains("secret"), "{problem}");
        }
    }
    let told = problems("redis-connections = 70000");
    assert_eq!(told, ["redis-connections is 70000 (file tollgate.toml line 1): choose 1 to 64"]);
}

#[test]
fn secrets_are_hidden_wherever_a_url_can_have_them() {
    for (value, shown) in [
        ("redis://host:6379/1", "redis://host:6379/1"),
        ("redis://:secret@host", "redis://:***@host"),
        ("rediss://user:secret@host:6379/#insecure", "rediss://user:***@host:6379/#insecure"),
        // Not encoded as they should be.
        ("redis://user:sec/ret@host", "redis://user:***@host"),
        ("redis://user:sec@ret@host", "redis://user:***@host"),
        ("redis://user:sec?ret@host", "redis://user:***@host"),
        ("redis://secret@host", "redis://***@host"),
        ("unix:///run/redis.sock?user=me&pass=secret&db=1", "unix:///run/redis.sock?user=me&pass=***&db=1"),
        ("secret", "***"),
        ("user:secret@host", "***"),
    ] {
        assert_eq!(redacted(value, true), shown);
    }
    assert_eq!(redacted("tollgate=debug,redis=warn", false), "tollgate=debug,redis=warn");
    assert_eq!(redacted("http://user:secret@collector:4317", false), "http://user:***@collector:4317");
}

#[test]
fn what_is_shown_is_a_file_that_says_the_same() {
    let (_, given) =
        flags(&["--redis-url=redis://a,redis://b", "--workers=3", "--fail-open", "--catalog=c \"d\" # e.yaml"])
            .resolve()
            .unwrap();
    let text: String = given.iter().map(|given| format!("{given}\n")).collect();
    let (_, again) = Settings::default().resolve_with_file(Path::new("f"), &text).unwrap();
    let values =
        |given: &[Given]| given.iter().map(|given| (given.name.clone(), given.value.clone())).collect::<Vec<_>>();
    assert_eq!(values(&given), values(&again), "{text}");
}

#[test]
fn every_setting_has_a_variable_and_tells_its_default() {
    let cli = <Cli as clap::CommandFactory>::command();
    let serve = cli.find_subcommand("serve").unwrap();
    let (_, given) = Settings::default().resolve().unwrap();
    assert!(given.len() >= 14);
    for given in given {
        let argument = serve.get_arguments().find(|argument| argument.get_long() == Some(&given.name)).unwrap();
        let variable = format!("TOLLGATE_{}", given.name.replace('-', "_").to_uppercase());
        assert_eq!(argument.get_env().unwrap().to_str().unwrap(), variable);
        assert!(argument.get_help().is_some(), "{}", given.name);
        let told = given.value.is_some() || given.otherwise != "not set";
        assert!(told, "{}: end its help in [default: what happens without it]", given.name);
    }
}
