//! The network, between Tollgate and Redis and between a caller and Tollgate.

use std::net::SocketAddr;
use std::time::Duration;

use crate::campaign::Felt::{Replayed, Unanswered};
use crate::campaign::{Campaign, Felt, durable_redis, each_round, replicas, urls};
use crate::support::load::Plan;
use crate::support::proxy::{FAULTS, Fault, Proxy};
use crate::support::redis_server::RedisServer;

/// Where the network is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Redis,
    Client,
    Both,
}

/// Two replicas, and a breakable network on both sides of them.
struct World {
    redis: RedisServer,
    redis_side: Proxy,
    client_side: Vec<Proxy>,
}

impl World {
    async fn start(name: &str, seed: u64) -> Self {
        let redis = durable_redis(name, "").await;
        let redis_side = Proxy::start(SocketAddr::from(([127, 0, 0, 1], redis.port())), seed).await;
        let mut client_side = Vec::new();
        for replica in replicas(&format!("redis://{}", redis_side.address())).await {
            client_side.push(Proxy::start(replica, seed + 1000).await);
        }
        Self { redis, redis_side, client_side }
    }

    fn proxies(&self, side: Side) -> impl Iterator<Item = &Proxy> {
        let redis_side = (side != Side::Client).then_some(&self.redis_side);
        let client_side = if side == Side::Redis { &[] } else { self.client_side.as_slice() };
        redis_side.into_iter().chain(client_side)
    }

    fn set(&self, side: Side, fault: Fault) {
        self.proxies(side).for_each(|proxy| proxy.set(fault));
    }

    /// Audits when nothing is under way any more.
    async fn audit(self, mut campaign: Campaign, felt: &[Felt]) {
        campaign.stop().await;
        for proxy in self.proxies(Side::Both) {
            proxy.cut().await;
        }
        campaign.end(felt).await;
    }

    fn plan(&self, seed: u64) -> Plan {
        let addresses: Vec<_> = self.client_side.iter().map(Proxy::address).collect();
        Plan::new(urls(&addresses), vec![self.redis.url()], seed)
    }
}

/// One fault between two calm times.
async fn strike(seed: u64, side: Side, fault: Fault, felt: &[Felt]) {
    let name = format!("{side:?} side, {fault:?}");
    let world = World::start(&format!("network-{name}"), seed).await;
    let mut campaign = Campaign::start(&name, world.plan(seed)).await;
    campaign.wait(100..300).await;
    world.set(side, fault);
    campaign.wait(500..1000).await;
    if matches!(fault, Fault::LoseReplies | Fault::Reset) {
        // Some calls pass, so that their later attempts find what the earlier ones did.
        campaign.feels(felt).await;
    }
    world.set(side, Fault::None);
    campaign.resumes().await;
    assert!(world.proxies(side).all(|proxy| proxy.struck() > 0), "{name} did nothing");
    world.audit(campaign, felt).await;
}

/// One fault after the other, or none, in random order: every proxy for itself.
async fn mix(seed: u64, side: Side) {
    let name = format!("{side:?} side, mixed");
    let world = World::start(&format!("network-{name}"), seed).await;
    let mut campaign = Campaign::start(&name, world.plan(seed)).await;
    for _ in 0..2 {
        for _ in 0..6 {
            for proxy in world.proxies(side) {
                let fault = campaign.random().choice(FAULTS).filter(|_| campaign.random().u32(..4) > 0);
                proxy.set(fault.unwrap_or(Fault::None));
            }
            campaign.wait(20..250).await;
        }
        world.set(side, Fault::None);
        campaign.resumes().await;
    }
    world.audit(campaign, &[Unanswered]).await;
}

/// A test each: one fault on the Redis side, and at the same time in another world on the client side. What load must feel of it
/// comes with the side.
macro_rules! campaigns {
    ($($name:ident: $fault:expr, Redis $redis_side:expr, Client $client_side:expr;)*) => {
        $(#[tokio::test]
        async fn $name() {
            each_round(async |seed| {
                tokio::join!(
                    strike(seed, Side::Redis, $fault, $redis_side),
                    strike(seed, Side::Client, $fault, $client_side),
                );
            })
            .await;
        })*
    };
}

campaigns! {
    replies_are_lost: Fault::LoseReplies, Redis &[Unanswered, Replayed], Client &[Unanswered, Replayed];
    the_way_is_long: Fault::Delay(Duration::from_millis(30)), Redis &[], Client &[];
    the_way_is_longer_than_calls_wait: Fault::Delay(Duration::from_millis(2500)), Redis &[Unanswered], Client &[];
    connections_are_reset: Fault::Reset, Redis &[Unanswered, Replayed], Client &[Unanswered, Replayed];
    connections_are_half_open: silence(true, true), Redis &[Unanswered], Client &[Unanswered];
    requests_vanish: silence(true, false), Redis &[Unanswered], Client &[Unanswered];
    replies_vanish: silence(false, true), Redis &[Unanswered, Replayed], Client &[Unanswered, Replayed];
    frames_are_split: Fault::Split, Redis &[], Client &[];
    connections_are_refused: Fault::Refuse, Redis &[Unanswered], Client &[Unanswered];
}

fn silence(requests: bool, replies: bool) -> Fault {
    Fault::Silence { requests, replies }
}

#[tokio::test]
async fn faults_come_mixed() {
    each_round(async |seed| {
        tokio::join!(mix(seed, Side::Redis), mix(seed, Side::Client), mix(seed, Side::Both));
    })
    .await;
}
