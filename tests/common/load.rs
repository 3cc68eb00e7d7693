//! Load whose every answer is written down, and held against the counters afterwards.
//!
//! Clients reserve, then commit, release or walk away, stream with partial commits and Extends, commit as another event, let deadlines count,
//! track and refund, over all the replicas they are given. Whatever
//! fails is asked again with the same id until there is an answer, as a careful caller would. So in the end everything is known: the
//! counters must equal the sum of what was acknowledged (EXACT, ONCE, TRUTH), no hard limit was passed (NO-OVERSHOOT), and once
//! every deadline has passed nothing is held (NO-LEAK).

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tollgate::grpc::v1;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::{fresh_user, nothing_contradicts_itself, spawn};

mod reservations;

/// The catalog that the load needs. `work` is limited, `seen` only counted; every event is counted by all the groups it matches.
pub fn catalog(quota: u64) -> String {
    format!(
        "
default_plan: p
plans:
  p:
    period: lifetime
    limit_groups:
      - {{ id: limited, unit: tokens, quota: {quota}, match: [{{ event: work }}] }}
      - {{ id: calls, unit: count, quota: unlimited, match: [{{ event: '*', measure: events }}] }}
      - {{ id: all, unit: tokens, quota: unlimited, match: [{{ event: '*' }}] }}
      - {{ id: fallbacks, unit: tokens, quota: unlimited, match: [{{ event: work, metadata: {{ model: fallback }} }}] }}
"
    )
}

/// The quota of the limited group. It is low enough to be reached all the time.
pub const QUOTA: u64 = 60;

/// The amount of load, and its target.
#[derive(Debug, Clone)]
pub struct Plan {
    /// `http://127.0.0.1:port`, one per replica; a client that gets no answer from one asks the next.
    pub urls: Vec<String>,
    /// The URLs of the ledgers that are verified at the end; none: the caller verifies them.
    pub redis: Vec<String>,
    /// The seed of the clients' choices.
    pub seed: u64,
    /// Calls in flight.
    pub clients: usize,
    /// Few users, so that the clients meet.
    pub users: usize,
    /// The quota, as in [`catalog`].
    pub quota: u64,
    /// The lifetime of every reservation, at least a second.
    pub ttl: Duration,
    /// A pause after each call; none: as fast as it goes.
    pub pause: Duration,
    /// The time for which a client waits for one attempt.
    pub timeout: Duration,
    /// The time for which a client tries to get one answer. If it gets none, the test fails.
    pub patience: Duration,
    /// Make room by refunds where the limit is reached, so that load goes on around the limit.
    pub refunds: bool,
    /// Some answers may be forgotten: an asynchronous failover loses the last moments. Not together with refunds.
    pub may_forget: bool,
}

impl Plan {
    /// Moderate load, which leaves the machine room for what the test does to the servers.
    pub fn new(urls: Vec<String>, redis: Vec<String>, seed: u64) -> Self {
        Self {
            urls,
            redis,
            seed,
            clients: 12,
            users: 4,
            quota: QUOTA,
            ttl: Duration::from_secs(1),
            pause: Duration::from_millis(2),
            timeout: Duration::from_secs(3),
            patience: Duration::from_secs(30),
            refunds: true,
            may_forget: false,
        }
    }
}

/// The events that one user's clients know to have happened.
#[derive(Debug, Default)]
pub struct Tally {
    /// `work` that was committed, or tracked with `enforce`.
    limited: AtomicU64,
    /// The part of it that was committed after the deadline, when others may have taken its room.
    limited_late: AtomicU64,
    /// The amounts that refunds took off it, and off all.
    limited_refunded: AtomicU64,
    all_refunded: AtomicU64,
    /// The part of it that was committed as another event than was reserved.
    fallbacks: AtomicU64,
    /// Events counted.
    calls: AtomicU64,
    /// Their quantities.
    all: AtomicU64,
    allowed: AtomicU64,
    denied: AtomicU64,
    released: AtomicU64,
    abandoned: AtomicU64,
    /// Reservations that only their deadlines have counted.
    expired: AtomicU64,
    /// Partial commits and Extends.
    parts: AtomicU64,
    extended: AtomicU64,
    late: AtomicU64,
    replayed: AtomicU64,
    /// Attempts without an answer.
    unanswered: AtomicU64,
    /// Settlements of reservations that Redis has forgotten.
    forgotten: AtomicU64,
}

struct User {
    id: String,
    tally: Tally,
    /// The number of answers from each replica.
    answered: Vec<AtomicU64>,
    /// Tracks that were blocked after an attempt without an answer. That attempt may have been under way still, and have counted
    /// later.
    doubtful: Mutex<Vec<v1::TrackRequest>>,
}

/// Running load.
pub struct Load {
    plan: Plan,
    users: Arc<[User]>,
    switch: Arc<Switch>,
    clients: Vec<JoinHandle<()>>,
}

/// The signals to the clients, and the number of clients that rest.
#[derive(Debug, Default)]
struct Switch {
    stop: AtomicBool,
    pause: AtomicBool,
    resting: AtomicUsize,
}

/// The totals of a campaign of load, for the reader of a test's output.
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs)]
pub struct Totals {
    pub allowed: u64,
    pub denied: u64,
    pub counted: u64,
    pub replayed: u64,
    pub unanswered: u64,
    pub late: u64,
    pub abandoned: u64,
    pub forgotten: u64,
    pub fallbacks: u64,
    pub expired: u64,
    pub parts: u64,
    pub extended: u64,
}

impl Load {
    /// Starts the clients.
    pub fn start(plan: Plan) -> Self {
        let user = |_| User {
            id: fresh_user("load"),
            tally: Tally::default(),
            answered: plan.urls.iter().map(|_| AtomicU64::new(0)).collect(),
            doubtful: Mutex::default(),
        };
        let users: Arc<[User]> = (0..plan.users).map(user).collect();
        let switch = Arc::<Switch>::default();
        let mut clients = Vec::new();
        for number in 0..plan.clients {
            let client = Client::new(&plan, number, Arc::clone(&users));
            clients.push(spawn(client.run(Arc::clone(&switch))));
        }
        Self { plan, users, switch, clients }
    }

    /// Returns the users whose counters are used.
    pub fn users(&self) -> Vec<String> {
        self.users.iter().map(|user| user.id.clone()).collect()
    }

    /// Lets every client finish its present call, and pauses them until [`Self::resume`].
    pub async fn pause(&self) {
        self.switch.pause.store(true, Ordering::Relaxed);
        while self.switch.resting.load(Ordering::Relaxed) < self.clients.len() {
            assert!(!self.clients.iter().any(JoinHandle::is_finished), "a client has failed");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub fn resume(&self) {
        self.switch.pause.store(false, Ordering::Relaxed);
    }

    /// A replica that has ended, and is not asked in the end.
    pub fn without(&mut self, url: &str) {
        self.plan.urls.retain(|other| other != url);
    }

    /// Returns the number of calls that were answered until now.
    pub fn answered(&self) -> u64 {
        sum(self.users.iter().flat_map(|user| &user.answered))
    }

    /// Waits until load flows again: every replica answers more calls of every user, and so over every connection to Redis.
    /// Fails after `within`. Returns how long it took.
    pub async fn flows(&self, within: Duration) -> Duration {
        let started = Instant::now();
        let counters: Vec<_> = self.users.iter().flat_map(|user| &user.answered).collect();
        let before: Vec<_> = counters.iter().map(|counter| counter.load(Ordering::Relaxed)).collect();
        loop {
            let more =
                || counters.iter().zip(&before).map(|(counter, before)| counter.load(Ordering::Relaxed) - before);
            if more().all(|more| more >= 2) {
                return started.elapsed();
            }
            let told = || format!("answers by user and replica: {:?}", more().collect::<Vec<_>>());
            assert!(started.elapsed() < within, "service does not resume within {within:?}; {}", told());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Returns the totals until now.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        self.users.iter().for_each(|user| totals.add(&user.tally));
        totals
    }

    /// Ends the load: every call is answered. Attempts without an answer may still be in flight.
    pub async fn stop(&mut self) {
        self.switch.stop.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            client.await.expect("a client gets all its answers");
        }
    }

    /// Ends the load, waits for the last deadline, and compares the counters of every user with what was acknowledged.
    /// What the network held up must have arrived by now, or never arrive.
    pub async fn audit(mut self) -> Totals {
        self.stop().await;
        let mut client = Client::new(&self.plan, self.plan.clients, Arc::clone(&self.users));
        for user in self.users.iter() {
            client.resolve(user).await;
        }
        // NO-LEAK: the deadline of what nobody settled, which is up to a tenth of a second later than asked.
        tokio::time::sleep(self.plan.ttl + Duration::from_millis(150)).await;
        for user in self.users.iter() {
            for url in &self.plan.urls {
                check(&self.plan, user, &usage_of(url, &user.id).await);
            }
        }
        if !self.plan.redis.is_empty() {
            nothing_contradicts_itself(&self.plan.redis).await;
        }
        self.totals()
    }
}

impl Totals {
    fn add(&mut self, tally: &Tally) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        self.allowed += read(&tally.allowed);
        self.denied += read(&tally.denied);
        self.counted += read(&tally.calls);
        self.replayed += read(&tally.replayed);
        self.unanswered += read(&tally.unanswered);
        self.late += read(&tally.late);
        self.abandoned += read(&tally.abandoned);
        self.forgotten += read(&tally.forgotten);
        self.fallbacks += read(&tally.fallbacks);
        self.expired += read(&tally.expired);
        self.parts += read(&tally.parts);
        self.extended += read(&tally.extended);
    }
}

fn sum<'a>(counters: impl Iterator<Item = &'a AtomicU64>) -> u64 {
    counters.map(|counter| counter.load(Ordering::Relaxed)).sum()
}

fn check(plan: &Plan, user: &User, usage: &v1::GetUsageResponse) {
    let tally = &user.tally;
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let expected = [
        ("limited", read(&tally.limited) - read(&tally.limited_refunded)),
        ("calls", read(&tally.calls)),
        ("fallbacks", read(&tally.fallbacks)),
        ("all", read(&tally.all) - read(&tally.all_refunded)),
    ];
    for (id, acknowledged) in expected {
        let status = usage.limits.iter().find(|status| status.limit_group_id == id).expect("every group is shown");
        let used = status.used as u64;
        let exact = if plan.may_forget { used <= acknowledged } else { used == acknowledged };
        assert!(exact, "{id}: {used} is used, {acknowledged} was acknowledged: {tally:#?}");
        assert_eq!(status.held, 0.0, "{id}: {tally:#?}");
        if id == "limited" {
            assert!(used <= plan.quota + read(&tally.limited_late), "{used} of {}: {tally:#?}", plan.quota);
        }
    }
}

/// Reads a user's usage from one replica.
async fn usage_of(url: &str, user: &str) -> v1::GetUsageResponse {
    let started = Instant::now();
    let mut stub = stub(url, Duration::from_secs(3));
    loop {
        let asked = v1::GetUsageRequest { user_id: user.to_owned(), ..Default::default() };
        match stub.get_usage(asked).await {
            Ok(answer) => return answer.into_inner(),
            Err(status) => {
                assert!(started.elapsed() < Duration::from_secs(30), "{url} does not tell usage: {status:?}")
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

type Stub = v1::metering_service_client::MeteringServiceClient<Channel>;

/// Makes a client as a careful caller configures it. Without the keepalive, a connection that has silently gone would
/// be used for ever.
fn stub(url: &str, timeout: Duration) -> Stub {
    let second = Duration::from_secs(1);
    let endpoint = Endpoint::from_shared(url.to_owned()).expect("a URL").connect_timeout(second).timeout(timeout);
    let endpoint = endpoint.http2_keep_alive_interval(second).keep_alive_timeout(second).keep_alive_while_idle(true);
    Stub::new(endpoint.connect_lazy())
}

struct Client {
    plan: Plan,
    stubs: Vec<Stub>,
    users: Arc<[User]>,
    number: usize,
    next: u64,
    unanswered: u64,
    random: fastrand::Rng,
}

/// Returns whether another attempt may bring an answer. Anything else is a bug.
fn is_passing(status: &Status) -> bool {
    match status.code() {
        // The client's own timeout is CANCELLED, a broken connection UNKNOWN or UNAVAILABLE.
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Aborted | Code::Unknown => true,
        // A transport that ended amid an answer.
        Code::Internal => status.message().contains("h2") || std::error::Error::source(status).is_some(),
        _ => false,
    }
}

impl Client {
    fn new(plan: &Plan, number: usize, users: Arc<[User]>) -> Self {
        let stubs = plan.urls.iter().map(|url| stub(url, plan.timeout)).collect();
        let random = fastrand::Rng::with_seed(plan.seed << 16 | number as u64);
        Self { plan: plan.clone(), stubs, users, number, next: 0, unanswered: 0, random }
    }

    async fn run(mut self, switch: Arc<Switch>) {
        while !switch.stop.load(Ordering::Relaxed) {
            if switch.pause.load(Ordering::Relaxed) {
                switch.resting.fetch_add(1, Ordering::Relaxed);
                while switch.pause.load(Ordering::Relaxed) && !switch.stop.load(Ordering::Relaxed) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                switch.resting.fetch_sub(1, Ordering::Relaxed);
            }
            let users = Arc::clone(&self.users);
            let user = &users[self.random.usize(..users.len())];
            match self.random.u32(..10) {
                0..2 => self.track(user, "seen", false).await,
                2..4 => self.track(user, "work", true).await,
                _ => self.reserve(user).await,
            }
            tokio::time::sleep(self.plan.pause).await;
        }
    }

    fn request_id(&mut self) -> String {
        self.next += 1;
        format!("{}-{}", self.number, self.next)
    }

    async fn track(&mut self, user: &User, name: &str, enforce: bool) {
        let quantity = self.random.u64(1..=5);
        let request = v1::TrackRequest {
            user_id: user.id.clone(),
            event: event(name, quantity),
            request_id: self.request_id(),
            enforce,
            ..v1::TrackRequest::default()
        };
        let before = self.unanswered;
        let answer = self.ask_track(user, &request).await;
        let unanswered = self.unanswered > before;
        match answer.match_status() {
            v1::MatchStatus::Matched => {
                if self.asks_again() {
                    let again = self.ask_track(user, &request).await;
                    assert_eq!((again.replayed, &again.event_id), (true, &answer.event_id), "{again:?}");
                }
                add(&user.tally.calls, 1);
                add(&user.tally.all, quantity);
                add(&user.tally.limited, if name == "work" { quantity } else { 0 });
                add(&user.tally.replayed, u64::from(answer.replayed));
            }
            v1::MatchStatus::Blocked if enforce => {
                if unanswered {
                    user.doubtful.lock().expect("nobody panics with it").push(request);
                }
                self.denied(user).await;
            }
            other => panic!("{name} is {other:?}"),
        }
    }

    /// ONCE: now and then a call is made again though it was answered, and must find that answer.
    fn asks_again(&mut self) -> bool {
        self.random.u32(..8) == 0 && !self.plan.may_forget
    }

    async fn ask_track(&mut self, user: &User, request: &v1::TrackRequest) -> v1::TrackResponse {
        let answer = self.ask(user, |mut stub| {
            let request = request.clone();
            async move { stub.track(request).await }
        });
        answer.await.expect("a track is always answered")
    }

    async fn ask_reserve(&mut self, user: &User, request: &v1::ReserveRequest) -> v1::ReserveResponse {
        let answer = self.ask(user, |mut stub| {
            let request = request.clone();
            async move { stub.reserve(request).await }
        });
        answer.await.expect("a reserve is always answered")
    }

    /// Asks once more what became of doubtful tracks: nothing, or it counted before, or it counts now.
    async fn resolve(&mut self, user: &User) {
        let doubtful = std::mem::take(&mut *user.doubtful.lock().expect("nobody panics with it"));
        for request in doubtful {
            if self.ask_track(user, &request).await.match_status() == v1::MatchStatus::Matched {
                let quantity = request.event.and_then(|event| event.quantity).expect("as it was made") as u64;
                add(&user.tally.calls, 1);
                add(&user.tally.all, quantity);
                add(&user.tally.limited, quantity);
            }
        }
    }

    /// Makes some room now and then.
    async fn denied(&mut self, user: &User) {
        add(&user.tally.denied, 1);
        if !self.plan.refunds || self.random.u32(..4) != 0 {
            return;
        }
        let request = v1::TrackRequest {
            user_id: user.id.clone(),
            event: event("work.refund", self.random.u64(1..=40)),
            request_id: self.request_id(),
            ..Default::default()
        };
        let answer = self.ask_track(user, &request).await;
        for (id, refunded) in [("limited", &user.tally.limited_refunded), ("all", &user.tally.all_refunded)] {
            let status = answer.limits.iter().find(|status| status.limit_group_id == id).expect("it is matched");
            add(refunded, (status.requested - status.unapplied) as u64);
        }
        add(&user.tally.replayed, u64::from(answer.replayed));
    }

    /// Asks one replica after another until there is an answer; `None` for a reservation that is forgotten.
    async fn ask<T, F>(&mut self, user: &User, call: impl Fn(Stub) -> F) -> Option<T>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let started = Instant::now();
        let mut which = self.random.usize(..self.stubs.len());
        loop {
            match call(self.stubs[which].clone()).await {
                Ok(answer) => {
                    add(&user.answered[which], 1);
                    return Some(answer.into_inner());
                }
                Err(status) if status.code() == Code::NotFound && self.plan.may_forget => {
                    add(&user.tally.forgotten, 1);
                    return None;
                }
                Err(status) => {
                    assert!(is_passing(&status), "{status:?}");
                    assert!(
                        started.elapsed() < self.plan.patience,
                        "no answer in {:?}: {status:?}",
                        self.plan.patience
                    );
                    add(&user.tally.unanswered, 1);
                    self.unanswered += 1;
                }
            }
            which = (which + 1) % self.stubs.len();
            tokio::time::sleep(Duration::from_millis(self.random.u64(5..50))).await;
        }
    }
}

fn event(name: &str, quantity: u64) -> Option<v1::Event> {
    Some(v1::Event { name: name.to_owned(), quantity: Some(quantity as f64), ..Default::default() })
}

fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}
