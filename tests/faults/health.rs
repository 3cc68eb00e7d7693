//! What the health service says: the truth, but not at once.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tollgate::meter::MeterOptions;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus::{self, NotServing, Serving};
use tonic_health::pb::health_client::HealthClient;

use crate::campaign::{RESUMES, durable_redis, replica, replica_with};
use crate::support::proxy::{Fault, Proxy};
use crate::support::redis_server::RedisServer;
use crate::support::spawn;

/// What a replica says of itself, as it changes.
struct Watched {
    said: tokio::sync::mpsc::UnboundedReceiver<ServingStatus>,
}

impl Watched {
    async fn start(redis_url: String) -> Self {
        Self::of(replica(redis_url).await)
    }

    fn of(address: SocketAddr) -> Self {
        let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
        let mut client = HealthClient::new(channel);
        let (say, said) = tokio::sync::mpsc::unbounded_channel();
        spawn(async move {
            let mut stream = client.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
            while let Ok(Some(answer)) = stream.message().await {
                let _: Result<(), _> = say.send(answer.status());
            }
        });
        Self { said }
    }

    /// The next change.
    async fn says(&mut self, expected: ServingStatus) -> Duration {
        let started = Instant::now();
        let said = tokio::time::timeout(Duration::from_secs(30), self.said.recv()).await;
        assert_eq!(said.expect("it changes").expect("it is watched"), expected);
        started.elapsed()
    }

    fn has_said_nothing(&mut self) {
        assert!(self.said.try_recv().is_err(), "it serves all the time");
    }
}

async fn ask(redis: &RedisServer, command: &str) {
    redis.ask::<redis::Value>(command).await.unwrap_or_else(|error| panic!("{command}: {error}"));
}

#[tokio::test]
async fn health_is_serving_only_while_redis_takes_writes() {
    let redis = durable_redis("health", "").await;
    let mut watched = Watched::start(redis.url()).await;
    watched.says(Serving).await;
    let options = MeterOptions { fail_open: true, ..MeterOptions::default() };
    let mut open = Watched::of(replica_with(redis.url(), options).await);
    open.says(Serving).await;
    // A blip is shorter than it takes to miss three answers; and while memory is full, what is held can still be settled.
    ask(&redis, "CONFIG SET maxmemory 1").await;
    ask(&redis, "CLIENT KILL TYPE normal").await;
    ask(&redis, "CLIENT PAUSE 800 ALL").await;
    tokio::time::sleep(Duration::from_millis(4000)).await;
    ask(&redis, "CONFIG SET maxmemory 0").await;
    watched.has_said_nothing();
    // It answers all the time, and takes no writes.
    ask(&redis, "REPLICAOF 127.0.0.1 1").await;
    let after = watched.says(NotServing).await;
    // A replica that starts now says so from the beginning.
    let mut late = Watched::start(redis.url()).await;
    late.says(NotServing).await;
    ask(&redis, "REPLICAOF NO ONE").await;
    let (again, late) = (watched.says(Serving).await, late.says(Serving).await);
    ask(&redis, "CONFIG SET min-replicas-to-write 1").await;
    watched.says(NotServing).await;
    ask(&redis, "CONFIG SET min-replicas-to-write 0").await;
    watched.says(Serving).await;
    // It has answered all the time.
    open.has_said_nothing();
    println!("not serving after {after:?}, serving again after {again:?} and {late:?}");
}

/// A load balancer sends no calls to who is not serving, so that none of them can find the connection to be dead.
#[tokio::test]
async fn health_comes_back_by_itself_when_nobody_calls() {
    let redis = durable_redis("health-alone", "").await;
    let proxy = Proxy::start(SocketAddr::from(([127, 0, 0, 1], redis.port())), 1).await;
    let mut watched = Watched::start(format!("redis://{}", proxy.address())).await;
    watched.says(Serving).await;
    proxy.set(Fault::Silence { requests: true, replies: true });
    let after = watched.says(NotServing).await;
    proxy.set(Fault::None);
    let again = watched.says(Serving).await;
    assert!(again < RESUMES, "serving again only after {again:?}");
    println!("not serving after {after:?}, serving again after {again:?}");
}
