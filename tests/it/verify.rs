//! `tollgate verify`, through the real binary: it finds nothing in what Tollgate writes, changes nothing, and finds whatever is wrong.

use std::collections::BTreeMap;
use std::process::{Command, Output};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use tollgate::grpc::v1;
use tollgate::ledger::RedisOptions;
use tollgate::meter::MeterOptions;
use tollgate::verify;

mod contradictions;

use crate::scenario::Scenario;
use crate::support::load::{self, Load, Plan};
use crate::support::redis_server::RedisServer;
use crate::support::{Replica, fresh_user, scratch, spawn};

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
        "users 5, windows 12, live holds 3, reservations 7, tracked events 4: contradictions 0, notes 0\n",
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

#[tokio::test]
async fn what_belongs_to_no_user_is_found_and_what_is_not_tollgates_is_left_alone() {
    let redis = redis("verify-unknown").await;
    for key in ["tollgate3:x", "tollgate3:{x}:u", "tollgate3:{a:b}:u:h:", "tollgate2:{a:b}:ledger", "tollgate:x", "x"] {
        let _: () = redis.ask(&format!("SET {key} 1")).await.unwrap();
    }
    let _: () = redis.ask("SET tollgate3:odd\n\u{1b}[0m 1").await.unwrap();
    // Plans of the archive belong to no user either.
    let _: () = redis.ask("SET tollgate3:plan:AAAAAAAAAAA 1 PX 100000").await.unwrap();
    let _: () = redis.ask("RPUSH tollgate3:plan:AAAAAAAAAAE 1").await.unwrap();
    let output = run(&["--redis-url", &redis.url()]).await;
    let output = text(&output.stdout);
    let mut lines: Vec<_> = output.lines().collect();
    assert_eq!(lines.pop().unwrap().split(": ").nth(1), Some("contradictions 6, notes 0"));
    lines.sort_unstable();
    let unknown = ["odd\\n\\x1b[0m", "plan", "x", "{a:b}:u:h:", "{x}:u"];
    let unknown = unknown.map(|key| format!("tollgate3:{key}: belongs to nothing"));
    let plans = ["AAAAAAAAAAA: has a plan whose digest is ", "AAAAAAAAAAE: is a list, and not a string"];
    let expected = [&unknown[0], &format!("tollgate3:plan:{}", plans[0]), &format!("tollgate3:plan:{}", plans[1])];
    let expected = expected.into_iter().chain(&unknown[2..]);
    assert_eq!(lines.len(), 6, "{lines:#?}");
    for (line, expected) in lines.iter().zip(expected) {
        assert!(line.starts_with(expected.as_str()), "{line}, and not {expected}");
    }
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
        let (report, mut findings) = verify::run(&urls).await.unwrap();
        // It says so where it could not read all of a user at one moment.
        findings.retain(|finding| finding.kind != verify::Kind::Note || !finding.what.starts_with("changed each time"));
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
