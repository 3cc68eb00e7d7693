//! Text tables: a scenario reads as a list of calls and what their answers must say.
//!
//! ```text
//! clock u 2031-01-31T12:00:00Z
//! reserve u llm.tokens prompt_tokens=100 @model=gpt-4o as=A => allowed HELD tokens.held=100 !replayed
//! commit A prompt_tokens=60                                 => COMMITTED tokens.used=60 tokens.held=0
//! ```
//!
//! A line is a call, its arguments, and after `=>` the facts that must be in the answer (with `!`: must not). Arguments: a bare
//! number is the quantity, `name=number` a named quantity, `@key=value` metadata; the others are named in `Call`. A fact of a
//! limit group is `group.field=value`; `groups=a,b` lists the groups of the answer in order.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tollgate::grpc::v1;
use tollgate::meter::MeterOptions;

use crate::support::{Replica, Step, fresh_user, step_clock};

mod facts;

use facts::{crossed, fault, flag, limits, milliseconds, reasons, retry, state, subscription};

/// Runs a table against one replica with this catalog.
pub async fn check(catalog: &str, table: &str) {
    Scenario::new(vec![("", Replica::start(catalog).await)]).run(table).await;
}

/// Runs a table against one replica with these options.
pub async fn check_with(catalog: &str, options: MeterOptions, table: &str) {
    let replica = Replica::start_with(catalog, jiff::tz::db(), options, crate::support::redis_options()).await;
    Scenario::new(vec![("", replica)]).run(table).await;
}

/// Replicas, and what a table has named so far.
pub struct Scenario {
    replicas: BTreeMap<String, Replica>,
    current: String,
    users: BTreeMap<String, String>,
    reservations: BTreeMap<String, String>,
    clocks: BTreeMap<String, i64>,
    event_ids: BTreeMap<String, String>,
    etags: BTreeMap<String, String>,
    /// The users of reservations.
    owners: BTreeMap<String, String>,
}

/// The arguments of a line.
#[derive(Default)]
struct Call<'a> {
    words: Vec<&'a str>,
    quantity: Option<f64>,
    quantities: BTreeMap<String, f64>,
    metadata: BTreeMap<String, String>,
    quotas: BTreeMap<String, v1::Quota>,
    /// `as=`, `id=`, `ttl=`, `of=`, `end=`, `anchor=`, `at=`, `event=`, `time=`, `groups=`, `etag=`, `size=`.
    named: BTreeMap<&'a str, &'a str>,
    flags: BTreeSet<&'a str>,
}

const NAMED: [&str; 12] = ["as", "id", "ttl", "of", "end", "anchor", "at", "event", "time", "groups", "etag", "size"];
const FLAGS: [&str; 5] = ["enforce", "no-overrides", "no-end", "part", "counting"];

impl<'a> Call<'a> {
    fn parse(text: &'a str, reservations: &BTreeMap<String, String>) -> Self {
        let mut call = Self::default();
        for word in text.split_whitespace() {
            if let Some((key, value)) = word.strip_prefix('@').and_then(|pair| pair.split_once('=')) {
                let value = value.strip_prefix('$').map_or(value, |name| &reservations[name]);
                call.metadata.insert(key.to_owned(), value.to_owned());
            } else if let Some((id, quota)) = word.strip_prefix("quota:").and_then(|pair| pair.split_once('=')) {
                let limit = match quota {
                    "unlimited" => v1::quota::Limit::Unlimited(true),
                    amount => v1::quota::Limit::Amount(amount.parse().expect("an amount")),
                };
                call.quotas.insert(id.to_owned(), v1::Quota { limit: Some(limit) });
            } else if let Some((name, value)) = word.split_once('=') {
                if NAMED.contains(&name) {
                    call.named.insert(name, value);
                } else {
                    call.quantities.insert(name.to_owned(), value.parse().expect("a quantity"));
                }
            } else if FLAGS.contains(&word) {
                call.flags.insert(word);
            } else if let (true, Ok(quantity)) = (call.words.len() > 1, word.parse()) {
                call.quantity = Some(quantity);
            } else {
                call.words.push(word);
            }
        }
        call
    }

    fn event(&self, name: &str) -> Option<v1::Event> {
        Some(v1::Event {
            name: name.to_owned(),
            quantity: self.quantity,
            quantities: self.quantities.clone(),
            metadata: self.metadata.clone(),
        })
    }

    fn ttl(&self) -> Option<prost_types::Duration> {
        self.named.get("ttl").map(|text| duration(text)).map(|ttl| prost_types::Duration {
            seconds: i64::try_from(ttl.as_secs()).expect("not too long"),
            nanos: i32::try_from(ttl.subsec_nanos()).expect("below a billion"),
        })
    }

    fn named(&self, name: &str) -> String {
        self.named.get(name).map(|value| (*value).to_owned()).unwrap_or_default()
    }
}

impl Scenario {
    pub fn new(replicas: Vec<(&str, Replica)>) -> Self {
        let current = replicas[0].0.to_owned();
        Self {
            replicas: replicas.into_iter().map(|(name, replica)| (name.to_owned(), replica)).collect(),
            current,
            users: BTreeMap::new(),
            reservations: BTreeMap::new(),
            clocks: BTreeMap::new(),
            event_ids: BTreeMap::new(),
            etags: BTreeMap::new(),
            owners: BTreeMap::new(),
        }
    }

    /// The real name of a user of the table.
    pub fn user(&mut self, name: &str) -> String {
        self.users.entry(name.to_owned()).or_insert_with(|| fresh_user(name)).clone()
    }

    pub async fn run(&mut self, table: &str) {
        for (index, line) in table.lines().enumerate() {
            let line = line.split_once(" #").map_or(line, |(code, _)| code).trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (call, expected) = line.split_once("=>").unwrap_or((line, ""));
            let facts = self.call(call.trim()).await;
            for fact in expected.split_whitespace() {
                let holds = match fact.strip_prefix('!') {
                    Some(absent) => !facts.contains(absent),
                    None => facts.contains(fact),
                };
                assert!(holds, "line {}: {line}\n  expected {fact}\n  found {facts:#?}", index + 1);
            }
            let went_wrong = facts.iter().any(|fact| fact.starts_with("code=")) && expected.trim().is_empty();
            assert!(!went_wrong, "line {}: {line}\n  found {facts:#?}", index + 1);
        }
    }

    async fn call(&mut self, text: &str) -> BTreeSet<String> {
        let reservations = self.reservations.clone();
        let call = Call::parse(text, &reservations);
        let subject = call.words.get(1).copied().unwrap_or_default();
        match call.words[0] {
            "on" => {
                assert!(self.replicas.contains_key(subject), "no replica {subject}");
                self.current = subject.to_owned();
                BTreeSet::new()
            }
            "clock" => {
                let user = self.user(subject);
                let now = step_clock(&user, step(call.words[2])).await;
                self.clocks.insert(user, now);
                BTreeSet::new()
            }
            "reserve" => self.reserve(&call, subject).await,
            "commit" => self.commit(&call, subject).await,
            "extend" => self.extend(&call, subject).await,
            "release" => {
                let request =
                    v1::ReleaseRequest { reservation_id: self.reservation(subject), reason: "a test".to_owned() };
                let answer = self.replica().metering.release(request).await.map(|answer| {
                    let answer = answer.into_inner();
                    let mut facts = limits(&answer.limits);
                    facts.insert(state(answer.state));
                    flag(&mut facts, "replayed", answer.replayed);
                    facts
                });
                answer.unwrap_or_else(|status| fault(&status))
            }
            "track" => self.track(&call, subject).await,
            "can" => {
                let user = self.user(subject);
                let request = v1::CanUseRequest { user_id: user, event: call.event(call.words[2]) };
                let answer = self.replica().metering.can_use(request).await.map(|answer| {
                    let answer = answer.into_inner();
                    let mut facts = limits(&answer.limits);
                    facts.insert(if answer.allowed { "allowed" } else { "denied" }.to_owned());
                    flag(&mut facts, "matched", answer.matched);
                    reasons(&mut facts, &answer.reasons);
                    facts.insert(retry(answer.retry_after));
                    facts
                });
                answer.unwrap_or_else(|status| fault(&status))
            }
            "usage" => {
                let user = self.user(subject);
                let at = call.named.get("at").map(|text| timestamp(text));
                let request = v1::GetUsageRequest { user_id: user, event: call.named("event"), at };
                let answer = match self.replica().metering.get_usage(request).await {
                    Ok(answer) => answer.into_inner(),
                    Err(status) => return fault(&status),
                };
                let mut facts = limits(&answer.limits);
                facts.insert(format!("in-force={}", answer.plan_id));
                facts.extend(self.versioned(&call, answer.subscription));
                facts
            }
            "reset" => {
                let ids = call.named.get("groups").map(|ids| ids.split(',').map(ToOwned::to_owned).collect());
                let request = v1::ResetUsageRequest {
                    user_id: self.user(subject),
                    limit_group_ids: ids.unwrap_or_default(),
                    reason: "a test".to_owned(),
                    request_id: call.named("id"),
                };
                let answer = self.replica().metering.reset_usage(request).await.map(|answer| {
                    let answer = answer.into_inner();
                    let mut facts = limits(&answer.limits);
                    flag(&mut facts, "replayed", answer.replayed);
                    facts
                });
                answer.unwrap_or_else(|status| fault(&status))
            }
            "subscribe" => {
                let user = self.user(subject);
                let overrides = (!call.quotas.is_empty() || call.flags.contains("no-overrides"))
                    .then(|| v1::QuotaOverrides { quotas: call.quotas.clone() });
                let request = v1::UpsertSubscriptionRequest {
                    user_id: user,
                    plan_id: call.words.get(2).copied().unwrap_or_default().to_owned(),
                    overrides,
                    end_time: call.named.get("end").map(|text| timestamp(text)),
                    cycle_anchor: call.named.get("anchor").map(|text| timestamp(text)),
                    clear_end_time: call.flags.contains("no-end"),
                    etag: call.named.get("etag").map(|name| self.etag(name)).unwrap_or_default(),
                };
                let answer = self.replica().subscriptions.upsert_subscription(request).await;
                answer
                    .map(|answer| self.versioned(&call, answer.into_inner().subscription))
                    .unwrap_or_else(|status| fault(&status))
            }
            "subscription" => {
                let request = v1::GetSubscriptionRequest { user_id: self.user(subject) };
                let answer = self.replica().subscriptions.get_subscription(request).await;
                answer
                    .map(|answer| self.versioned(&call, answer.into_inner().subscription))
                    .unwrap_or_else(|status| fault(&status))
            }
            "cancel" => {
                let end_time = call.named.get("end").map(|text| timestamp(text));
                let request = v1::CancelSubscriptionRequest { user_id: self.user(subject), end_time };
                let answer = self.replica().subscriptions.cancel_subscription(request).await;
                answer
                    .map(|answer| self.versioned(&call, answer.into_inner().subscription))
                    .unwrap_or_else(|status| fault(&status))
            }
            "reservation" => {
                let id = self.reservation(subject);
                let request = v1::GetReservationRequest { reservation_id: id.clone() };
                let answer = self.replica().metering.get_reservation(request).await.map(|answer| {
                    let found = answer.into_inner().reservation.expect("a reservation");
                    assert_eq!(found.reservation_id, id);
                    let now = self.clocks.get(&found.user_id).copied();
                    facts::reservation(found, now)
                });
                answer.unwrap_or_else(|status| fault(&status))
            }
            "holds" => self.holds(&call, subject).await,
            "delete" => {
                let request = v1::DeleteUserRequest { user_id: self.user(subject) };
                let answer = self.replica().subscriptions.delete_user(request).await;
                answer.map(|_| BTreeSet::new()).unwrap_or_else(|status| fault(&status))
            }
            other => panic!("no call {other}"),
        }
    }

    /// All live holds of a user, by pages: their names in the table.
    async fn holds(&mut self, call: &Call<'_>, subject: &str) -> BTreeSet<String> {
        let user_id = self.user(subject);
        let page_size = call.named.get("size").map_or(0, |size| size.parse().expect("a number"));
        let (mut holds, mut page_token) = (BTreeSet::new(), String::new());
        loop {
            let request = v1::ListReservationsRequest { user_id: user_id.clone(), page_size, page_token };
            let page = match self.replica().metering.list_reservations(request).await {
                Ok(page) => page.into_inner(),
                Err(status) => return fault(&status),
            };
            let ids: BTreeSet<_> = page.reservations.iter().map(|hold| hold.reservation_id.clone()).collect();
            assert_eq!(ids.len(), page.reservations.len(), "none comes twice on a page");
            assert!(page.reservations.iter().all(|hold| hold.user_id == user_id));
            let named = |id: &String| self.reservations.iter().find(|(_, known)| *known == id).map(|(name, _)| name);
            holds.extend(ids.iter().map(|id| named(id).map_or("?", String::as_str).to_owned()));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        BTreeSet::from([format!("holds={}", holds.into_iter().collect::<Vec<_>>().join(","))])
    }

    /// The etag that the table calls `name`; in quotes, the text itself.
    fn etag(&self, name: &str) -> String {
        match name.strip_prefix('"').and_then(|text| text.strip_suffix('"')) {
            Some(text) => text.to_owned(),
            None => self.etags.get(name).unwrap_or_else(|| panic!("no etag {name}")).clone(),
        }
    }

    /// What a table can say of a subscription, and of its version.
    fn versioned(&mut self, call: &Call<'_>, answered: Option<v1::Subscription>) -> BTreeSet<String> {
        let etag = answered.as_ref().map(|subscription| subscription.etag.clone());
        let mut facts = subscription(answered);
        let Some(etag) = etag else { return facts };
        if let Some(name) = call.named.get("as") {
            self.etags.insert((*name).to_owned(), etag.clone());
        }
        facts.extend(self.etags.iter().filter(|(_, known)| **known == etag).map(|(name, _)| format!("etag={name}")));
        facts
    }

    async fn reserve(&mut self, call: &Call<'_>, subject: &str) -> BTreeSet<String> {
        let user = self.user(subject);
        let on_expiry = if call.flags.contains("counting") { v1::OnExpiry::Count } else { v1::OnExpiry::Unspecified };
        let request = v1::ReserveRequest {
            user_id: user.clone(),
            event: call.event(call.words[2]),
            ttl: call.ttl(),
            request_id: call.named("id"),
            on_expiry: on_expiry.into(),
        };
        let answer = match self.replica().metering.reserve(request).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => return fault(&status),
        };
        let mut facts = limits(&answer.limits);
        facts.insert(if answer.allowed { "allowed" } else { "denied" }.to_owned());
        flag(&mut facts, "matched", answer.matched);
        flag(&mut facts, "replayed", answer.replayed);
        flag(&mut facts, "degraded", answer.degraded);
        flag(&mut facts, "no-id", answer.reservation_id.is_empty());
        facts.insert(state(answer.state));
        reasons(&mut facts, &answer.reasons);
        facts.insert(retry(answer.retry_after));
        facts.extend(self.expires_in(&user, answer.expire_time));
        self.owners.insert(answer.reservation_id.clone(), user);
        for (name, id) in &self.reservations {
            if *id == answer.reservation_id {
                facts.insert(format!("same-as={name}"));
            }
        }
        if let Some(name) = call.named.get("as") {
            self.reservations.insert((*name).to_owned(), answer.reservation_id);
        }
        facts
    }

    async fn commit(&mut self, call: &Call<'_>, subject: &str) -> BTreeSet<String> {
        // The second word of the others is an event; here it may be the quantity already.
        // `nothing` is an actual that names nothing.
        let says_nothing = call.words.get(2) == Some(&"nothing");
        let word = call.words.get(2).filter(|_| !says_nothing);
        let quantity = call.quantity.or_else(|| word.map(|word| word.parse().expect("a quantity")));
        let says_something = quantity.is_some() || !call.quantities.is_empty() || !call.metadata.is_empty();
        let actual = (says_something || says_nothing).then(|| v1::Actual {
            quantity,
            quantities: call.quantities.clone(),
            metadata: call.metadata.clone(),
        });
        let reservation_id = self.reservation(subject);
        let user = self.owners.get(&reservation_id).cloned().unwrap_or_default();
        let request =
            v1::CommitRequest { reservation_id, actual, partial: call.flags.contains("part"), ttl: call.ttl() };
        let answer = self.replica().metering.commit(request).await.map(|answer| {
            let answer = answer.into_inner();
            let mut facts = limits(&answer.limits);
            facts.extend(self.expires_in(&user, answer.expire_time));
            flag(&mut facts, "exhausted", answer.exhausted);
            facts.insert(state(answer.state));
            flag(&mut facts, "overage", answer.overage);
            flag(&mut facts, "late", answer.late);
            flag(&mut facts, "replayed", answer.replayed);
            facts.extend(crossed(&answer.crossed));
            facts
        });
        answer.unwrap_or_else(|status| fault(&status))
    }

    async fn extend(&mut self, call: &Call<'_>, subject: &str) -> BTreeSet<String> {
        let quantity = call.words.get(2).map(|word| word.parse().expect("a quantity")).or(call.quantity);
        let adds = quantity.is_some() || !call.quantities.is_empty() || !call.metadata.is_empty();
        let reservation_id = self.reservation(subject);
        let user = self.owners.get(&reservation_id).cloned().unwrap_or_default();
        let request = v1::ExtendRequest {
            reservation_id,
            ttl: call.ttl(),
            add: adds.then(|| v1::Actual {
                quantity,
                quantities: call.quantities.clone(),
                metadata: call.metadata.clone(),
            }),
            request_id: call.named("id"),
        };
        let answer = match self.replica().metering.extend(request).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => return fault(&status),
        };
        let mut facts = limits(&answer.limits);
        facts.insert(if answer.extended { "extended" } else { "denied" }.to_owned());
        flag(&mut facts, "replayed", answer.replayed);
        reasons(&mut facts, &answer.reasons);
        facts.insert(retry(answer.retry_after));
        facts.extend(self.expires_in(&user, answer.expire_time));
        facts
    }

    /// In how long that is, where the user's clock was stepped.
    fn expires_in(&self, user: &str, expire_time: Option<prost_types::Timestamp>) -> Option<String> {
        let (expire, now) = (expire_time?, self.clocks.get(user)?);
        let left = expire.seconds * 1000 + i64::from(expire.nanos) / 1_000_000 - now;
        Some(format!("expires-in={}", milliseconds(left)))
    }

    async fn track(&mut self, call: &Call<'_>, subject: &str) -> BTreeSet<String> {
        let request = v1::TrackRequest {
            user_id: self.user(subject),
            event: call.event(call.words[2]),
            request_id: call.named("id"),
            enforce: call.flags.contains("enforce"),
            reservation_id: call.named.get("of").map(|name| self.reservation(name)).unwrap_or_default(),
            time: call.named.get("time").map(|text| timestamp(text)),
        };
        let answer = match self.replica().metering.track(request).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => return fault(&status),
        };
        let mut facts = limits(&answer.limits);
        let status = v1::MatchStatus::try_from(answer.match_status).expect("a known status");
        facts.insert(status.as_str_name().trim_start_matches("MATCH_STATUS_").to_owned());
        flag(&mut facts, "replayed", answer.replayed);
        flag(&mut facts, "no-id", answer.event_id.is_empty());
        reasons(&mut facts, &answer.reasons);
        facts.extend(crossed(&answer.crossed));
        for (name, id) in &self.event_ids {
            if *id == answer.event_id {
                facts.insert(format!("same-as={name}"));
            }
        }
        if let Some(name) = call.named.get("as") {
            self.event_ids.insert((*name).to_owned(), answer.event_id);
        }
        facts
    }

    fn replica(&mut self) -> &mut Replica {
        self.replicas.get_mut(&self.current).expect("the replica is there")
    }

    /// The id that the table calls `name`; in quotes, the text itself.
    fn reservation(&self, name: &str) -> String {
        match name.strip_prefix('"').and_then(|text| text.strip_suffix('"')) {
            Some(text) => text.to_owned(),
            None => self.reservations.get(name).unwrap_or_else(|| panic!("no reservation {name}")).clone(),
        }
    }
}

fn timestamp(text: &str) -> prost_types::Timestamp {
    let time: jiff::Timestamp = text.parse().expect("a time");
    prost_types::Timestamp { seconds: time.as_second(), nanos: time.subsec_nanosecond() }
}

fn step(text: &str) -> Step {
    match text.strip_prefix('+') {
        Some(by) => Step::By(duration(by)),
        None => Step::To(text.parse::<jiff::Timestamp>().expect("a time").as_millisecond()),
    }
}

fn duration(text: &str) -> Duration {
    let duration: jiff::SignedDuration = text.parse().expect("a duration");
    duration.try_into().expect("not negative")
}
