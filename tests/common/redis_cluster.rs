//! A Redis Cluster of a test's own on loopback: three masters, each with a third of the slots, and a replica of each if wanted.

use std::time::{Duration, Instant};

use tollgate::grpc::v1;

use super::redis_server::RedisServer;
use super::{Replica, keys, scratch};

/// The nodes: three masters, then their replicas in the same order.
pub struct RedisCluster {
    pub nodes: Vec<RedisServer>,
    ids: Vec<String>,
}

impl RedisCluster {
    /// Starts one in directories of this name; it serves when this returns.
    pub async fn start(name: &str, replicas: bool, arguments: &str) -> Self {
        let arguments = format!("--cluster-enabled yes {arguments}");
        let count = if replicas { 6 } else { 3 };
        let start = |index| RedisServer::start(scratch(&format!("{name}-{index}")), &arguments);
        let nodes: Vec<_> = (0..count).map(start).collect();
        Self::form(nodes).await
    }

    /// Makes a cluster of three or six nodes that know nothing of each other.
    pub async fn form(nodes: Vec<RedisServer>) -> Self {
        let mut ids = Vec::new();
        for node in &nodes {
            ids.push(node.ask::<String>("CLUSTER MYID").await.unwrap());
            let _: () = node.ask(&format!("CLUSTER MEET 127.0.0.1 {}", nodes[0].port())).await.unwrap();
        }
        for (node, slots) in nodes.iter().zip(["0 5460", "5461 10922", "10923 16383"]) {
            let _: () = node.ask(&format!("CLUSTER ADDSLOTSRANGE {slots}")).await.unwrap();
        }
        let cluster = Self { nodes, ids };
        for replica in 3..cluster.nodes.len() {
            let command = format!("CLUSTER REPLICATE {}", cluster.ids[replica - 3]);
            // It may not have heard of its master yet.
            cluster
                .until("its replicas are known", async || cluster.nodes[replica].ask::<()>(&command).await.is_ok())
                .await;
        }
        cluster.settled(&[]).await;
        cluster
    }

    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(RedisServer::url).collect()
    }

    /// Waits until every node but those that are `away` sees a working cluster of all the others, replicas in step.
    pub async fn settled(&self, away: &[usize]) {
        let count = format!("cluster_known_nodes:{}", self.nodes.len());
        for (index, node) in self.nodes.iter().enumerate().filter(|(index, _)| !away.contains(index)) {
            self.until("the cluster settles", async || {
                let info: String = node.ask("CLUSTER INFO").await.unwrap_or_default();
                let linked: String = node.ask("INFO replication").await.unwrap_or_default();
                let in_step = !linked.contains("role:slave") || linked.contains("master_link_status:up");
                info.contains("cluster_state:ok") && info.contains(&count) && in_step && self.agrees(index, away).await
            })
            .await;
        }
    }

    /// Returns whether a node sees all the others that are not away without a fault.
    async fn agrees(&self, index: usize, away: &[usize]) -> bool {
        let told: String = self.nodes[index].ask("CLUSTER NODES").await.unwrap_or_default();
        let healthy = |other: usize| {
            let line = told.lines().find(|line| line.starts_with(&self.ids[other]));
            line.is_some_and(|line| !line.contains("fail") && !line.contains("handshake"))
        };
        (0..self.nodes.len()).filter(|other| !away.contains(other)).all(healthy)
    }

    async fn until(&self, what: &str, mut is_so: impl AsyncFnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !is_so().await {
            assert!(Instant::now() < deadline, "it does not happen that {what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until this node calls itself a master that serves slots. Returns how long that took.
    pub async fn promoted(&self, index: usize) -> Duration {
        let started = Instant::now();
        self.until("the replica is promoted", async || self.calls_itself_master(index).await).await;
        started.elapsed()
    }

    async fn calls_itself_master(&self, index: usize) -> bool {
        let told: String = self.nodes[index].ask("CLUSTER NODES").await.unwrap_or_default();
        let info: String = self.nodes[index].ask("CLUSTER INFO").await.unwrap_or_default();
        told.lines().any(|line| line.contains("myself,master")) && info.contains("cluster_state:ok")
    }

    /// Replaces a master by its replica, which takes over once it has everything.
    pub async fn replace(&self, replica: usize) {
        // Nobody is elected soon after another election, and the request then lapses.
        self.until("the replica takes over", async || {
            let _: redis::RedisResult<()> = self.nodes[replica].ask("CLUSTER FAILOVER").await;
            tokio::time::sleep(Duration::from_millis(200)).await;
            self.calls_itself_master(replica).await
        })
        .await;
    }

    /// Waits until the replica of a master has all that the master has.
    pub async fn caught_up(&self, master: usize) {
        self.until("the replica catches up", async || {
            let told: String = self.nodes[master].ask("INFO replication").await.unwrap();
            let field = |name: &str| {
                let rest = told.split_once(name)?.1;
                Some(rest.chars().take_while(char::is_ascii_digit).collect::<String>())
            };
            let offset = field("master_repl_offset:");
            offset.is_some() && offset == field(",offset=")
        })
        .await;
    }

    /// The slot of a user's keys.
    pub async fn slot(&self, user: &str) -> u16 {
        self.nodes[0].ask(&format!("CLUSTER KEYSLOT {}", keys(user).state())).await.unwrap()
    }

    /// Gives a user the second memory, which otherwise comes after a quarter of an hour. While a slot is on its way, a call waits for keys that
    /// do not exist: so calls that need no others are answered all the time.
    pub async fn give_two_memories(&self, user: &str) {
        let master = self.master_of(self.slot(user).await, 0).await;
        for memory in keys(user).memories() {
            let _: u64 = self.nodes[master].ask(&format!("HSET {memory} unused 1")).await.unwrap();
        }
    }

    /// Takes back what [`Self::give_two_memories`] has written.
    pub async fn take_given(&self, user: &str) {
        let master = self.master_of(self.slot(user).await, 0).await;
        for memory in keys(user).memories() {
            let _: u64 = self.nodes[master].ask(&format!("HDEL {memory} unused")).await.unwrap();
        }
    }

    /// The index of the node that has a slot, as this node says.
    pub async fn master_of(&self, slot: u16, asked: usize) -> usize {
        let told: String = self.nodes[asked].ask("CLUSTER NODES").await.unwrap();
        let has = |line: &&str| {
            line.split(' ').skip(8).any(|range| {
                let (from, to) = range.split_once('-').unwrap_or((range, range));
                from.parse().is_ok_and(|from: u16| from <= slot) && to.parse().is_ok_and(|to: u16| slot <= to)
            })
        };
        let line = told.lines().find(has).expect("every slot has a master");
        self.ids.iter().position(|id| line.starts_with(id.as_str())).expect("it is one of the nodes")
    }

    /// Declares that a slot moves; its keys stay where they are.
    pub async fn begin_migration(&self, slot: u16, from: usize, to: usize) {
        let importing = format!("CLUSTER SETSLOT {slot} IMPORTING {}", self.ids[from]);
        let migrating = format!("CLUSTER SETSLOT {slot} MIGRATING {}", self.ids[to]);
        let _: () = self.nodes[to].ask(&importing).await.unwrap();
        let _: () = self.nodes[from].ask(&migrating).await.unwrap();
    }

    /// Moves some of its keys. Returns how many.
    pub async fn migrate_keys(&self, slot: u16, from: usize, to: usize, count: usize) -> usize {
        let keys: Vec<String> = self.nodes[from].ask(&format!("CLUSTER GETKEYSINSLOT {slot} {count}")).await.unwrap();
        if !keys.is_empty() {
            // An empty name says that the keys follow.
            let port = self.nodes[to].port();
            let mut asked = redis::cmd("MIGRATE");
            asked.arg("127.0.0.1").arg(port).arg("").arg(0).arg(5000).arg("KEYS").arg(&keys);
            let _: String = asked.query_async(&mut self.nodes[from].connection().await).await.unwrap();
        }
        keys.len()
    }

    /// Declares the slot to have moved.
    pub async fn end_migration(&self, slot: u16, from: usize, to: usize) {
        let command = format!("CLUSTER SETSLOT {slot} NODE {}", self.ids[to]);
        for node in [to, from] {
            let _: () = self.nodes[node].ask(&command).await.unwrap();
        }
    }

    /// Returns the number of times that the nodes have answered with this error.
    pub async fn errors(&self, name: &str) -> u64 {
        let mut sum = 0;
        for node in &self.nodes {
            let told: String = node.ask("INFO errorstats").await.unwrap();
            let count = told.lines().find_map(|line| line.strip_prefix(&format!("errorstat_{name}:count=")));
            sum += count.and_then(|count| count.trim().parse::<u64>().ok()).unwrap_or(0);
        }
        sum
    }
}

/// Puts the user on plan `p`: then all of the user's keys exist, which a slot on its way tells apart.
pub async fn subscribe(replica: &mut Replica, user: &str) {
    let request =
        v1::UpsertSubscriptionRequest { user_id: user.to_owned(), plan_id: "p".to_owned(), ..Default::default() };
    replica.subscriptions.upsert_subscription(request).await.expect("a user can subscribe");
}

/// `seen`, once.
pub fn track(user: &str, request_id: &str) -> v1::TrackRequest {
    let event = v1::Event { name: "seen".to_owned(), quantity: Some(1.0), ..Default::default() };
    v1::TrackRequest {
        user_id: user.to_owned(),
        event: Some(event),
        request_id: request_id.to_owned(),
        ..Default::default()
    }
}
