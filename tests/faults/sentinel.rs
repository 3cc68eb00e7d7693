//! Redis Sentinel: a master, two replicas and three Sentinels on loopback. The master is replaced on demand, killed, or hangs.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use redis::AsyncConnectionConfig;
use redis::aio::MultiplexedConnection;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tollgate::grpc::v1;
use tollgate::ledger::{Ledger, RedisOptions};
use tollgate::meter::MeterOptions;

use crate::alone;
use crate::campaign::seeds;
use crate::support::load::{self, Load, Plan};
use crate::support::redis_server::{RedisServer, free_port};
use crate::support::{Replica, scratch, spawn};

/// Within this, service resumes by itself once there is a master.
const RESUMES: Duration = Duration::from_secs(5);

/// How the Sentinels call the master. Names keep their case.
const NAME: &str = "My_master";

/// After this long without an answer the Sentinels take the master for dead: longer than a busy machine keeps a process waiting.
const DOWN_AFTER_MS: u64 = 2000;

/// Then the campaign says nothing of Tollgate.
const UNASKED: &str =
    "the machine is too busy: the Sentinels made a failover that is none of the test's, and may forget";

/// Of the servers, and another of the Sentinels.
const PASSWORD: &str = "data-secret";
const SENTINEL_PASSWORD: &str = "watch-secret";

/// One Sentinel, with a file of its own that it writes. It is killed when it is dropped.
struct Sentinel {
    child: Child,
    port: u16,
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        let _: Result<(), _> = self.child.kill();
        let _: Result<_, _> = self.child.wait();
    }
}

impl Sentinel {
    fn start(directory: PathBuf, master: u16) -> Self {
        std::fs::create_dir_all(&directory).unwrap();
        let port = free_port();
        let file = directory.join("sentinel.conf");
        let config = format!(
            "port {port}\nbind 127.0.0.1\ndir {}\nrequirepass {SENTINEL_PASSWORD}\nlogfile sentinel.log\n\
             sentinel monitor {NAME} 127.0.0.1 {master} 2\nsentinel auth-pass {NAME} {PASSWORD}\n\
             sentinel sentinel-pass {SENTINEL_PASSWORD}\nsentinel down-after-milliseconds {NAME} {DOWN_AFTER_MS}\n\
             sentinel failover-timeout {NAME} 3000\n",
            directory.display()
        );
        std::fs::write(&file, config).unwrap();
        let child = Command::new("redis-server")
            .arg(&file)
            .arg("--sentinel")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server can be run");
        Self { child, port }
    }

    fn url(&self) -> String {
        format!("redis://:{SENTINEL_PASSWORD}@127.0.0.1:{}", self.port)
    }

    async fn ask<T: redis::FromRedisValue>(&self, words: &[&str]) -> redis::RedisResult<T> {
        redis::cmd("SENTINEL").arg(words).query_async(&mut connect(self.url()).await?).await
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }
}

/// A connection of the test's own, with patience for a busy machine.
async fn connect(url: String) -> redis::RedisResult<MultiplexedConnection> {
    let patience = Some(Duration::from_secs(10));
    let config = AsyncConnectionConfig::new().set_connection_timeout(patience).set_response_timeout(patience);
    redis::Client::open(url)?.get_multiplexed_async_connection_with_config(&config).await
}

/// The servers, of which the first is the master, and the Sentinels that watch them.
struct Watched {
    servers: Vec<RedisServer>,
    sentinels: Vec<Sentinel>,
}

impl Watched {
    async fn start(name: &str) -> Self {
        let arguments = format!(
            "--appendonly yes --requirepass {PASSWORD} --masterauth {PASSWORD} --repl-diskless-sync-delay 0 --repl-timeout 5"
        );
        let master = RedisServer::start(scratch(&format!("{name}-0")), &arguments);
        let arguments = format!("{arguments} --replicaof 127.0.0.1 {}", master.port());
        let replica = |index| RedisServer::start(scratch(&format!("{name}-{index}")), &arguments);
        let mut servers = vec![master];
        servers.extend((1..3).map(replica));
        let port = servers[0].port();
        let sentinels = (0..3).map(|index| Sentinel::start(scratch(&format!("{name}-s{index}")), port)).collect();
        let watched = Self { servers, sentinels };
        // They look and tell more often than every ten and two seconds.
        for sentinel in &watched.sentinels {
            let periods = ["DEBUG", "INFO-PERIOD", "500", "PUBLISH-PERIOD", "200", "PING-PERIOD", "200"];
            watched.until("a Sentinel listens", async || sentinel.ask::<()>(&periods).await.is_ok()).await;
        }
        watched.settled().await;
        watched
    }

    fn options(&self) -> RedisOptions {
        RedisOptions {
            urls: vec![format!("redis://:{PASSWORD}@{NAME}")],
            sentinels: self.sentinels.iter().map(Sentinel::url).collect(),
            connections: 2,
            batch: 32,
            timeout: Duration::from_secs(1),
            allow_eviction: false,
            ..RedisOptions::default()
        }
    }

    async fn replica(&self) -> Replica {
        let catalog = load::catalog(load::QUOTA);
        Replica::start_with(&catalog, jiff::tz::db(), MeterOptions::default(), self.options()).await
    }

    async fn load(&self, plan: Plan) -> Load {
        let mut urls = Vec::new();
        for _ in 0..2 {
            urls.push(format!("http://{}", self.replica().await.address));
        }
        let load = Load::start(Plan { urls, ..plan });
        load.flows(RESUMES).await;
        load
    }

    /// What a server says of itself and its replicas, if it answers.
    async fn replication(&self, index: usize) -> Option<String> {
        let url = format!("redis://:{PASSWORD}@127.0.0.1:{}", self.servers[index].port());
        redis::cmd("INFO").arg("replication").query_async(&mut connect(url).await.ok()?).await.ok()
    }

    /// The index of the server that the first Sentinel calls master.
    async fn master(&self) -> usize {
        let (_, port): (String, u16) = self.sentinels[0].ask(&["GET-MASTER-ADDR-BY-NAME", NAME]).await.unwrap();
        self.servers.iter().position(|server| server.port() == port).expect("it is one of the servers")
    }

    /// Of the last failover that the first Sentinel knows: a later one has a higher number.
    async fn epoch(&self) -> u64 {
        let told: HashMap<String, String> = self.sentinels[0].ask(&["MASTER", NAME]).await.unwrap();
        told["config-epoch"].parse().unwrap()
    }

    async fn until(&self, what: &str, mut is_so: impl AsyncFnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(40);
        while !is_so().await {
            assert!(Instant::now() < deadline, "it does not happen that {what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until every Sentinel knows all the others and the replicas, and these follow the master.
    async fn settled(&self) {
        self.until("all is well", async || {
            for sentinel in &self.sentinels {
                let Ok(told) = sentinel.ask::<HashMap<String, String>>(&["MASTER", NAME]).await else {
                    return false;
                };
                let says = |field: &str, value: &str| told.get(field).is_some_and(|text| text == value);
                if !(says("num-other-sentinels", "2") && says("num-slaves", "2") && says("flags", "master")) {
                    return false;
                }
            }
            let master = self.master().await;
            let told = self.replication(master).await.unwrap_or_default();
            told.contains("role:master")
                && told.contains("connected_slaves:2")
                && told.matches("state=online").count() == 2
        })
        .await;
    }

    /// Has the Sentinels replace the master. They look often here, and so take a replica for unfit that has not answered for a second:
    /// while none is fit, they refuse (NOGOODSLAVE) and change nothing.
    async fn fail_over(&self) {
        self.until("a failover is begun", async || match self.sentinels[1].ask::<()>(&["FAILOVER", NAME]).await {
            Ok(()) => true,
            Err(error) => {
                assert_eq!(error.code(), Some("NOGOODSLAVE"), "{error}");
                false
            }
        })
        .await;
    }

    /// Waits until both replicas have all that the master has now.
    async fn caught_up(&self) {
        let master = self.master().await;
        let number =
            |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap_or(0);
        let told = self.replication(master).await.expect("the master answers");
        let (_, offset) = told.split_once("master_repl_offset:").expect("it has an offset");
        let offset: u64 = number(offset);
        self.until("the replicas catch up", async || {
            let told = self.replication(master).await.unwrap_or_default();
            told.split(",offset=").skip(1).filter(|replica| number(replica) >= offset).count() == 2
        })
        .await;
    }

    /// Waits until the Sentinels name another master, which says so itself.
    async fn promoted(&self, before: usize) -> usize {
        self.until("a replica is promoted", async || {
            let master = self.master().await;
            master != before && self.replication(master).await.is_some_and(|told| told.contains("role:master"))
        })
        .await;
        self.master().await
    }
}

fn track(user: &str) -> v1::TrackRequest {
    let event = v1::Event { name: "seen".to_owned(), quantity: Some(1.0), ..Default::default() };
    v1::TrackRequest { user_id: user.to_owned(), event: Some(event), ..Default::default() }
}

/// The Sentinels promote a replica while the old master still takes writes: the last moments may be forgotten, and nothing is
/// counted twice.
#[tokio::test]
async fn the_master_is_replaced_on_demand() {
    let _turn = alone().await;
    let watched = Watched::start("asked").await;
    for seed in seeds() {
        let load =
            watched.load(Plan { may_forget: true, refunds: false, ..Plan::new(Vec::new(), Vec::new(), seed) }).await;
        let master = watched.master().await;
        watched.fail_over().await;
        watched.promoted(master).await;
        let resumed = load.flows(RESUMES).await;
        watched.settled().await;
        load.flows(RESUMES).await;
        let totals = load.audit().await;
        println!("master replaced on demand: service resumed after {resumed:?}; {totals:?}");
    }
}

/// The replicas had everything when the master stopped: the counters are exact. What has stopped comes back as a replica.
#[tokio::test]
async fn the_master_is_killed_and_hangs() {
    let _turn = alone().await;
    let mut watched = Watched::start("stopped").await;
    for seed in seeds() {
        for signal in ["-KILL", "-STOP"] {
            let before = watched.epoch().await;
            let load = watched.load(Plan::new(Vec::new(), Vec::new(), seed)).await;
            load.pause().await;
            watched.caught_up().await;
            assert_eq!(watched.epoch().await, before, "{UNASKED}");
            let master = watched.master().await;
            watched.servers[master].signal(signal);
            // One Sentinel that hangs as well holds nobody up.
            watched.sentinels[2].signal("-STOP");
            load.resume();
            watched.promoted(master).await;
            let promoted = watched.epoch().await;
            let resumed = load.flows(RESUMES).await;
            watched.sentinels[2].signal("-CONT");
            match signal {
                // It comes back as the master that it was, until the Sentinels tell it otherwise.
                "-KILL" => watched.servers[master].restart(),
                // It answers what it finds in its sockets before it hears that it is none.
                _ => watched.servers[master].signal("-CONT"),
            }
            watched.settled().await;
            load.flows(RESUMES).await;
            assert_eq!(watched.epoch().await, promoted, "{UNASKED}");
            let totals = load.audit().await;
            assert!(totals.unanswered > 0, "the fault was felt: {totals:?}");
            println!("master in step, {signal}: service resumed after {resumed:?}; {totals:?}");
        }
    }
}

/// Tollgate waits some seconds for a master when it starts, and says what it lacks if there is none.
#[tokio::test]
async fn tollgate_is_started_while_there_is_no_master() {
    let _turn = alone().await;
    let mut watched = Watched::start("absent").await;
    let refusal = async |options: RedisOptions| {
        let error = Ledger::connect(&options).await.err().expect("there is no such master");
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        let told = format!("{error}: {cause}");
        assert!(!told.contains("secret"), "{told}");
        told
    };
    let unknown = RedisOptions { urls: vec![format!("redis://:{PASSWORD}@other")], ..watched.options() };
    let told = refusal(unknown).await;
    assert!(told.contains("no master \"other\"") && told.contains("watch no master of this name"), "{told}");

    let master = watched.master().await;
    watched.servers[master].kill();
    let mut replica = watched.replica().await;
    // It has waited for another, of which this Sentinel may hear last.
    watched.promoted(master).await;
    replica.metering.track(track("u")).await.unwrap();
    watched.servers[master].restart();
    watched.settled().await;
    replica.metering.track(track("u")).await.unwrap();
    let request = v1::DeleteUserRequest { user_id: "u".to_owned() };
    replica.subscriptions.delete_user(request).await.unwrap();

    // Sentinels that are gone do not matter while the master is there.
    for sentinel in &watched.sentinels {
        sentinel.signal("-STOP");
    }
    tokio::time::sleep(Duration::from_millis(1500)).await;
    replica.metering.track(track("u")).await.unwrap();
}

/// What Sentinels of a test's own say: the epoch of the last failover, and the port of the master; and after how many milliseconds.
type Word = Arc<Mutex<(u64, u16, u64)>>;

/// Answers as a Sentinel would. Returns its URL.
async fn liar(word: Word) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(lie(stream, Arc::clone(&word)));
        }
    });
    url
}

/// A command is `*` and the number of its words, each of which is `$` and its length, and itself.
async fn lie(stream: TcpStream, word: Word) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    while let Some(line) = lines.next_line().await? {
        let count: usize = line.trim_start_matches('*').parse().unwrap_or(0);
        let mut command = Vec::new();
        for _ in 0..2 * count {
            command.extend(lines.next_line().await?);
        }
        let (epoch, port, delay_ms) = *word.lock().unwrap();
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
        let text = |text: &str| format!("${}\r\n{text}\r\n", text.len());
        let answer = match command.get(3).map(String::as_str) {
            Some("GET-MASTER-ADDR-BY-NAME") => format!("*2\r\n{}{}", text("127.0.0.1"), text(&port.to_string())),
            Some("MASTER") => format!("*2\r\n{}{}", text("config-epoch"), text(&epoch.to_string())),
            _ => "+OK\r\n".to_owned(),
        };
        write.write_all(answer.as_bytes()).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_master_must_say_so_itself_and_who_missed_a_failover_is_not_heard() {
    let _turn = alone().await;
    let master = RedisServer::start(scratch("said-0"), "");
    let replica = RedisServer::start(scratch("said-1"), &format!("--replicaof 127.0.0.1 {}", master.port()));
    master.ready().await;
    replica.ready().await;
    let words: Vec<Word> = (0..2).map(|_| Arc::new(Mutex::new((5, replica.port(), 0)))).collect();
    let mut sentinels = Vec::new();
    for word in &words {
        sentinels.push(liar(Arc::clone(word)).await);
    }
    let timeout = Duration::from_secs(1);
    let urls = vec![format!("redis://{NAME}")];
    let options = RedisOptions { urls, sentinels, connections: 1, batch: 32, timeout, ..RedisOptions::default() };
    let catalog = load::catalog(10);
    let starting =
        spawn(async move { Replica::start_with(&catalog, jiff::tz::db(), MeterOptions::default(), options).await });
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(!starting.is_finished(), "a replica is no master, whatever the Sentinels say");
    for word in &words {
        *word.lock().unwrap() = (6, master.port(), 0);
    }
    let mut tollgate = starting.await.unwrap();
    for stale in [0, 1] {
        *words[stale].lock().unwrap() = (5, replica.port(), 0);
        *words[1 - stale].lock().unwrap() = (6, master.port(), 0);
        for _ in 0..15 {
            tollgate.metering.track(track("u")).await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    // Another node that says so, after a later failover, while the first one still does.
    delete_with_a_hold(&mut tollgate).await;
    let _: () = replica.ask("REPLICAOF NO ONE").await.unwrap();
    *words[0].lock().unwrap() = (7, replica.port(), 0);
    *words[1].lock().unwrap() = (6, master.port(), 20);
    let moved = Instant::now();
    while calls(&replica, "fcall").await == 0 {
        assert!(moved.elapsed() < RESUMES, "the other master is not followed");
        track_amid_a_move(&mut tollgate).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let before = (calls(&master, "fcall").await, calls(&master, "unlink").await);
    let replicated = calls(&replica, "unlink").await;
    for round in 0..45 {
        match round {
            // Now who missed it answers first.
            15 => *words[0].lock().unwrap() = (7, replica.port(), 40),
            // And now alone.
            30 => *words[0].lock().unwrap() = (7, replica.port(), 5000),
            _ => {}
        }
        tollgate.metering.track(track("u")).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    delete_with_a_hold(&mut tollgate).await;
    assert_eq!((calls(&master, "fcall").await, calls(&master, "unlink").await), before, "the first one is left");
    // The memories of somebody else that a new user might find, what the user had, and the key that shows the hold.
    assert_eq!(calls(&replica, "unlink").await, replicated + 3);
    // Sentinels that are set up anew count from the beginning. They are believed once they must be.
    for word in &words {
        *word.lock().unwrap() = (0, master.port(), 0);
    }
    let anew = Instant::now();
    while (calls(&master, "fcall").await, calls(&master, "unlink").await) == before {
        assert!(anew.elapsed() < Duration::from_secs(30), "Sentinels that were set up anew are not believed");
        track_amid_a_move(&mut tollgate).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A node that hangs finds in its sockets what was asked of it, and runs it as soon as it goes on, as it has not heard yet that it is
/// no master any more. It will forget that. So nobody is told that it was done.
#[tokio::test]
async fn what_a_master_of_before_does_is_not_acknowledged() {
    let _turn = alone().await;
    let nodes = [RedisServer::start(scratch("before-0"), ""), RedisServer::start(scratch("before-1"), "")];
    for node in &nodes {
        node.ready().await;
    }
    let word: Word = Arc::new(Mutex::new((1, nodes[0].port(), 0)));
    let timeout = Duration::from_secs(60);
    let urls = vec![format!("redis://{NAME}")];
    let sentinels = vec![liar(Arc::clone(&word)).await];
    for (batch, user) in [(1, "alone"), (32, "together")] {
        let epoch = word.lock().unwrap().0;
        let old = nodes.iter().position(|node| node.port() == word.lock().unwrap().1).unwrap();
        let (urls, sentinels) = (urls.clone(), sentinels.clone());
        let options = RedisOptions { urls, sentinels, connections: 1, batch, timeout, ..RedisOptions::default() };
        let catalog = load::catalog(10);
        let mut tollgate = Replica::start_with(&catalog, jiff::tz::db(), MeterOptions::default(), options).await;
        let reserve = |user: &str, request_id: &str| v1::ReserveRequest {
            user_id: user.to_owned(),
            event: Some(v1::Event { name: "work".to_owned(), quantity: Some(1.0), ..Default::default() }),
            request_id: request_id.to_owned(),
            ..Default::default()
        };
        let reserved = tollgate.metering.reserve(reserve("holder", "")).await.unwrap().into_inner();
        assert!(reserved.allowed, "{reserved:?}");
        nodes[old].signal("-STOP");
        let mut metering = tollgate.metering.clone();
        let asked = spawn(async move { metering.reserve(reserve(user, "asked")).await });
        let request = v1::DeleteUserRequest { user_id: "holder".to_owned() };
        let mut subscriptions = tollgate.subscriptions.clone();
        let deleted = spawn(async move { subscriptions.delete_user(request).await });
        // Time for both to be on their way; they fail all the same if they are not.
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!asked.is_finished() && !deleted.is_finished());
        *word.lock().unwrap() = (epoch + 1, nodes[1 - old].port(), 0);
        let error = asked.await.unwrap().expect_err("the reservation is made where it will be forgotten");
        assert_eq!(error.code(), tonic::Code::Unavailable, "{error:?}");
        let error = deleted.await.unwrap().expect_err("the user is deleted where it will be forgotten");
        assert_eq!(error.code(), tonic::Code::Unavailable, "{error:?}");
        let reserved = tollgate.metering.reserve(reserve(user, "asked")).await.unwrap().into_inner();
        assert!(reserved.allowed && !reserved.replayed, "{reserved:?}");
        nodes[old].signal("-CONT");
    }
}

/// Nobody is told what becomes of a call that is under way when another node becomes the master.
async fn track_amid_a_move(tollgate: &mut Replica) {
    if let Err(status) = tollgate.metering.track(track("u")).await {
        assert_eq!(status.code(), tonic::Code::Unavailable, "{status:?}");
    }
}

/// How often a server has run a command.
async fn calls(server: &RedisServer, command: &str) -> u64 {
    let told: String = server.ask("INFO commandstats").await.unwrap();
    let count = told.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
    count.and_then(|count| count.split_once(',')?.0.parse().ok()).unwrap_or(0)
}

/// The key that shows the hold is deleted over a connection that is lent for it.
async fn delete_with_a_hold(tollgate: &mut Replica) {
    let event = v1::Event { name: "work".to_owned(), quantity: Some(1.0), ..Default::default() };
    let request = v1::ReserveRequest { user_id: "holder".to_owned(), event: Some(event), ..Default::default() };
    assert!(tollgate.metering.reserve(request).await.unwrap().into_inner().allowed);
    let request = v1::DeleteUserRequest { user_id: "holder".to_owned() };
    tollgate.subscriptions.delete_user(request).await.unwrap();
}
