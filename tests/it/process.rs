//! The binary as its users start it: the private Redis, signals, flags, and the commands beside `serve`.

use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tollgate::grpc::v1;
use tollgate::private_redis::{self, Options};

use crate::support::served::{Served, tollgate};
use crate::support::{Replica, scratch};

/// Serves over a data directory, on a free port.
fn serve(data_dir: &Path) -> Served {
    Served::start(0, &["--data-dir", data_dir.to_str().unwrap()])
}

/// The processes whose command line names this directory.
fn processes(directory: &Path) -> Vec<String> {
    let listed = Command::new("ps").args(["-A", "-o", "pid=,command="]).output().unwrap();
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    let name = directory.to_str().unwrap();
    text.lines().filter(|line| line.contains(name)).map(str::to_owned).collect()
}

fn wait_until_gone(directory: &Path) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !processes(directory).is_empty() {
        assert!(Instant::now() < deadline, "still running: {:?}", processes(directory));
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn chat(user: &str) -> v1::TrackRequest {
    let event = v1::Event { name: "llm.tokens".to_owned(), quantity: Some(7.0), ..v1::Event::default() };
    v1::TrackRequest { user_id: user.to_owned(), event: Some(event), ..v1::TrackRequest::default() }
}

async fn tokens_used(replica: &mut Replica) -> f64 {
    let request = v1::GetUsageRequest { user_id: "u".to_owned(), ..v1::GetUsageRequest::default() };
    replica.metering.get_usage(request).await.unwrap().into_inner().limits[0].used
}

#[tokio::test(flavor = "multi_thread")]
async fn the_private_redis_ends_with_its_parent_and_finds_the_counters_again() {
    let directory = scratch("serve");
    for (round, signal) in ["-TERM", "-INT", "-KILL", "-KILL"].into_iter().enumerate() {
        // After a `kill -9` the next one is started at once, while the old Redis may still be ending.
        let mut served = serve(&directory);
        let mut replica = Replica::connect(served.address).await;
        assert_eq!(tokens_used(&mut replica).await, round as f64 * 7.0, "round {round}");
        replica.metering.track(chat("u")).await.unwrap();
        assert!(processes(&directory).iter().any(|line| line.contains("redis-server")));
        served.signal(signal);
        let status = served.wait();
        assert_eq!(status.success(), signal != "-KILL", "{status}");
        if signal != "-KILL" {
            assert_eq!(processes(&directory), Vec::<String>::new(), "nothing is left behind");
        }
    }
    wait_until_gone(&directory);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_in_flight_are_finished_when_serving_stops() {
    let directory = scratch("drain");
    let mut served = serve(&directory);
    let replica = Replica::connect(served.address).await;
    let mut metering = replica.metering.clone();
    let mut counted = 0;
    metering.track(chat("u")).await.unwrap();
    counted += 1;
    served.signal("-TERM");
    // Until the connection goes away every call is answered, and counts if it says so.
    while metering.track(chat("u")).await.is_ok() {
        counted += 1;
    }
    assert!(served.wait().success());
    let again = serve(&directory);
    let found = tokens_used(&mut Replica::connect(again.address).await).await;
    let least = f64::from(counted) * 7.0;
    assert!(found == least || found == least + 7.0, "{found} is neither {least} nor one more, whose answer was lost");
}

fn failed(output: &Output) -> String {
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn what_is_wrong_at_the_start_is_said_with_what_to_do() {
    let data_dir = scratch("unused");
    let run = |args: &[&str], path: &str| {
        let output =
            tollgate().arg("serve").args(args).arg("--data-dir").arg(&data_dir).env("PATH", path).output().unwrap();
        failed(&output)
    };
    let path = std::env::var("PATH").unwrap();
    let none = run(&["--listen", "127.0.0.1:0"], "/nonexistent");
    assert!(none.contains("apt-get install -y redis-server") && none.contains("brew install redis"), "{none}");
    let named = run(&["--listen", "127.0.0.1:0", "--redis-server", "/nonexistent/redis-server"], &path);
    assert!(named.contains("/nonexistent/redis-server") && named.contains("--redis-server"), "{named}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let busy = run(&["--listen", &address], &path);
    assert!(busy.contains(&address) && busy.contains("--listen"), "{busy}");
    let nobody = run(&["--listen", "127.0.0.1:0", "--redis-url", "redis://:topsecret@127.0.0.1:1"], &path);
    assert!(nobody.contains("cannot reach Redis") && !nobody.contains("topsecret"), "{nobody}");
    let odd = run(&["--listen", "127.0.0.1:0", "--redis-url", "http://:topsecret@127.0.0.1:1"], &path);
    assert!(odd.contains("number 1") && !odd.contains("topsecret"), "{odd}");
    let flags = run(&["--listen", "here", "--redis-timeout", "soon"], &path);
    assert!(flags.contains("listen is \"here\"") && flags.contains("redis-timeout is \"soon\""), "{flags}");
}

#[tokio::test]
async fn a_redis_that_may_evict_is_refused_unless_told_otherwise() {
    let redis = private_redis::start(Options { data_dir: scratch("evicting"), ..Options::default() }).await.unwrap();
    let mut connection = crate::support::connection_to(&redis.url()).await;
    let set = ["SET", "maxmemory-policy", "allkeys-lru"];
    let _: () = redis::cmd("CONFIG").arg(&set).query_async(&mut connection).await.unwrap();
    let url = redis.url();
    let output = tokio::task::spawn_blocking(move || {
        tollgate().args(["serve", "--listen", "127.0.0.1:0", "--redis-url", &url]).output().unwrap()
    });
    let told = failed(&output.await.unwrap());
    assert!(told.contains("allkeys-lru") && told.contains("noeviction") && told.contains("--allow-eviction"), "{told}");
    let mut options = crate::support::redis_options();
    options.urls = vec![redis.url()];
    options.allow_eviction = true;
    tollgate::ledger::Ledger::connect(&options).await.unwrap();
    redis.stop().await;
}

#[test]
fn the_catalog_commands_answer_for_people_and_for_editors() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = tollgate().arg("check-catalog").arg(root.join("catalogs/example.yaml")).output().unwrap();
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).contains("is valid: 4 plans"));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "the example has no warnings");
    let priced = scratch("priced.yaml");
    std::fs::create_dir_all(priced.parent().unwrap()).unwrap();
    let groups = "
      - { id: t, unit: tokens, quota: 9, match: [{ event: x }] }
      - { id: c, unit: cents, quota: 9, match: [{ event: x, metadata: { model: a } }] }";
    std::fs::write(&priced, format!("plans:\n  p:\n    period: daily\n    limit_groups:{groups}\n")).unwrap();
    let output = tollgate().arg("check-catalog").arg(&priced).output().unwrap();
    assert!(output.status.success(), "a warning fails nothing");
    let told = String::from_utf8_lossy(&output.stderr);
    let warned = format!("warning: {}: line 6, plans.p.limit_groups[1].match[0]: prices \"x\"", priced.display());
    assert!(told.starts_with(&warned) && told.contains("model \"unlisted\""), "{told}");
    let bad = scratch("bad.yaml");
    std::fs::create_dir_all(bad.parent().unwrap()).unwrap();
    let one = scratch("one.yaml");
    let group = "{ id: g, unit: count, quota: 1, match: [{ event: '*' }] }";
    std::fs::write(&one, format!("plans: {{ p: {{ period: daily, limit_groups: [ {group} ] }} }}")).unwrap();
    let output = tollgate().arg("check-catalog").arg(&one).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(told.trim_end().ends_with("is valid: 1 plan, 1 limit group"), "{told}");
    std::fs::write(&bad, "plans:\n  p:\n    period: sometimes\n    limit_groups: []\n").unwrap();
    let told = failed(&tollgate().arg("check-catalog").arg(&bad).output().unwrap());
    assert!(told.contains("line 3, plans.p.period") && told.contains("line 4, plans.p.limit_groups"), "{told}");
    let told = failed(&tollgate().args(["serve", "--catalog"]).arg(&bad).output().unwrap());
    assert!(told.contains("line 3, plans.p.period"), "nothing starts on a bad catalog: {told}");
    let schema = tollgate().arg("schema").output().unwrap();
    let schema: serde_json::Value = serde_json::from_slice(&schema.stdout).unwrap();
    assert_eq!(schema["title"], "Tollgate catalog");
    let mut help = String::new();
    let mut child = tollgate().args(["serve", "--help"]).stdout(Stdio::piped()).spawn().unwrap();
    child.stdout.take().unwrap().read_to_string(&mut help).unwrap();
    for name in ["LISTEN", "REDIS_URL", "DATA_DIR", "CATALOG", "REDIS_SERVER", "CONFIG", "FAIL_OPEN"] {
        assert!(help.contains(&format!("TOLLGATE_{name}")), "{name}");
    }
    assert!(child.wait().unwrap().success());
}
