//! Two Redis servers behind one address, of which first one and then the other is the primary.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tollgate::grpc::v1;
use tollgate::grpc::v1::metering_service_client::MeteringServiceClient;

use crate::campaign::Felt::Unanswered;
use crate::campaign::{Campaign, RESUMES, durable_redis, each_round, replica, replicas, urls};
use crate::support::load::Plan;
use crate::support::proxy::Proxy;
use crate::support::redis_server::RedisServer;
use crate::support::{fresh_user, nothing_contradicts_itself};

fn address(redis: &RedisServer) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], redis.port()))
}

async fn wait_for(redis: &RedisServer, state: &str) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !redis.ask::<String>("INFO replication").await.unwrap().contains(state) {
        assert!(Instant::now() < deadline, "the server does not come to {state}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A primary, its replica, and the address that leads to the primary.
async fn pair(name: &str, seed: u64) -> (RedisServer, RedisServer, Proxy) {
    let primary = durable_redis(&format!("{name}-a"), "--repl-diskless-sync-delay 0").await;
    let other = durable_redis(&format!("{name}-b"), "--repl-diskless-sync-delay 0").await;
    let _: String = other.ask(&format!("REPLICAOF 127.0.0.1 {}", primary.port())).await.unwrap();
    wait_for(&other, "master_link_status:up").await;
    let proxy = Proxy::start(address(&primary), seed).await;
    (primary, other, proxy)
}

/// The primary passes on everything, and becomes the replica of its replica.
async fn hand_over(primary: &RedisServer, other: &RedisServer) {
    // As each sees it.
    wait_for(other, "master_link_status:up").await;
    wait_for(primary, "state=online").await;
    let _: String = primary.ask(&format!("FAILOVER TO 127.0.0.1 {}", other.port())).await.unwrap();
    wait_for(other, "role:master").await;
}

/// Nothing may be lost, as the primary hands over only once its replica has everything. Connections to the demoted server stay
/// open, and answer that it takes no writes.
#[tokio::test]
async fn the_address_moves_while_connections_stay_open_to_the_demoted_server() {
    each_round(async |seed| {
        let (mut primary, mut other, proxy) = pair("handed-over", seed).await;
        let replicas = replicas(&format!("redis://{}", proxy.address())).await;
        let mut campaign = Campaign::start("handed over", Plan::new(urls(&replicas), Vec::new(), seed)).await;
        for _ in 0..2 {
            campaign.wait(50..300).await;
            hand_over(&primary, &other).await;
            campaign.wait(0..500).await;
            proxy.lead_to(address(&other));
            campaign.resumes().await;
            std::mem::swap(&mut primary, &mut other);
        }
        campaign.end(&[Unanswered]).await;
        nothing_contradicts_itself(&[primary.url()]).await;
    })
    .await;
}

/// The primary falls silent, and with it every connection to it. What it had not passed on is forgotten.
#[tokio::test]
async fn the_address_moves_away_from_a_server_that_never_answers_again() {
    each_round(async |seed| {
        let (primary, other, proxy) = pair("taken-over", seed).await;
        let replicas = replicas(&format!("redis://{}", proxy.address())).await;
        let mut plan = Plan::new(urls(&replicas), vec![other.url()], seed);
        (plan.may_forget, plan.refunds) = (true, false);
        let mut campaign = Campaign::start("taken over", plan).await;
        campaign.wait(50..300).await;
        primary.signal("-STOP");
        let _: String = other.ask("REPLICAOF NO ONE").await.unwrap();
        proxy.lead_to(address(&other));
        campaign.resumes().await;
        campaign.end(&[Unanswered]).await;
    })
    .await;
}

/// Reads are answered by a demoted server as well, with what it knew. So it is not a caller who notices.
#[tokio::test]
async fn callers_who_only_read_are_led_to_the_new_primary() {
    let (primary, other, proxy) = pair("read", 1).await;
    let reading = replica(format!("redis://{}", proxy.address())).await;
    let mut reader = MeteringServiceClient::connect(format!("http://{reading}")).await.unwrap();
    let user = fresh_user("read");
    let mut used = async || {
        let request = v1::GetUsageRequest { user_id: user.clone(), ..Default::default() };
        reader.get_usage(request).await.ok().map(|answer| answer.into_inner().limits[0].used)
    };
    assert_eq!(used().await, Some(0.0));
    hand_over(&primary, &other).await;
    // The demoted server learns nothing more.
    let _: String = primary.ask("REPLICAOF 127.0.0.1 1").await.unwrap();
    proxy.lead_to(address(&other));
    let writing = replica(other.url()).await;
    let mut writer = MeteringServiceClient::connect(format!("http://{writing}")).await.unwrap();
    let event = v1::Event { name: "work".to_owned(), quantity: Some(7.0), ..Default::default() };
    writer.track(v1::TrackRequest { user_id: user.clone(), event: Some(event), ..Default::default() }).await.unwrap();
    let started = Instant::now();
    while used().await != Some(7.0) {
        assert!(started.elapsed() < RESUMES, "the old server is asked for ever");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!("the new primary is read after {:?}", started.elapsed());
}
