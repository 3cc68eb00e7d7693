//! A node runs a script, and its reply is lost with the connection. A cluster client could send the script again by itself; the
//! caller must learn instead that the outcome is unknown, and find it by asking again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tollgate::grpc::v1;
use tollgate::ledger::RedisOptions;
use tollgate::meter::MeterOptions;
use tonic::Code;

use crate::alone;
use crate::support::redis_cluster::RedisCluster;
use crate::support::redis_server::{RedisServer, free_port};
use crate::support::{Replica, fresh_user, scratch, spawn};

const CATALOG: &str = "
default_plan: p
plans:
  p: { period: lifetime, limit_groups: [{ id: g, unit: tokens, quota: 1000, match: [{ event: e }] }] }
  q: { period: lifetime, limit_groups: [{ id: g, unit: tokens, quota: 2000, match: [{ event: e }] }] }
";

/// Passes bytes to a node and back. Once it is armed it loses the reply to one of the next scripts, and breaks that connection.
struct Thief {
    /// How many scripts it takes until then; 0: it is not armed.
    countdown: Arc<AtomicUsize>,
}

impl Thief {
    async fn start(port: u16, node: u16) -> Self {
        let countdown = Arc::<AtomicUsize>::default();
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        spawn(accept(listener, node, Arc::clone(&countdown)));
        Self { countdown }
    }

    fn arm(&self, countdown: usize) {
        self.countdown.store(countdown, Ordering::SeqCst);
    }

    /// Whether a reply was lost since it was armed.
    fn has_stolen(&self) -> bool {
        self.countdown.load(Ordering::SeqCst) == 0
    }
}

async fn accept(listener: TcpListener, node: u16, countdown: Arc<AtomicUsize>) {
    while let Ok((client, _)) = listener.accept().await {
        let Ok(server) = TcpStream::connect(("127.0.0.1", node)).await else { continue };
        tokio::spawn(pass(client, server, Arc::clone(&countdown)));
    }
}

async fn pass(client: TcpStream, server: TcpStream, countdown: Arc<AtomicUsize>) -> std::io::Result<()> {
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    let (mut asked, mut answered) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut steal = false;
    loop {
        tokio::select! {
            read = from_client.read(&mut asked) => match read? {
                0 => return Ok(()),
                count => {
                    let runs = |command: &[u8]| asked[..count].windows(command.len()).any(|bytes| bytes == command);
                    let script = runs(b"EVALSHA") || runs(b"FCALL");
                    let counted = |left: usize| left.checked_sub(1);
                    steal |= script && countdown.fetch_update(Ordering::SeqCst, Ordering::SeqCst, counted) == Ok(1);
                    to_server.write_all(&asked[..count]).await?;
                }
            },
            read = from_server.read(&mut answered) => match read? {
                0 => return Ok(()),
                _ if steal => return Ok(()),
                count => to_client.write_all(&answered[..count]).await?,
            },
        }
    }
}

/// A cluster of three masters that all send their clients through thieves, and a replica of Tollgate on it.
async fn robbed() -> (RedisCluster, Vec<Thief>, Replica) {
    let (mut nodes, mut thieves) = (Vec::new(), Vec::new());
    for index in 0..3 {
        let port = free_port();
        let arguments = format!("--cluster-enabled yes --cluster-announce-port {port}");
        let node = RedisServer::start(scratch(&format!("robbed-{index}")), &arguments);
        thieves.push(Thief::start(port, node.port()).await);
        nodes.push(node);
    }
    let cluster = RedisCluster::form(nodes).await;
    let redis = RedisOptions {
        urls: cluster.urls(),
        sentinels: Vec::new(),
        connections: 1,
        batch: 32,
        timeout: Duration::from_secs(2),
        allow_eviction: false,
        ..RedisOptions::default()
    };
    let replica = Replica::start_with(CATALOG, jiff::tz::db(), MeterOptions::default(), redis).await;
    (cluster, thieves, replica)
}

fn event(name: &str, quantity: f64) -> Option<v1::Event> {
    Some(v1::Event { name: name.to_owned(), quantity: Some(quantity), ..Default::default() })
}

/// Makes a call of which the reply to this one of its scripts is lost, and then makes it again.
macro_rules! robbed {
    ($thieves:expr, $script:expr, $stub:expr, $method:ident, $request:expr) => {{
        let (request, mut stub) = ($request, $stub.clone());
        $thieves.iter().for_each(|thief| thief.arm($script));
        let status = stub.$method(request.clone()).await.expect_err("the reply was lost");
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        let stolen = $thieves.iter().filter(|thief| thief.has_stolen()).count();
        assert_eq!(stolen, 1, "scripts whose replies were lost");
        $thieves.iter().for_each(|thief| thief.arm(0));
        stub.$method(request).await
    }};
}

#[tokio::test]
async fn once_a_script_whose_reply_is_lost_is_not_sent_again() {
    let _turn = alone().await;
    let (_cluster, thieves, replica) = robbed().await;
    for _ in 0..3 {
        events_are_counted_once(&thieves, &replica).await;
        changes_are_found(&thieves, &replica).await;
    }
}

async fn events_are_counted_once(thieves: &[Thief], replica: &Replica) {
    let user_id = fresh_user("u");
    let track = |name: &str, quantity, request_id: &str, reservation_id: &str| v1::TrackRequest {
        user_id: user_id.clone(),
        event: event(name, quantity),
        request_id: request_id.to_owned(),
        reservation_id: reservation_id.to_owned(),
        ..Default::default()
    };
    let reserve = |quantity, request_id: &str| v1::ReserveRequest {
        user_id: user_id.clone(),
        event: event("e", quantity),
        request_id: request_id.to_owned(),
        ..Default::default()
    };
    let standing = async |used: f64, held: f64| {
        let request = v1::GetUsageRequest { user_id: user_id.clone(), ..Default::default() };
        let usage = replica.metering.clone().get_usage(request).await.unwrap().into_inner();
        assert_eq!((usage.limits[0].used, usage.limits[0].held), (used, held));
    };
    let metering = &replica.metering;
    // Without an id the caller has asked twice; with one, once.
    assert!(!robbed!(thieves, 1, metering, track, track("e", 1.0, "", "")).unwrap().into_inner().replayed);
    standing(2.0, 0.0).await;
    assert!(robbed!(thieves, 1, metering, track, track("e", 10.0, "t", "")).unwrap().into_inner().replayed);
    standing(12.0, 0.0).await;
    assert!(!robbed!(thieves, 1, metering, reserve, reserve(1.0, "")).unwrap().into_inner().replayed);
    standing(12.0, 2.0).await;
    let held = robbed!(thieves, 1, metering, reserve, reserve(30.0, "r")).unwrap().into_inner();
    assert!(held.replayed);
    standing(12.0, 32.0).await;
    let commit =
        v1::CommitRequest { reservation_id: held.reservation_id.clone(), actual: None, ..v1::CommitRequest::default() };
    assert!(robbed!(thieves, 1, metering, commit, commit).unwrap().into_inner().replayed);
    standing(42.0, 2.0).await;
    let refund = track("e.refund", 5.0, "f", &held.reservation_id);
    assert!(robbed!(thieves, 1, metering, track, refund).unwrap().into_inner().replayed);
    standing(37.0, 2.0).await;
    let held = metering.clone().reserve(reserve(7.0, "s")).await.unwrap().into_inner();
    let release = v1::ReleaseRequest { reservation_id: held.reservation_id, ..Default::default() };
    assert!(robbed!(thieves, 1, metering, release, release).unwrap().into_inner().replayed);
    standing(37.0, 2.0).await;
}

async fn changes_are_found(thieves: &[Thief], replica: &Replica) {
    let user_id = fresh_user("u");
    let subscriptions = &replica.subscriptions;
    let upsert = |plan_id: &str| v1::UpsertSubscriptionRequest {
        user_id: user_id.clone(),
        plan_id: plan_id.to_owned(),
        ..Default::default()
    };
    subscriptions.clone().upsert_subscription(upsert("p")).await.unwrap();
    // A change is read by one script and written by another.
    for (script, plan) in [(1, "q"), (2, "p"), (2, "q")] {
        let answer = robbed!(thieves, script, subscriptions, upsert_subscription, upsert(plan));
        assert_eq!(answer.unwrap().into_inner().subscription.unwrap().plan_id, plan);
    }
    let cancel = v1::CancelSubscriptionRequest { user_id: user_id.clone(), end_time: None };
    let ended = robbed!(thieves, 2, subscriptions, cancel_subscription, cancel);
    assert!(ended.unwrap().into_inner().subscription.unwrap().end_time.is_some());
    let delete = v1::DeleteUserRequest { user_id: user_id.clone() };
    robbed!(thieves, 1, subscriptions, delete_user, delete).unwrap();
    let gone = subscriptions.clone().get_subscription(v1::GetSubscriptionRequest { user_id }).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
}
