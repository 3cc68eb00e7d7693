//! What happens to Redis: killed, stopped, paused, full, loading, demoted, its scripts and its clients gone.

use std::time::Duration;

use tollgate::grpc::v1;
use tollgate::grpc::v1::metering_service_client::MeteringServiceClient;
use tollgate::ledger::{Ledger, RedisOptions};
use tonic::Code;

use crate::campaign::Felt::{self, Unanswered};
use crate::campaign::{Campaign, durable_redis, each_round, replica, replicas, urls};
use crate::support::fresh_user;
use crate::support::load::Plan;
use crate::support::redis_server::RedisServer;

/// Two replicas under load, while `strike` does to Redis what it does, and says when it is over.
async fn campaign(
    name: &str,
    arguments: &str,
    felt: &[Felt],
    strike: impl AsyncFn(&mut Campaign, &mut RedisServer, &[String]),
) {
    each_round(async |seed| {
        let mut redis = durable_redis(name, arguments).await;
        let urls = urls(&replicas(&redis.url()).await);
        let mut campaign = Campaign::start(name, Plan::new(urls.clone(), vec![redis.url()], seed)).await;
        strike(&mut campaign, &mut redis, &urls).await;
        campaign.end(felt).await;
    })
    .await;
}

/// So many keys that are nobody's, to make reading and writing the files of Redis long.
async fn fill(redis: &RedisServer, keys: u32) {
    let script = "for i = 1, tonumber(ARGV[1]) do redis.call('SET', 'fill:' .. i, i) end";
    let mut command = redis::cmd("EVAL");
    command.arg(script).arg(0).arg(keys);
    command.query_async::<()>(&mut redis.connection().await).await.unwrap();
}

async fn ask(redis: &RedisServer, command: &str) {
    redis.ask::<redis::Value>(command).await.unwrap_or_else(|error| panic!("{command}: {error}"));
}

#[tokio::test]
async fn redis_is_killed_and_restarted() {
    campaign("killed", "", &[Unanswered], async |campaign, redis, _| {
        for _ in 0..3 {
            campaign.wait(50..500).await;
            redis.kill();
            campaign.wait(0..500).await;
            redis.restart();
            redis.ready().await;
            campaign.resumes().await;
        }
    })
    .await;
}

#[tokio::test]
async fn redis_is_killed_while_it_rewrites_its_file() {
    // A rewrite takes about a second.
    campaign("killed-rewriting", "--rdb-key-save-delay 200", &[Unanswered], async |campaign, redis, _| {
        fill(redis, 5000).await;
        for _ in 0..2 {
            ask(redis, "BGREWRITEAOF").await;
            campaign.wait(0..900).await;
            redis.kill();
            redis.restart();
            redis.ready().await;
            campaign.resumes().await;
        }
    })
    .await;
}

#[tokio::test]
async fn redis_is_stopped_for_seconds() {
    campaign("stopped", "", &[Unanswered], async |campaign, redis, _| {
        campaign.wait(50..300).await;
        redis.signal("-STOP");
        campaign.wait(3000..3001).await;
        redis.signal("-CONT");
        campaign.resumes().await;
    })
    .await;
}

#[tokio::test]
async fn redis_is_paused() {
    campaign("paused", "", &[Unanswered], async |campaign, redis, _| {
        for what in ["WRITE", "ALL"] {
            campaign.wait(50..300).await;
            ask(redis, &format!("CLIENT PAUSE 1500 {what}")).await;
            campaign.wait(1500..1501).await;
            campaign.resumes().await;
        }
    })
    .await;
}

#[tokio::test]
async fn scripts_are_forgotten_and_clients_killed() {
    campaign("flushed", "", &[Unanswered], async |campaign, redis, _| {
        for _ in 0..15 {
            ask(redis, "FUNCTION FLUSH").await;
            ask(redis, "SCRIPT FLUSH").await;
            campaign.wait(0..40).await;
        }
        campaign.resumes().await;
        for _ in 0..15 {
            ask(redis, "CLIENT KILL TYPE normal").await;
            campaign.wait(0..80).await;
            ask(redis, "FUNCTION FLUSH").await;
            ask(redis, "SCRIPT FLUSH").await;
        }
        campaign.resumes().await;
    })
    .await;
}

/// A server that is full tells so in place of the first answer, and closes the connection.
#[tokio::test]
async fn redis_has_too_many_clients() {
    campaign("too-many", "", &[Unanswered], async |campaign, redis, _| {
        let mut admin = redis.connection().await;
        let mut set = async |command: &str| {
            let words = command.split(' ').collect::<Vec<_>>();
            redis::cmd(words[0]).arg(&words[1..]).query_async::<redis::Value>(&mut admin).await.unwrap();
        };
        for _ in 0..2 {
            set("CONFIG SET maxclients 1").await;
            set("CLIENT KILL TYPE normal").await;
            campaign.wait(300..700).await;
            set("CONFIG SET maxclients 1000").await;
            campaign.resumes().await;
        }
    })
    .await;
}

#[tokio::test]
async fn redis_is_demoted_and_promoted_again() {
    campaign("demoted", "", &[Unanswered], async |campaign, redis, _| {
        for _ in 0..2 {
            campaign.wait(50..300).await;
            // Its master never answers, so that it keeps its data, and takes no writes.
            ask(redis, "REPLICAOF 127.0.0.1 1").await;
            campaign.wait(300..1200).await;
            ask(redis, "REPLICAOF NO ONE").await;
            campaign.resumes().await;
        }
        // And as a primary that has lost the replicas without which it takes no writes.
        ask(redis, "CONFIG SET min-replicas-to-write 1").await;
        campaign.wait(300..700).await;
        ask(redis, "CONFIG SET min-replicas-to-write 0").await;
        campaign.resumes().await;
    })
    .await;
}

#[tokio::test]
async fn redis_runs_out_of_memory() {
    campaign("full", "", &[Unanswered], async |campaign, redis, urls| {
        let mut caller = MeteringServiceClient::connect(urls[0].clone()).await.unwrap();
        let user = fresh_user("full");
        let event = v1::Event { name: "work".to_owned(), quantity: Some(5.0), ..Default::default() };
        let request = v1::ReserveRequest { user_id: user.clone(), event: Some(event), ..Default::default() };
        let mut held = Vec::new();
        for _ in 0..2 {
            held.push(caller.reserve(request.clone()).await.unwrap().into_inner().reservation_id);
        }
        campaign.wait(50..200).await;
        ask(redis, "CONFIG SET maxmemory 1").await;
        let refused = caller.reserve(request.clone()).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
        let commit =
            v1::CommitRequest { reservation_id: held[0].clone(), actual: None, ..v1::CommitRequest::default() };
        let committed = caller.commit(commit).await.expect("a commit counts when memory is full").into_inner();
        assert_eq!(committed.limits[0].used, 5.0);
        let release = v1::ReleaseRequest { reservation_id: held[1].clone(), ..Default::default() };
        let released = caller.release(release).await.expect("a release gives back when memory is full").into_inner();
        assert_eq!(released.limits[0].held, 0.0);
        campaign.wait(300..700).await;
        ask(redis, "CONFIG SET maxmemory 0").await;
        campaign.resumes().await;
        assert!(caller.reserve(request).await.unwrap().into_inner().allowed);
    })
    .await;
}

#[tokio::test]
async fn redis_is_still_loading() {
    campaign("loading", "", &[Unanswered], async |campaign, redis, _| {
        fill(redis, 8000).await;
        // Into one file, during the reading of which Redis answers more often.
        ask(redis, "BGREWRITEAOF").await;
        while redis.ask::<String>("INFO persistence").await.unwrap().contains("aof_rewrite_in_progress:1") {
            campaign.wait(10..20).await;
        }
        // Three seconds and more.
        redis.restart_with("--key-load-delay 400 --loading-process-events-interval-bytes 1024");
        let loading = async || redis.ask::<String>("PING").await.is_err_and(|error| error.code() == Some("LOADING"));
        assert!(loading().await, "it takes its time");
        // Another replica starts meanwhile.
        let late = replica(redis.url()).await;
        assert!(loading().await, "a replica starts while Redis is still loading");
        let mut caller = MeteringServiceClient::connect(format!("http://{late}")).await.unwrap();
        let request = v1::GetUsageRequest { user_id: fresh_user("loading"), ..Default::default() };
        let refused = caller.get_usage(request.clone()).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
        redis.ready().await;
        campaign.resumes().await;
        caller.get_usage(request).await.expect("the late replica serves");
    })
    .await;
}

#[tokio::test]
async fn a_slow_redis_has_the_whole_timeout_to_answer_at_the_start() {
    let redis = durable_redis("slow-start", "").await;
    ask(&redis, "CLIENT PAUSE 1500 ALL").await;
    let timeout = Duration::from_secs(10);
    let options = RedisOptions {
        urls: vec![redis.url()],
        sentinels: Vec::new(),
        connections: 1,
        batch: 32,
        timeout,
        allow_eviction: false,
        ..RedisOptions::default()
    };
    Ledger::connect(&options).await.unwrap();
}
