//! TLS to Redis with an authority of one's own and client certificates, through the real binary: a node, a cluster, a Sentinel group.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tollgate::ledger::{Ledger, RedisAccess, RedisOptions};
use tonic::Code;

use crate::redis_access::lists;
use crate::support::redis_cluster::track;
use crate::support::redis_server::{RedisServer, free_port};
use crate::support::served::{Served, tollgate};
use crate::support::{Replica, redis_options, scratch};

const CATALOG: &str = "
default_plan: p
plans: { p: { period: yearly, limit_groups: [{ id: g, unit: count, quota: 1000000, match: [{ event: seen }] }] } }
";

/// The files of an authority and of what it has signed.
struct Files {
    directory: PathBuf,
}

impl Files {
    fn new(name: &str) -> Self {
        let files = Self { directory: scratch(name) };
        std::fs::create_dir_all(&files.directory).unwrap();
        std::fs::write(files.path("catalog.yaml"), CATALOG).unwrap();
        files.issue();
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// A new authority, and a server's and a client's certificate of it, in the place of those that there are.
    fn issue(&self) {
        let key = KeyPair::generate().unwrap();
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.distinguished_name.push(DnType::CommonName, "authority of a test");
        std::fs::write(self.path("ca.pem"), authority.self_signed(&key).unwrap().pem()).unwrap();
        let issuer = Issuer::new(authority, key);
        for (name, host) in [("server", "127.0.0.1"), ("client", "tollgate.test")] {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
            params.distinguished_name.push(DnType::CommonName, name);
            let certificate = params.signed_by(&key, &issuer).unwrap();
            std::fs::write(self.path(&format!("{name}.pem")), certificate.pem()).unwrap();
            std::fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
        }
    }

    /// What a server is told of them: it asks for certificates.
    fn of_a_server(&self) -> String {
        let path = |name| self.path(name).display().to_string();
        format!(
            "--tls-cert-file {} --tls-key-file {} --tls-ca-cert-file {} --tls-auth-clients yes",
            path("server.pem"),
            path("server.key"),
            path("ca.pem")
        )
    }

    fn access(&self) -> RedisAccess {
        let path = |name| Some(self.path(name));
        RedisAccess { ca: path("ca.pem"), cert: path("client.pem"), key: path("client.key"), ..RedisAccess::default() }
    }

    fn flags(&self) -> Vec<String> {
        let flag = |flag, name| format!("--{flag}={}", self.path(name).display());
        vec![
            flag("redis-ca", "ca.pem"),
            flag("redis-cert", "client.pem"),
            flag("redis-key", "client.key"),
            flag("catalog", "catalog.yaml"),
        ]
    }
}

/// Serves with these files and further flags.
fn serve(files: &Files, more: &[String]) -> Served {
    let flags = [files.flags(), more.to_vec()].concat();
    Served::start(0, &flags.iter().map(String::as_str).collect::<Vec<_>>())
}

/// What is said of a start that fails.
fn refusal(flags: &[String]) -> String {
    let output = tollgate().args(["serve", "--listen", "127.0.0.1:0"]).args(flags).output().unwrap();
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so().await {
        assert!(Instant::now() < deadline, "it does not happen that {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Counts for several users, so that every node of a cluster is asked.
async fn counts(served: &Served) {
    let mut replica = Replica::connect(served.address).await;
    for user in 0..20 {
        replica.metering.track(track(&format!("u{user}"), "")).await.unwrap();
    }
}

/// How often the server has shaken hands. Its plain port serves the test.
async fn connections(redis: &RedisServer) -> usize {
    redis.ask::<String>("CLIENT LIST").await.unwrap().lines().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_reached_by_tls_and_certificates_that_are_replaced_are_used_by_the_next_connection() {
    let files = Files::new("tls-node-files");
    let port = free_port();
    let mut redis = RedisServer::start(scratch("tls-node"), &format!("--tls-port {port} {}", files.of_a_server()));
    redis.ready().await;
    let url = format!("--redis-url=rediss://127.0.0.1:{port}");
    let strangers = Files::new("tls-node-strangers");
    let untrusted = [strangers.flags(), vec![url.clone()]].concat();
    let told = refusal(&untrusted);
    assert!(told.contains("cannot reach Redis") && told.contains("invalid peer certificate"), "{told}");
    let told = refusal(&[files.flags()[0].clone(), url.clone()]);
    assert!(told.contains("cannot reach Redis"), "without a certificate: {told}");
    let told = refusal(&[files.flags(), vec!["--redis-url=redis://127.0.0.1:1".to_owned()]].concat());
    assert!(told.contains("rediss://"), "{told}");

    let served = serve(&files, std::slice::from_ref(&url));
    counts(&served).await;
    assert!(connections(&redis).await > 1);
    let mut replica = Replica::connect(served.address).await;
    let password = files.path("password.txt");
    std::fs::write(&password, "secret").unwrap();
    let _: () = redis
        .ask("ACL SETUSER reader on >secret %R~* +@read +@connection -@dangerous +time +eval_ro +evalsha_ro")
        .await
        .unwrap();
    let verified = tollgate()
        .args(["verify", "--redis-user=reader", &url])
        .arg(format!("--redis-password-file={}", password.display()))
        .args(&files.flags()[..3])
        .output()
        .unwrap();
    assert!(verified.status.success(), "{verified:?}");
    // The server comes back with certificates of another authority; Tollgate's files follow, at once or later.
    for at_once in [true, false] {
        redis.kill();
        if at_once {
            files.issue();
            redis.restart();
        } else {
            strangers.issue();
            let mut with_others = format!("--tls-port {port} {}", strangers.of_a_server());
            with_others.push_str(" --appendonly no");
            redis.restart_with(&with_others);
            redis.ready().await;
            let status = replica.metering.track(track("u", "refused")).await.unwrap_err();
            assert_eq!(status.code(), Code::Unavailable, "{status:?}");
            for name in ["ca.pem", "client.pem", "client.key"] {
                std::fs::copy(strangers.path(name), files.path(name)).unwrap();
            }
        }
        until("service resumes", async || replica.metering.track(track("u", "resumes")).await.is_ok()).await;
        let delete = tollgate::grpc::v1::DeleteUserRequest { user_id: "u".to_owned() };
        replica.subscriptions.delete_user(delete).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_of_a_cluster_is_reached_by_tls() {
    let files = Files::new("tls-cluster-files");
    let mut nodes = Vec::new();
    for index in 0..3 {
        let port = free_port();
        let arguments = format!(
            "--cluster-enabled yes --tls-port {port} --tls-cluster yes --tls-replication yes {}",
            files.of_a_server()
        );
        nodes.push((port, RedisServer::start(scratch(&format!("tls-cluster-{index}")), &arguments)));
    }
    for ((_, node), slots) in nodes.iter().zip(["0 5460", "5461 10922", "10923 16383"]) {
        node.ready().await;
        let _: () = node.ask(&format!("CLUSTER MEET 127.0.0.1 {}", nodes[0].0)).await.unwrap();
        let _: () = node.ask(&format!("CLUSTER ADDSLOTSRANGE {slots}")).await.unwrap();
    }
    for (_, node) in &nodes {
        until("the cluster settles", async || {
            let told: String = node.ask("CLUSTER INFO").await.unwrap();
            told.contains("cluster_state:ok") && told.contains("cluster_known_nodes:3")
        })
        .await;
    }
    // One is named, and tells the others.
    let named = format!("--redis-url=rediss://127.0.0.1:{}", nodes[0].0);
    let mut served = serve(&files, &[named]);
    counts(&served).await;
    let nodes_named = nodes.iter().map(|(port, _)| format!("rediss://127.0.0.1:{port}")).collect::<Vec<_>>().join(",");
    let verified = tollgate().args(["verify", "--redis-url", &nodes_named]).args(&files.flags()[..3]).output().unwrap();
    assert!(verified.status.success(), "{verified:?}");
    for (_, node) in &nodes {
        let keys: u64 = node.ask("DBSIZE").await.unwrap();
        assert!(keys > 0, "every node has users");
    }
    // Of another authority, and so all at once.
    files.issue();
    for (_, node) in &mut nodes {
        node.restart();
    }
    let mut replica = Replica::connect(served.address).await;
    for user in 0..20 {
        let user = format!("u{user}");
        until("service resumes", async || replica.metering.track(track(&user, "again")).await.is_ok()).await;
    }
    served.kill();
}

/// A Sentinel, which is killed when it is dropped.
struct Sentinel(Child);

impl Drop for Sentinel {
    fn drop(&mut self) {
        let _: Result<(), _> = self.0.kill();
        let _: Result<_, _> = self.0.wait();
    }
}

/// Sentinel and master each with a user that has exactly the list of docs/operating/redis.md.
#[tokio::test(flavor = "multi_thread")]
async fn sentinels_and_the_master_are_reached_by_tls_with_users_that_may_do_no_more_than_they_must() {
    let files = Files::new("tls-sentinel-files");
    let (port, watch) = (free_port(), free_port());
    let arguments = format!("--tls-port {port} --tls-replication yes {}", files.of_a_server());
    let master = RedisServer::start(scratch("tls-master"), &arguments);
    master.ready().await;
    let [_, of_the_master, of_the_sentinel, _] = lists();
    let user = |list: &[String], secret: &str| format!("on >{secret} {}", list.join(" "));
    let _: () = master.ask(&format!("ACL SETUSER tollgate {}", user(&of_the_master, "data"))).await.unwrap();
    let config = files.path("sentinel.conf");
    let mut text = format!(
        "port 0\ntls-port {watch}\nbind 127.0.0.1\ntls-replication yes\nsentinel monitor mymaster 127.0.0.1 {port} 1\nuser tollgate {}\n",
        user(&of_the_sentinel, "watch")
    );
    for (number, left_out) in of_the_sentinel.iter().enumerate() {
        let rest: Vec<_> = of_the_sentinel.iter().filter(|rule| *rule != left_out).cloned().collect();
        text.push_str(&format!("user less{number} {}\n", user(&rest, "watch")));
    }
    for option in files.of_a_server().split(" --") {
        text.push_str(option.trim_start_matches("--"));
        text.push('\n');
    }
    std::fs::write(&config, text).unwrap();
    let command = Command::new("redis-server")
        .args([config.as_path(), Path::new("--sentinel")])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _sentinel = Sentinel(command);
    let (data, watching) = (files.path("data.txt"), files.path("watch.txt"));
    std::fs::write(&data, "data\n").unwrap();
    std::fs::write(&watching, "watch\n").unwrap();
    until("the Sentinel listens", async || tokio::net::TcpStream::connect(("127.0.0.1", watch)).await.is_ok()).await;
    let served = serve(
        &files,
        &[
            "--redis-url=rediss://mymaster".to_owned(),
            "--redis-user=tollgate".to_owned(),
            format!("--redis-password-file={}", data.display()),
            format!("--redis-sentinel=rediss://tollgate@127.0.0.1:{watch}"),
            format!("--redis-sentinel-password-file={}", watching.display()),
        ],
    );
    counts(&served).await;

    // Without any one of the Sentinel's, or `role` of the master's, there is no start. Each search for a master takes its time: all at once.
    let options = |sentinel_user: &str, user: &str| RedisOptions {
        urls: vec![format!("rediss://{user}:data@mymaster")],
        sentinels: vec![format!("rediss://{sentinel_user}:watch@127.0.0.1:{watch}")],
        access: files.access(),
        ..redis_options()
    };
    let rest: Vec<_> = of_the_master.iter().filter(|rule| *rule != "+role").cloned().collect();
    let _: () = master.ask(&format!("ACL SETUSER less {}", user(&rest, "data"))).await.unwrap();
    let [first, second, role] =
        [("less0", "tollgate"), ("less1", "tollgate"), ("tollgate", "less")].map(|(sentinel, user)| {
            let options = options(sentinel, user);
            tokio::spawn(async move {
                let error = Ledger::connect(&options).await.err().expect("something is not allowed");
                let mut cause: Option<&dyn std::error::Error> = Some(&error);
                std::iter::from_fn(move || {
                    cause.take().inspect(|error| cause = error.source()).map(ToString::to_string)
                })
                .collect::<Vec<_>>()
                .join(": ")
            })
        });
    for (told, missing) in
        [(first.await.unwrap(), "sentinel|"), (second.await.unwrap(), "sentinel|"), (role.await.unwrap(), "'role'")]
    {
        assert!(told.contains("no permissions") && told.contains(missing), "{told}");
    }
}
