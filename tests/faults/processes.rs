//! The processes of Tollgate, killed at any moment: `kill -9` of the binary that users run.

use std::path::{Path, PathBuf};

use crate::campaign::Felt::Unanswered;
use crate::campaign::{Campaign, durable_redis, each_round, urls};
use crate::support::load::{self, Plan};
use crate::support::redis_server::free_port;
use crate::support::scratch;
use crate::support::served::Served;

/// Replicas that can be killed, and started again on the port that they had.
struct Fleet {
    replicas: Vec<Served>,
    catalog: PathBuf,
    /// Where the counters are: the flag and its value.
    counters: [String; 2],
}

impl Fleet {
    fn start(name: &str, size: usize, counters: [String; 2]) -> Self {
        let catalog = scratch(&format!("{name}.yaml"));
        std::fs::create_dir_all(catalog.parent().unwrap()).unwrap();
        std::fs::write(&catalog, load::catalog(load::QUOTA)).unwrap();
        let replicas = (0..size).map(|_| serve(&catalog, &counters, free_port())).collect();
        Self { replicas, catalog, counters }
    }

    fn urls(&self) -> Vec<String> {
        urls(&self.replicas.iter().map(|replica| replica.address).collect::<Vec<_>>())
    }

    fn kill(&mut self, which: usize) {
        self.replicas[which].kill();
    }

    fn restart(&mut self, which: usize) {
        let port = self.replicas[which].address.port();
        self.replicas[which] = serve(&self.catalog, &self.counters, port);
    }
}

fn serve(catalog: &Path, counters: &[String; 2], port: u16) -> Served {
    let [flag, value] = counters;
    Served::start(port, &["--catalog", catalog.to_str().unwrap(), "--redis-timeout", "1s", flag, value])
}

/// Kills a random replica of a fleet of this size, again and again.
async fn kill_one_of(size: usize) {
    each_round(async |seed| {
        let name = format!("tollgate killed, one of {size}");
        let redis = durable_redis(&format!("kill-{size}"), "").await;
        let mut fleet = Fleet::start(&name, size, ["--redis-url".to_owned(), redis.url()]);
        let mut campaign = Campaign::start(&name, Plan::new(fleet.urls(), vec![redis.url()], seed)).await;
        for _ in 0..4 {
            campaign.wait(50..400).await;
            let victim = campaign.random().usize(..size);
            fleet.kill(victim);
            campaign.wait(0..200).await;
            fleet.restart(victim);
            campaign.resumes().await;
        }
        campaign.end(&[Unanswered]).await;
    })
    .await;
}

#[tokio::test]
async fn tollgate_is_killed_beside_another_replica() {
    kill_one_of(2).await;
}

#[tokio::test]
async fn the_only_tollgate_is_killed() {
    kill_one_of(1).await;
}

/// At the same moment, so that only the file remains.
#[tokio::test]
async fn tollgate_and_redis_are_killed() {
    each_round(async |seed| {
        let mut redis = durable_redis("kill-all", "").await;
        let mut fleet = Fleet::start("kill-all", 2, ["--redis-url".to_owned(), redis.url()]);
        let mut campaign = Campaign::start("all killed", Plan::new(fleet.urls(), vec![redis.url()], seed)).await;
        for _ in 0..2 {
            campaign.wait(50..400).await;
            fleet.kill(0);
            redis.kill();
            fleet.kill(1);
            redis.restart();
            redis.ready().await;
            fleet.restart(0);
            fleet.restart(1);
            campaign.resumes().await;
        }
        campaign.end(&[Unanswered]).await;
    })
    .await;
}

/// The private Redis goes down with its Tollgate, in order; the next one finds the counters.
#[tokio::test]
async fn tollgate_is_killed_with_its_private_redis() {
    each_round(async |seed| {
        // Its path is short enough for the socket.
        let data_dir = tempfile::tempdir().unwrap();
        let counters = ["--data-dir".to_owned(), data_dir.path().to_str().unwrap().to_owned()];
        let mut fleet = Fleet::start("kill-private", 1, counters);
        let redis = format!("unix://{}", data_dir.path().join("redis.sock").display());
        let mut campaign = Campaign::start("private killed", Plan::new(fleet.urls(), vec![redis], seed)).await;
        for _ in 0..3 {
            campaign.wait(50..400).await;
            fleet.kill(0);
            fleet.restart(0);
            campaign.resumes().await;
        }
        campaign.end(&[Unanswered]).await;
    })
    .await;
}
