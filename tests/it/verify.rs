//! `tollgate verify`, through the real binary: it finds nothing in what Tollgate writes, changes nothing, and finds whatever is wrong.

use std::collections::BTreeMap;
use std::process::{Command, Output};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use tollgate::grpc::v1;
use tollgate::ledger::RedisOptions;
use tollgate::meter::MeterOptions;
use tollgate::verify;

use crate::scenario::Scenario;
use crate::support::load::{self, Load, Plan};
use crate::support::redis_server::RedisServer;
use crate::support::{Replica, fresh_user, keys, scratch, spawn};

const CATALOG: &str = "
default_plan: p
plans:
  p:
    period: monthly
    limit_groups:
      - { id: tokens, unit: tokens, quota: 1000, match: [{ event: t }] }
      - { id: calls, unit: count, period: yearly, quota: 1000, match: [{ event: t, measure: events }] }
      - { id: cycle, unit: tokens, quota: 1000, anchor: subscription_start, match: [{ event: c }] }
  life:
    period: lifetime
    limit_groups: [{ id: all, unit: tokens, quota: 1000, match: [{ event: t }] }]
  short:
    period: minute
    limit_groups: [{ id: now, unit: tokens, quota: 1000, match: [{ event: t }] }]
";

/// What every user has done before something is broken: one hold is live, one committed, one released, one track remembered.
const WORKLOAD: &str = "
    subscribe U p anchor=2026-01-31T00:00:00Z
    track U c 1
    subscribe U p anchor=2026-01-15T00:00:00Z
    track U c 1
    reserve U t 5 id=r1 ttl=1h => allowed
    reserve U t 7 id=r2 as=B => allowed
    commit B 6
    reserve U t 1 as=C => allowed
    release C
    track U t 2 id=t1
    track U t.refund 1 of=B id=t2
";

/// A Redis of its own, as what is verified is all of it.
async fn redis(name: &str) -> RedisServer {
    let redis = RedisServer::start(scratch(name), "");
    redis.ready().await;
    redis
}

async fn replica(redis: &RedisServer, catalog: &str) -> Replica {
    let options = RedisOptions {
        urls: vec![redis.url()],
        sentinels: Vec::new(),
        connections: 2,
        batch: 32,
        timeout: Duration::from_secs(10),
        allow_eviction: false,
        ..RedisOptions::default()
    };
    Replica::start_with(catalog, jiff::tz::db(), MeterOptions::default(), options).await
}

async fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    command.arg("verify").args(arguments);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TOLLGATE_")) {
        command.env_remove(name);
    }
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Everything in a Redis, with its expiries.
async fn dump(connection: &mut MultiplexedConnection) -> BTreeMap<String, (Vec<u8>, i64)> {
    let mut dump = BTreeMap::new();
    let names: Vec<String> = redis::cmd("KEYS").arg("*").query_async(connection).await.unwrap();
    for name in names {
        let value = redis::cmd("DUMP").arg(&name).query_async(connection).await.unwrap();
        let expiry = redis::cmd("PEXPIRETIME").arg(&name).query_async(connection).await.unwrap();
        dump.insert(name, (value, expiry));
    }
    dump
}

#[tokio::test]
async fn a_clean_redis_has_nothing_to_report_and_is_not_changed() {
    let redis = redis("verify-clean").await;
    let mut scenario = Scenario::new(vec![("", replica(&redis, CATALOG).await)]);
    for user in ["u", "odd:{user}\n"] {
        scenario.run(&WORKLOAD.replace('U', &format!("{}-x", user.escape_default()))).await;
    }
    scenario.run("subscribe l life\nreserve l t 5 => allowed\ncancel l\ntrack l t 1\nsubscribe n p").await;
    scenario.run("subscribe s short\ntrack s t 1\nreserve d t 1 => allowed\ndelete d").await;
    let mut connection = redis.connection().await;
    let before = dump(&mut connection).await;
    let output = run(&["--redis-url", &redis.url()]).await;
    assert_eq!(
        text(&output.stdout),
        "users 5, windows 12, live holds 3, reservations 7, requests 8: contradictions 0, notes 0\n",
        "{}",
        text(&output.stderr)
    );
    assert!(output.status.success());
    assert_eq!(dump(&mut connection).await, before);
}

#[tokio::test]
async fn a_replica_and_a_user_who_may_only_read_will_do() {
    let redis = redis("verify-master").await;
    let mut scenario = Scenario::new(vec![("", replica(&redis, CATALOG).await)]);
    scenario.run(&WORKLOAD.replace('U', "u")).await;
    let follower = RedisServer::start(scratch("verify-replica"), &format!("--replicaof 127.0.0.1 {}", redis.port()));
    while !follower.ask::<String>("INFO replication").await.is_ok_and(|info| info.contains("master_link_status:up")) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for server in [&redis, &follower] {
        // As --help says.
        let user = "ACL SETUSER auditor on >topsecret %R~* +@read +@connection -@dangerous +time +eval_ro +evalsha_ro";
        let _: () = server.ask(user).await.unwrap();
        let url = format!("redis://auditor:topsecret@127.0.0.1:{}", server.port());
        // A Redis that has not seen the scripts is given them.
        let _: () = server.ask("SCRIPT FLUSH").await.unwrap();
        let output = run(&["--redis-url", &url]).await;
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert!(text(&output.stdout).starts_with("users 1, "), "{}", text(&output.stdout));
    }
    let _: () = redis.ask("ACL SETUSER auditor -eval_ro -evalsha_ro").await.unwrap();
    let output = run(&["--redis-url", &format!("redis://auditor:topsecret@127.0.0.1:{}", redis.port())]).await;
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told.contains("cannot read from Redis") && told.contains("evalsha_ro"), "{told}");
    assert!(!told.contains("topsecret") && output.stdout.is_empty(), "{told}");
}

#[tokio::test]
async fn what_is_wrong_with_the_call_is_said_with_what_to_do() {
    let cases: [(&[&str], &[&str]); 5] = [
        (&[], &["no Redis is named", "--redis-url", "TOLLGATE_REDIS_URL"]),
        (&["--redis-url", "redis://:topsecret@127.0.0.1:1"], &["cannot reach Redis"]),
        (&["--redis-url", "http://:topsecret@127.0.0.1:1"], &["number 1", "redis://host:port"]),
        (&["--redis-url", "redis://a:topsecret@h,redis://a:topsecret@h"], &["names a node twice"]),
        (&["--config", "/nonexistent/tollgate.toml"], &["/nonexistent/tollgate.toml"]),
    ];
    for (arguments, expected) in cases {
        let output = run(arguments).await;
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {told}");
        assert!(expected.iter().all(|part| told.contains(part)), "{arguments:?}: {told}");
        assert!(!told.contains("topsecret") && output.stdout.is_empty(), "{told}");
    }
    let redis = redis("verify-file").await;
    let file = scratch("verify.toml");
    std::fs::write(&file, format!("redis-url = [\"{}\"]\nlisten = \"127.0.0.1:1\"\n", redis.url())).unwrap();
    let output = run(&["--config", file.to_str().unwrap()]).await;
    assert!(output.status.success(), "the file of serve names it: {}", text(&output.stderr));
}

/// Reads what a user has, for the lines that break it.
const PRELUDE: &str = include_str!("verify/prelude.lua");

/// Runs the lines in a Redis, for each user of a case, and holds the output against what is expected of it: every expected finding is
/// there, and nothing else of that user.
async fn check(name: &str, plan: &str, cases: &[(&str, &[&str])]) {
    let redis = redis(name).await;
    let mut scenario = Scenario::new(vec![("", replica(&redis, CATALOG).await)]);
    let mut connection = redis.connection().await;
    let mut users = Vec::new();
    for (index, (lua, _)) in cases.iter().enumerate() {
        let user = format!("case{index}");
        scenario.run(&WORKLOAD.replace('U', &user)).await;
        if !plan.is_empty() {
            scenario.run(&format!("subscribe {user} {plan}\ntrack {user} t 1")).await;
        }
        let user = scenario.user(&user);
        let keys = keys(&user);
        let mut eval = redis::cmd("EVAL");
        eval.arg(format!("{PRELUDE}\n{lua}")).arg(4).arg(keys.all()).arg(keys.hold("").trim_end_matches("hold:"));
        let _: redis::Value = eval.query_async(&mut connection).await.unwrap_or_else(|error| panic!("{lua}: {error}"));
        users.push(user);
    }
    let output = run(&["--redis-url", &redis.url()]).await;
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let output = text(&output.stdout);
    for (user, (lua, expected)) in users.iter().zip(cases) {
        let prefix = keys(user).hold("").trim_end_matches("hold:").to_owned();
        let lines: Vec<_> = output.lines().filter_map(|line| line.strip_prefix(&prefix)).collect();
        let says = |line: &str, expected: &str| {
            let (key, text) = expected.split_once(": ").unwrap();
            line.starts_with(key) && line.split_once(": ").unwrap().1.contains(text)
        };
        for expected in *expected {
            assert!(lines.iter().any(|line| says(line, expected)), "{lua}\n  expected {expected}\n  found {lines:#?}");
        }
        for line in &lines {
            assert!(expected.iter().any(|expected| says(line, expected)), "{lua}\n  found also {line}");
        }
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_ledger_is_found() {
    let other_window = "memory: is another one in the ledger";
    let cases: &[(&str, &[&str])] = &[
        ("", &[]),
        ("led[2] = 2 save()", &["ledger: the number of live holds is 2, but the agenda has 1"]),
        ("led[2] = -1 save()", &["ledger: holds is 65535, and not in 0 to 10000", "ledger: but the agenda has 1"]),
        ("led[1] = now + 3600000 save()", &["ledger: the next call follows Redis's again"]),
        ("led[1] = now + 120000 save()", &["ledger: and stands until then"]),
        ("led[3] = NEVER save()", &["ledger: the next deadline is 9007199254740991, but the agenda's first is "]),
        ("led[4] = NEVER save()", &["ledger: the next time to forget is 9007199254740991, but the agenda's first"]),
        (
            "led[5] = NEVER + 1 save()",
            &[
                "ledger: the expiry of the memory is 9007199254740992",
                "ledger: before the memory",
                "memory: noted",
                "agenda: noted",
            ],
        ),
        ("led.expires = led.expires + 5000 save()", &["ledger: but its ledger has noted "]),
        ("redis.call('SET', ledger, 'x', 'KEEPTTL')", &["ledger: it ends after too few bytes"]),
        ("redis.call('SETRANGE', ledger, 44, '\\255')", &["ledger: it ends after too few bytes"]),
        ("redis.call('APPEND', ledger, 'x')", &["ledger: is followed by 1 byte too many"]),
        ("led[6] = '\\255' save()", &["ledger: it has text that is not UTF-8"]),
        (
            "tokens[1][7] = NEVER + 1 save()",
            &["ledger: group \"tokens\", current window 3: used is 9007199254740992, and not in 0 to 9007199254740991"],
        ),
        (
            "tokens[1][8] = 6 save()",
            &["ledger: group \"tokens\", current window 3: held is 6, but its live holds hold 5"],
        ),
        (
            "calls[1][8] = 0 save()",
            &["ledger: group \"calls\", current window 4: held is 0, but its live holds hold 1"],
        ),
        (
            "cycle[2][8] = 1 save()",
            &["ledger: group \"cycle\", earlier window 1: held is 1, but its live holds hold 0"],
        ),
        (
            "cycle[1][1] = 4 cycle[1][7] = 8000000000000001 save()",
            &["ledger: used is 8000000000000001, and not in 0 to 8000000000000000"],
        ),
        ("cycle[1][1] = 5 save()", &["ledger: the unit is 5, and not in 1 to 4"]),
        ("cycle[1][2] = 8 save()", &["ledger: the period is 8, and not in 1 to 7"]),
        ("cycle[1][2] = 7 save()", &["ledger: is of a lifetime, but starts at "]),
        ("cycle[1][3] = -2 save()", &["ledger: the anchor is -2, and neither"]),
        ("cycle[1][5] = cycle[1][4] save()", &["ledger: which are not in order"]),
        ("cycle[1][6] = cycle[1][5] save()", &["ledger: which are not in order"]),
        ("tokens[1][4] = now + 9 save()", &[other_window]),
        ("tokens[1][5] = tokens[1][5] - 1 save()", &[other_window]),
        ("cycle[1][9] = 4 save()", &["ledger: has the same number as"]),
        ("cycle[1][9] = 4 calls[1][9] = 2 save()", &["ledger: held is 1, but its live holds hold 0", other_window]),
        (
            "led[8] = 3 save()",
            &["ledger: its number is not in 1 to 3", "memory: its window is number 4, and not in 1 to 3"],
        ),
        ("cycle[2][3] = cycle[1][3] save()", &["ledger: group \"cycle\": windows 1 and 2 overlap"]),
        (
            "tokens.more = 2 save()",
            &["ledger: what follows of the current window of group \"tokens\" is 2, and not 0 or 1"],
        ),
        (
            "for i = 3, 9 do cycle[i] = cycle[2] end save()",
            &["ledger: group \"cycle\" is one of more windows, and not one of at most 8"],
        ),
        ("led.again = 'calls' save()", &["ledger: group \"calls\" is there twice, and not there once"]),
        (
            "redis.call('PERSIST', ledger)",
            &[
                "ledger: never expires, but has no lifetime group",
                "ledger: has the expiry -1, but its ledger has noted ",
            ],
        ),
        (
            "redis.call('PEXPIRE', ledger, 7200000)",
            &["ledger: before the last window is kept until", "ledger: but its ledger has noted "],
        ),
        (
            "led[7] = {} led.expires = now + 600000 save() redis.call('PEXPIREAT', ledger, led.expires)",
            &["ledger: before the memory expires at "],
        ),
        ("redis.call('DEL', ledger)", &["memory: has no ledger", "agenda: has no ledger"]),
        ("redis.call('DEL', ledger) redis.call('HSET', ledger, 'a', 'b')", &["ledger: is a hash, and not a string"]),
    ];
    check("verify-ledger", "", cases).await;
    check(
        "verify-lifetime",
        "life",
        &[
            ("", &[]),
            (
                "redis.call('PEXPIRE', ledger, 7200000)",
                &["ledger: but has a lifetime group", "ledger: but its ledger has noted -1"],
            ),
            ("led[7].all[1][5] = NEVER - 1 save()", &["ledger: is of a lifetime, but"]),
        ],
    )
    .await;
}

#[tokio::test]
async fn what_is_wrong_with_memory_and_agenda_is_found() {
    let cases: &[(&str, &[&str])] = &[
        ("redis.call('PERSIST', memory)", &["memory: never expires"]),
        ("redis.call('PERSIST', agenda)", &["agenda: never expires"]),
        (
            "redis.call('PEXPIRE', memory, 600000)",
            &["memory: before its last entry is forgotten at", "memory: but its ledger has noted"],
        ),
        ("redis.call('PEXPIREAT', agenda, led[5] + 2000)", &["agenda: but its ledger has noted"]),
        ("redis.call('HSET', memory, 'x', '1')", &["memory: field \"x\": is neither a reservation nor a request"]),
        (
            "redis.call('DEL', memory) redis.call('SET', memory, 'x')",
            &[
                "memory: is a string, and not a hash",
                "memory: never expires",
                "agenda: knows nothing",
                "ledger: live holds hold 0",
                "hold:: nothing is known of",
            ],
        ),
        (
            "redis.call('DEL', agenda) redis.call('SET', agenda, 'x')",
            &[
                "agenda: is a string, and not a zset",
                "agenda: never expires",
                "memory: has no entry in the agenda",
                "ledger: but the agenda has 0",
                "ledger: live holds hold 0",
            ],
        ),
        (
            "redis.call('HDEL', memory, live)",
            &[
                "agenda: the memory knows nothing of entry \"r",
                "ledger: live holds hold 0",
                "memory: request \"r1\": its reservation",
                "hold:: nothing is known of",
            ],
        ),
        ("redis.call('HDEL', memory, 'qt1')", &["agenda: the memory knows nothing of entry \"qt1\""]),
        ("redis.call('ZREM', agenda, committed)", &["memory: has no entry in the agenda"]),
        (
            "redis.call('ZREM', agenda, live)",
            &["memory: has no entry in the agenda", "ledger: but the agenda has 0", "ledger: live holds hold 0"],
        ),
        ("redis.call('ZREM', agenda, 'qt1')", &["memory: request \"t1\": has no entry in the agenda"]),
        ("redis.call('ZINCRBY', agenda, 1, committed)", &["memory: is to be forgotten at "]),
        ("redis.call('ZINCRBY', agenda, 1, 'qt1')", &["memory: request \"t1\": is to be forgotten at "]),
        ("redis.call('ZINCRBY', agenda, 1, live)", &["memory: has the deadline "]),
        ("redis.call('ZINCRBY', agenda, 0.5, live)", &["memory: its score in the agenda is "]),
        ("redis.call('ZINCRBY', agenda, 0.5, 'qt1')", &["memory: its score in the agenda is "]),
        (
            "score(live, FORGETTING + get(live)[3])",
            &[
                "memory: but not among the agenda's deadlines",
                "ledger: but the agenda has 0",
                "ledger: live holds hold 0",
            ],
        ),
        (
            "score(committed, get(committed)[2])",
            &["memory: is committed, but among the agenda's deadlines", "ledger: the agenda has 2"],
        ),
        (
            "edit(live, function(it) it[2] = led[1] end) score(live, led[1]) led[3] = led[1] save()",
            &["memory: had passed when the ledger was written", "hold:: expires at "],
        ),
        ("redis.call('HDEL', memory, 'qr1')", &["memory: its request \"r1\" is not remembered"]),
        ("put('qr1', get('qr2'))", &["memory: its request \"r1\" names reservation ", "memory: names request \"r2\""]),
        (
            "put('qr1', get('qt1'))",
            &["memory: its request \"r1\" is that of a track", "memory: request \"r1\": has no entry"],
        ),
        (
            "score('qr1', FORGETTING + get(live)[3])",
            &["memory: request \"r1\": is that of a reserve, but the agenda forgets it"],
        ),
        (
            "redis.call('HSET', memory, committed, '\\1')",
            &["memory: the record does not fit its format: it ends after"],
        ),
        (
            "redis.call('HSET', memory, 'qr2', 'x')",
            &["memory: request \"r2\": the kind of request is 120, and not text"],
        ),
        (
            "redis.call('HSET', memory, 'qr2', cmsgpack.pack('reserve', 'd'))",
            &["memory: request \"r2\": the request is one of 2 values, and not that of a reserve"],
        ),
        ("redis.call('HSET', memory, 'qt1', '\\217')", &["memory: request \"t1\": the request is no MessagePack"]),
        ("edit(committed, function(it) it[1] = 4 end)", &["memory: the state is 4, and not 1 (held)"]),
        ("edit(committed, function(it) it[8] = 2 end)", &["memory: `late` of the record is 2, and not 0 or 1"]),
        ("edit(released, function(it) it[8] = 1 end)", &["memory: is released, and says that it was committed late"]),
        (
            "edit(released, function(it) it[5] = cmsgpack.pack('t', 5, {}) end)",
            &["memory: the event is one of 3 values, and not one of 4"],
        ),
        ("edit(released, function(it) it[5] = '\\217' end)", &["memory: the event is no MessagePack"]),
        ("edit(released, function(it) it[2] = it[3] + 1 end)", &["memory: are not in order"]),
        (
            "edit(released, function(it) it[7] = {} end)",
            &["memory: the list of claims is empty, and not one of at least 1"],
        ),
        ("claim(committed, 11, 0)", &["memory: committed 0 and refunded 1, which cannot be"]),
        ("claim(committed, 12, 7)", &["memory: committed 6 and refunded 7, which cannot be"]),
        ("claim(committed, 11, NEVER + 1)", &["memory: which cannot be"]),
        ("claim(live, 11, 3)", &["memory: is held, but committed 3 and refunded 0, and not 0 and 0"]),
        ("claim(released, 12, 1)", &["memory: is released, but committed 0 and refunded 1"]),
        ("claim(released, 9, NEVER + 1)", &["memory: the charge is 9007199254740992"]),
        ("claim('qt1', 9, NEVER + 1)", &["memory: the charge is 9007199254740992"]),
        ("claim(released, 'measures', '')", &["memory: measures of claim 1 is 0 bytes, and not some"]),
        ("claim('qt1', 'measures', '\\1')", &["memory: measures of claim 1 is 1 byte, and not none"]),
        ("claim(released, 'measures', '\\217')", &["memory: the measures of claim 1 is no MessagePack"]),
        ("claim(released, 5, 2)", &["memory: `hard` of claim 1 is 2, and not 0 or 1"]),
        ("claim(released, 'after_terms', 'x')", &["memory: what claim 1 says of its group is followed by 1 byte"]),
        ("claim('qt1', 10, 3)", &["memory: group \"tokens\" did not apply 3 of 2"]),
        ("claim(released, 3, 0)", &["memory: the unit is 0", "memory: is another one in the ledger"]),
        ("claim(released, 4, -2)", &["memory: the quota is -2"]),
        ("claim(released, 1, 'calls')", &["memory: is charged twice", "memory: is another one in the ledger"]),
        ("claim(released, 6, NEVER)", &["memory: its window starts at", "memory: is another one in the ledger"]),
        ("claim(released, 8, 5)", &["memory: its window is number 5, and not in 1 to 4"]),
        ("claim(released, 8, 4)", &["memory: its window 4 is another one in the ledger, of group \"calls\""]),
        (
            "claim(live, 9, 6)",
            &[
                "ledger: held is 5, but its live holds hold 6",
                "hold:: shows \"tokens=5 calls=1\", but its reservation holds \"tokens=6 calls=1\"",
            ],
        ),
        (
            "redis.call('DEL', memory, agenda, hold) led[5] = now - 1 led[3] = NEVER save()",
            &["ledger: the next deadline is 9007199254740991, but the agenda with all deadlines has expired at "],
        ),
    ];
    check("verify-memory", "", cases).await;
}

#[tokio::test]
async fn what_is_wrong_with_other_keys_is_found() {
    let cases: &[(&str, &[&str])] = &[
        ("redis.call('DEL', hold)", &["hold:: is missing, but its reservation is live until "]),
        ("redis.call('PERSIST', hold)", &["hold:: never expires, but its reservation is live until "]),
        ("redis.call('PEXPIRE', hold, 7200000)", &["hold:: expires at "]),
        (
            "redis.call('SET', hold, 'x', 'KEEPTTL')",
            &["hold:: shows \"x\", but its reservation holds \"tokens=5 calls=1\""],
        ),
        ("redis.call('DEL', hold) redis.call('RPUSH', hold, 'x')", &["hold:: is a list, and not a string"]),
        (
            "redis.call('SET', ARGV[1] .. 'hold:' .. string.sub(committed, 2), 'x', 'PX', 900000)",
            &["hold:: shows a reservation that is committed"],
        ),
        (
            "redis.call('SET', ARGV[1] .. 'hold:nobody', 'x', 'PX', 900000)",
            &["hold:nobody: shows a reservation that nothing is known of"],
        ),
        ("redis.call('SET', ARGV[1] .. 'held:nobody', 'x')", &["held:nobody: belongs to nothing"]),
        ("redis.call('EXPIRE', subscription, 9000)", &["subscription: but a subscription stays until it is deleted"]),
        ("redis.call('SET', subscription, 'x')", &["subscription: the subscription is 120, and not a list of 7"]),
        (
            "redis.call('DEL', subscription) redis.call('RPUSH', subscription, 'x')",
            &["subscription: is a list, and not a string"],
        ),
        ("sub[1] = '' save_sub()", &["subscription: the revision is empty"]),
        ("sub[2] = '' save_sub()", &["subscription: the plan is empty"]),
        ("sub[3] = -1 save_sub()", &["subscription: the start is -1, and no time"]),
        ("sub[4] = -1 save_sub()", &["subscription: the end is -1, and no time"]),
        ("sub[5] = 1.5 save_sub()", &["subscription: the cycle anchor is 1.5, and not an integer"]),
        ("sub[6] = 'p' save_sub()", &["subscription: has fallen to plan \"p\", but has no end"]),
        (
            "sub[7] = { { 'tokens', 'some' } } save_sub()",
            &["subscription: the quota of \"tokens\" is \"some\", and not a number"],
        ),
    ];
    check("verify-others", "", cases).await;
}

#[tokio::test]
async fn what_belongs_to_no_user_is_found_and_what_is_not_tollgates_is_left_alone() {
    let redis = redis("verify-unknown").await;
    for key in
        ["tollgate2:x", "tollgate2:{x}:ledger", "tollgate2:{a:b}:hold:", "tollgate1:{a:b}:ledger", "tollgate:x", "x"]
    {
        let _: () = redis.ask(&format!("SET {key} 1")).await.unwrap();
    }
    let _: () = redis.ask("SET tollgate2:odd\n\u{1b}[0m 1").await.unwrap();
    let output = run(&["--redis-url", &redis.url()]).await;
    let output = text(&output.stdout);
    let mut lines: Vec<_> = output.lines().collect();
    assert_eq!(lines.pop().unwrap().split(": ").nth(1), Some("contradictions 4, notes 0"));
    lines.sort_unstable();
    let expected = ["odd\\n\\x1b[0m", "x", "{a:b}:hold:", "{x}:ledger"];
    assert_eq!(lines, expected.map(|key| format!("tollgate2:{key}: belongs to nothing")));
}

#[tokio::test]
async fn what_is_odd_but_possible_is_no_contradiction() {
    // A request id may be taken over once it is forgotten, while what it did before is still to be cleared away.
    let taken_over = "
        put('qr2', { 'track', 'd', 'e', now + 60000, get('qt1')[5] }) score('qr2', FORGETTING + now + 60000)
        edit(committed, function(it) it[2], it[3] = led[1] - 9, led[1] - 5 end) score(committed, FORGETTING + led[1] - 5)
        put('qt1', { 'reserve', 'd', string.sub(live, 2) }) edit(live, function(it) it[4] = 't1' end) redis.call('HDEL', memory, 'qr1')
        score('qt1', FORGETTING + led[1] - 5) led[4] = led[1] - 5 save()";
    let cases: &[(&str, &[&str])] = &[
        (taken_over, &[]),
        // Nobody gives back what a window holds that is kept no longer.
        ("cycle[2][4], cycle[2][5], cycle[2][6], cycle[2][8] = 1, 2, 3, 9 save()", &[]),
        // Agenda and memory expire; what was held then comes back with the next call.
        ("redis.call('DEL', memory, agenda, hold) led[5] = now - 1 led[3] = now - 9 save()", &[]),
        // The key ends by Redis's clock, the reservation by the user's, which was ahead.
        ("redis.call('DEL', hold) led[1] = now + 60000 save()", &["ledger: note: the user's clock is "]),
        // The clock is ahead, and what was due has been given back and forgotten.
        (
            "led[1] = now + 7200000 led[2], led[3], tokens[1][8], calls[1][8] = 0, NEVER, 0, 0 save()
            redis.call('ZREM', agenda, live) redis.call('HDEL', memory, live, 'qr1')",
            &["ledger: note: the user's clock is "],
        ),
        // All live holds lapsed when a wrong clock was set right; the keys that it wrote stay, also when the reservation is forgotten.
        (
            "edit(live, function(it) it[2] = led[1] end) score(live, FORGETTING + get(live)[3])
            led[2], led[3], tokens[1][8], calls[1][8] = 0, NEVER, 0, 0 save()",
            &["hold:: note: shows a reservation that lapsed when Redis's clock, which had been ahead, was set right"],
        ),
        (
            "led[2], led[3], tokens[1][8], calls[1][8] = 0, NEVER, 0, 0 save() redis.call('PEXPIRE', hold, 7200000)
            redis.call('ZREM', agenda, live) redis.call('HDEL', memory, live, 'qr1')",
            &["hold:: note: shows a reservation that lapsed when Redis's clock, which had been ahead, was set right"],
        ),
        // DeleteUser was cut short: these keys expire alone, if they do.
        (
            "redis.call('DEL', unpack(KEYS))",
            &["hold:: note: shows a reservation of a user who was deleted, and expires at"],
        ),
        ("redis.call('DEL', unpack(KEYS)) redis.call('PERSIST', hold)", &["hold:: nothing is known of"]),
        // The output would be empty without a contradiction.
        ("redis.call('DEL', hold)", &["hold:: is missing"]),
    ];
    check("verify-odd", "", cases).await;
}

/// NO-LEAK, ONCE: load over few users, so that their state changes all the time, and users that come and go.
#[tokio::test(flavor = "multi_thread")]
async fn load_that_goes_on_is_never_mistaken_for_a_contradiction() {
    let redis = redis("verify-load").await;
    let replica = replica(&redis, &load::catalog(load::QUOTA)).await;
    let plan = Plan {
        users: 6,
        pause: Duration::ZERO,
        ..Plan::new(vec![format!("http://{}", replica.address)], Vec::new(), 1)
    };
    let load = Load::start(plan);
    let passing = spawn(come_and_go(replica));
    let urls = [redis.url()];
    let (mut reports, mut holds) = (0, 0);
    let started = std::time::Instant::now();
    while started.elapsed() < Duration::from_secs(4) {
        let (report, findings) = verify::run(&urls).await.unwrap();
        assert_eq!(findings, [], "{report}");
        reports += 1;
        holds += report.live_holds;
    }
    passing.abort();
    load.audit().await;
    let (report, findings) = verify::run(&urls).await.unwrap();
    assert_eq!(findings, [], "{report}");
    assert!(reports >= 3 && holds > 0, "{reports} reports saw {holds} holds");
}

async fn come_and_go(mut replica: Replica) {
    loop {
        let user = fresh_user("passing");
        for quantity in 1..20 {
            let event =
                v1::Event { name: "work".to_owned(), quantity: Some(f64::from(quantity)), ..v1::Event::default() };
            let request =
                v1::ReserveRequest { user_id: user.clone(), event: Some(event), ..v1::ReserveRequest::default() };
            replica.metering.reserve(request).await.unwrap();
        }
        let request = v1::DeleteUserRequest { user_id: user };
        replica.subscriptions.delete_user(request).await.unwrap();
    }
}
