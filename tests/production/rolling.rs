//! Replicas come, go and learn new plans, and no caller notices more than they are told.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::AsyncCommands as _;
use tollgate::access::Access;
use tollgate::apps::{Apps, Catalogs};
use tollgate::catalog;
use tollgate::config::Limits;
use tollgate::grpc::v1;
use tollgate::ledger::{Ledger, Scripts, scripts};
use tollgate::meter::MeterOptions;
use tollgate::server::{self, Serving};
use tonic::Code;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::abuse::{LIST_PLANS, RESERVE, reserve, serve, track, used_and_held};
use crate::access::refused;
use crate::raw::{OPENING, PATIENCE, Raw, framed, said};
use crate::support::load::{self, Load, Plan};
use crate::support::redis_server::RedisServer;
use crate::support::served::Served;
use crate::support::{Replica, fresh_user, keys, redis_options, redis_url, scratch, spawn};

/// Waits until something is so, on a machine that may be busy.
pub async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The catalog of plans with these names; a token of an event `work` costs `weight`.
fn plans(names: &[&str], weight: u32) -> String {
    let mut text = format!("default_plan: {}\nplans:\n", names[0]);
    for name in names {
        text += &format!(
            "  {name}:\n    period: lifetime\n    limit_groups:\n      - {{ id: tokens, unit: tokens, quota: 1000, match: [{{ event: work, measure: {{ n: {weight} }} }}] }}\n"
        );
    }
    text
}

fn work(user: &str) -> v1::ReserveRequest {
    let event =
        v1::Event { name: "work".to_owned(), quantities: [("n".to_owned(), 10.0)].into(), ..v1::Event::default() };
    v1::ReserveRequest { user_id: user.to_owned(), event: Some(event), ..v1::ReserveRequest::default() }
}

async fn plan_ids(replica: &mut Replica) -> Vec<String> {
    let plans = replica.plans.list_plans(v1::ListPlansRequest {}).await.unwrap().into_inner().plans;
    plans.into_iter().map(|plan| plan.plan_id).collect()
}

async fn learns(replica: &mut Replica, names: &[&str]) {
    until(&format!("the plans become {names:?}"), async || plan_ids(replica).await == names).await;
}

/// A folder of its own.
fn folder(name: &str) -> PathBuf {
    let folder = scratch(name);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn serve_catalog(path: &Path, poll: &str) -> Served {
    Served::start(0, &["--redis-url", &redis_url(), "--catalog", path.to_str().unwrap(), "--catalog-poll", poll])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_takes_the_catalog_and_what_was_held_settles_as_written() {
    let file = folder("reload").join("catalog.yaml");
    std::fs::write(&file, plans(&["first", "second"], 1)).unwrap();
    let served = serve_catalog(&file, "1h");
    let mut replica = Replica::connect(served.address).await;
    let (user, leaver) = (fresh_user("reload"), fresh_user("leaver"));
    let upsert =
        v1::UpsertSubscriptionRequest { user_id: leaver.clone(), plan_id: "second".to_owned(), ..Default::default() };
    replica.subscriptions.upsert_subscription(upsert).await.unwrap();
    let before = replica.metering.reserve(work(&user)).await.unwrap().into_inner();
    let left = replica.metering.reserve(work(&leaver)).await.unwrap().into_inner();
    assert_eq!((before.limits[0].held, left.limits[0].held), (10.0, 10.0));

    std::fs::write(&file, plans(&["first", "third"], 7)).unwrap();
    assert_eq!(plan_ids(&mut replica).await, ["first", "second"], "nobody has looked yet");
    served.signal("-HUP");
    learns(&mut replica, &["first", "third"]).await;
    let after = replica.metering.reserve(work(&user)).await.unwrap().into_inner();
    assert_eq!(after.limits[0].held, 10.0 + 70.0, "new calls see the new plan");
    // SELF-CONTAINED: by the weight, and the plan, that they were made with.
    let commit = |held: v1::ReserveResponse| v1::CommitRequest {
        reservation_id: held.reservation_id,
        actual: None,
        ..v1::CommitRequest::default()
    };
    let committed = replica.metering.commit(commit(before)).await.unwrap().into_inner();
    assert_eq!((committed.limits[0].requested, committed.overage), (10.0, false), "{committed:?}");
    let committed = replica.metering.commit(commit(left)).await.unwrap().into_inner();
    assert_eq!(committed.limits[0].requested, 10.0, "{committed:?}");
    // Never the default plan instead.
    refused(replica.metering.reserve(work(&leaver)).await, Code::FailedPrecondition, "PLAN_UNKNOWN");
    let told = |log: &str| log.lines().any(|line| line.contains("a plan is gone") && line.contains("second"));
    until("the log says that the plan is gone", async || told(&served.log())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_catalog_is_noticed_and_a_bad_one_is_kept_out() {
    let file = folder("noticed").join("catalog.yaml");
    std::fs::write(&file, plans(&["first"], 1)).unwrap();
    let served = serve_catalog(&file, "100ms");
    let mut replica = Replica::connect(served.address).await;
    std::fs::write(&file, plans(&["second"], 1)).unwrap();
    learns(&mut replica, &["second"]).await;

    std::fs::write(&file, plans(&["third"], 1).replace("period: lifetime", "period: sometimes")).unwrap();
    until("the log says what is wrong", async || served.log().contains("line 4, plans.third.period")).await;
    until("the log says what is in force", async || served.log().contains("kept the former one")).await;
    assert_eq!(plan_ids(&mut replica).await, ["second"]);
    assert!(replica.metering.reserve(work(&fresh_user("kept"))).await.unwrap().into_inner().allowed);
    // Missing for a while, as with editors that replace files.
    std::fs::remove_file(&file).unwrap();
    until("the log says what is missing", async || served.log().contains("cannot read the catalog")).await;
    assert_eq!(plan_ids(&mut replica).await, ["second"]);
    let told = served.log().matches("refused the catalog").count();

    std::fs::write(&file, plans(&["fourth"], 1)).unwrap();
    learns(&mut replica, &["fourth"]).await;
    assert!(told <= 4, "what stays bad is said once, not at every look: {}", served.log());
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn a_mounted_folder_whose_links_are_swapped_is_noticed() {
    // As Kubernetes mounts a ConfigMap.
    let mount = folder("mount");
    let version = |name: &str, plan: &str| {
        let version = mount.join(name);
        std::fs::create_dir(&version).unwrap();
        std::fs::write(version.join("default.yaml"), plans(&[plan], 1)).unwrap();
        std::fs::write(version.join("other.yaml"), plans(&["other"], 1)).unwrap();
        std::os::unix::fs::symlink(name, mount.join("..data_tmp")).unwrap();
        std::fs::rename(mount.join("..data_tmp"), mount.join("..data")).unwrap();
    };
    version("..2026_01", "first");
    for file in ["default.yaml", "other.yaml"] {
        std::os::unix::fs::symlink(Path::new("..data").join(file), mount.join(file)).unwrap();
    }
    let (whole, single) = (serve_catalog(&mount, "100ms"), serve_catalog(&mount.join("default.yaml"), "100ms"));
    let mut replicas = [Replica::connect(whole.address).await, Replica::connect(single.address).await];
    version("..2026_02", "second");
    std::fs::remove_dir_all(mount.join("..2026_01")).unwrap();
    for replica in &mut replicas {
        learns(replica, &["second"]).await;
    }
    // Without keys every call is one of `default`, which must keep its plans.
    std::fs::remove_file(mount.join("default.yaml")).unwrap();
    until("it is refused", async || whole.log().contains("no default.yaml")).await;
    assert_eq!(plan_ids(&mut replicas[0]).await, ["second"]);
}

async fn health(served: &Served) -> HealthClient<Channel> {
    let endpoint = Channel::from_shared(format!("http://{}", served.address)).unwrap();
    HealthClient::new(endpoint.connect().await.unwrap())
}

async fn serving(health: &mut HealthClient<Channel>) -> ServingStatus {
    health.check(HealthCheckRequest::default()).await.unwrap().into_inner().status()
}

#[tokio::test(flavor = "multi_thread")]
async fn while_it_drains_health_says_so_and_calls_are_answered_until_a_second_signal() {
    let mut served = serve(&["--drain-delay", "1m", "--drain-timeout", "1m"]);
    let mut replica = Replica::connect(served.address).await;
    let mut health = health(&served).await;
    let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    let user = fresh_user("draining");
    assert_eq!(serving(&mut health).await, ServingStatus::Serving);
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    served.signal("-TERM");
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    assert_eq!(serving(&mut health).await, ServingStatus::NotServing);
    // Load balancers learn late: old connections and new ones are served.
    replica.metering.track(track(&user)).await.unwrap();
    let mut late = Replica::connect(served.address).await;
    late.metering.track(track(&user)).await.unwrap();
    assert_eq!(used_and_held(&mut late, &user).await, (2.0, 0.0));
    served.signal("-TERM");
    assert_eq!(served.wait().code(), Some(0));
    assert!(served.whole_log().contains("stopping at once"), "{}", served.whole_log());
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_do_nothing_do_not_hold_up_its_end() {
    let mut served = serve(&["--drain-timeout", "20s", "--handshake-timeout", "60s"]);
    let silent = said(served.address, b"").await;
    let half = said(served.address, &OPENING[..12]).await;
    let mut idle = Replica::connect(served.address).await;
    plan_ids(&mut idle).await;
    let mut health = health(&served).await;
    let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    served.signal("-INT");
    // All it says before it ends in order.
    let mut last = None;
    while let Some(message) = watch.message().await.unwrap() {
        last = Some(message.status());
    }
    assert_eq!(last, Some(ServingStatus::NotServing));
    assert_eq!(served.wait().code(), Some(0));
    drop((silent, half));
    assert!(!served.whole_log().contains("cuts them off"), "{}", served.whole_log());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_call_fails_or_counts_twice_while_a_replica_is_stopped_under_load() {
    let redis = RedisServer::start(scratch("drain"), "");
    redis.ready().await;
    let file = folder("drain").join("catalog.yaml");
    std::fs::write(&file, load::catalog(load::QUOTA)).unwrap();
    let start = || {
        let (url, file) = (redis.url(), file.to_str().unwrap());
        Served::start(0, &["--redis-url", &url, "--redis-timeout", "30s", "--catalog", file, "--drain-delay", "300ms"])
    };
    let (mut leaving, staying) = (start(), start());
    let urls = [&leaving, &staying].map(|served| format!("http://{}", served.address));
    // Clients wait for long: an attempt that they gave up themselves would be found replayed.
    let patient = Duration::from_secs(30);
    let plan = Plan {
        clients: 16,
        pause: Duration::from_millis(1),
        timeout: patient,
        ..Plan::new(urls.to_vec(), vec![redis.url()], 5)
    };
    let mut load = Load::start(plan);
    load.flows(PATIENCE).await;
    let (before, asked) = (load.answered(), Instant::now());
    leaving.signal("-TERM");
    let status = tokio::task::spawn_blocking(move || {
        let status = leaving.wait();
        (status, leaving.whole_log())
    });
    let (status, log) = status.await.unwrap();
    let (took, during) = (asked.elapsed(), load.answered() - before);
    assert_eq!(status.code(), Some(0));
    assert!(!log.contains("cut off"), "{log}");
    load.without(&urls[0]);
    // The other one goes on.
    let more = load.answered() + 100;
    until("load flows on", async || load.answered() >= more).await;
    let totals = load.audit().await;
    println!("drained in {took:?}, {during} calls answered meanwhile by both; {totals:?}");
    // Whatever was refused by the one was not begun there, and so was new to the other.
    assert_eq!(totals.replayed, 0, "{totals:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_finish_is_cut_off_at_the_hard_limit() {
    let redis = RedisServer::start(scratch("hard-limit"), "");
    redis.ready().await;
    let url = redis.url();
    let waits = ["--redis-url", &url, "--redis-timeout", "30s", "--call-timeout", "30s", "--drain-timeout", "500ms"];
    let mut served = serve(&waits);
    let mut raw = Raw::connect(served.address).await;
    redis.signal("-STOP");
    let mut call = raw.begin(RESERVE, &[]).await.unwrap();
    call.body.send_data(framed(&reserve(&fresh_user("cut"))), true).unwrap();
    // It is under way once a later call of its connection has been answered.
    let later = raw.call(LIST_PLANS, &[], framed(&v1::ListPlansRequest {})).await.unwrap();
    assert_eq!(later.status().code(), Code::Ok);
    served.signal("-TERM");
    assert_eq!(served.wait().code(), Some(0));
    redis.signal("-CONT");
    assert!(call.answer().await.is_err());
    assert!(served.whole_log().contains("cuts them off"), "{}", served.whole_log());
}

#[tokio::test(flavor = "multi_thread")]
async fn work_whose_caller_has_gone_away_is_finished_before_the_end() {
    let redis = RedisServer::start(scratch("left-behind"), "");
    redis.ready().await;
    let url = redis.url();
    let mut served = serve(&["--redis-url", &url, "--redis-timeout", "60s", "--drain-timeout", "60s"]);
    let mut raw = Raw::connect(served.address).await;
    redis.signal("-STOP");
    let late = raw.call(RESERVE, &[("grpc-timeout", "100m")], framed(&reserve(&fresh_user("late")))).await.unwrap();
    refused(Err::<(), _>(late.status()), Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    served.signal("-TERM");
    until("the connection ends", async || raw.call(LIST_PLANS, &[], framed(&v1::ListPlansRequest {})).await.is_err())
        .await;
    drop(raw);
    until("it listens no more", async || tokio::net::TcpStream::connect(served.address).await.is_err()).await;
    // Long enough for an end that waits for nothing; one that waits is never too slow for this.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", served.id())).unwrap();
    assert!(status.contains("VmRSS"), "it has ended: {status}");
    redis.signal("-CONT");
    assert_eq!(served.wait().code(), Some(0));
    assert!(!served.whole_log().contains("cuts them off"), "{}", served.whole_log());
}

/// A replica of another version: every script has another text, and so another digest, than ours.
async fn replica_of_another_version(redis_url: String, catalog: String) -> String {
    let changed = Scripts::changed(scripts(), |script| format!("{}\n-- of another version\n", script.source));
    let changed: &'static Scripts = Box::leak(Box::new(changed));
    for (ours, theirs) in scripts().all().iter().zip(changed.all()) {
        assert_ne!(ours.sha1, theirs.sha1, "{}", ours.name);
    }
    let catalog = Arc::new(catalog::parse(&catalog, jiff::tz::db()).unwrap());
    let started = spawn(async move {
        let options = tollgate::ledger::RedisOptions { urls: vec![redis_url], ..redis_options() };
        let ledger = Ledger::connect(&options).await.unwrap().with_scripts(changed);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let apps = Arc::new(Apps::new(Catalogs::Shared(catalog), ledger, MeterOptions::default()));
        let access = Arc::new(Access::open());
        let serving =
            Serving { apps, access, limits: Limits::default(), fail_open: false, tls: None, envoy: None, admin: None };
        tokio::spawn(server::run(serving, listener, std::future::pending()));
        address
    });
    format!("http://{}", started.await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_versions_at_once_keep_one_account_and_leave_other_schemas_alone() {
    let redis = RedisServer::start(scratch("versions"), "");
    redis.ready().await;
    let catalog = load::catalog(load::QUOTA);
    let file = folder("versions").join("catalog.yaml");
    std::fs::write(&file, &catalog).unwrap();
    let ours = Served::start(0, &["--redis-url", &redis.url(), "--catalog", file.to_str().unwrap()]);
    let theirs = replica_of_another_version(redis.url(), catalog).await;
    let urls = vec![format!("http://{}", ours.address), theirs];
    let load = Load::start(Plan::new(urls, vec![redis.url()], 6));

    // What a later version keeps in another form.
    let mut connection = redis.connection().await;
    let mut later = vec!["tollgate4:api-keys".to_owned()];
    for user in load.users() {
        let own = keys(&user);
        later.extend(
            own.all().into_iter().chain([own.hold(&[0; 16])]).map(|key| key.replacen("tollgate3", "tollgate4", 1)),
        );
    }
    for key in &later {
        let _: () = connection.set(key, "later").await.unwrap();
    }
    load.flows(PATIENCE).await;
    let more = load.answered() + 500;
    until("load flows over both", async || load.answered() >= more).await;
    let users = load.users();
    let totals = load.audit().await;
    println!("two versions at once: {totals:?}");
    assert_eq!(totals.replayed, 0, "{totals:?}");
    let mut replica = Replica::connect(ours.address).await;
    for user_id in users {
        replica.subscriptions.delete_user(v1::DeleteUserRequest { user_id }).await.unwrap();
    }
    let left: Vec<String> = connection.keys("tollgate3:*").await.unwrap();
    // Plans belong to no user, and expire.
    let of_users: Vec<_> = left.iter().filter(|key| !key.starts_with("tollgate3:plan:")).collect();
    assert!(of_users.is_empty() && !left.is_empty(), "{left:?}");
    for plan in &left {
        assert!((1..=28 * 3600).contains(&connection.ttl::<_, i64>(plan).await.unwrap()), "{plan}");
    }
    for key in &later {
        let value: String = connection.get(key).await.unwrap();
        let ttl: i64 = connection.ttl(key).await.unwrap();
        assert_eq!((&*value, ttl), ("later", -1), "{key}");
    }
}
