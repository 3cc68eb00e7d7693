//! The real thing: replicas of the service, asked what the model is asked, through the same code that the network reaches.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tollgate::access::Caller;
use tollgate::apps::{Apps, Catalogs};
use tollgate::catalog;
use tollgate::domain::id::{AppId, ReservationId};
use tollgate::grpc::gate::Admitted;
use tollgate::grpc::v1::metering_service_server::MeteringService as _;
use tollgate::grpc::v1::subscription_service_server::SubscriptionService as _;
use tollgate::grpc::{Metering, Subscriptions, v1};
use tollgate::ledger::{Ledger, UserKeys};
use tollgate::meter::MeterOptions;
use tollgate::verify::{Finding, Kind};
use tonic::{Request, Status};
use tonic_types::StatusExt as _;

use crate::answers::{Answer, SOME_ETAG, duration, timestamp};
use crate::operations::{Actual, Call, OnExpiry, Operation, Quota, Refund, When, WrongEnd};
use crate::reference::Settings;
use crate::sketch::{Event, double};
use crate::support::timed_redis::TimedRedis;
use crate::support::{Step, connection_to, fresh_user, owner, redis_url, step_clock};

/// More than a listing of any case has.
const MOST_PAGES: usize = 300;

/// A reservation that nobody ever made, of a user who is none of the test's.
const NOBODYS: &str = "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAdkZWZhdWx0BgBub2JvZHk";

pub struct Real {
    replicas: Vec<(Metering, Subscriptions)>,
    users: Vec<String>,
    names: Names,
    /// None: the shared one.
    redis: Option<Arc<TimedRedis>>,
    /// Redis's clock went back. While it was ahead, Redis may have expired keys that show live holds.
    pub went_back: bool,
}

/// What the service has named at random.
#[derive(Default)]
pub struct Names {
    /// By the operation that made it.
    reservations: HashMap<u32, String>,
    /// `r7` or `e9`, by the real name.
    symbols: HashMap<String, String>,
    /// Versions of subscriptions, by the operation that made them.
    etags: HashMap<u32, String>,
}

impl Real {
    /// One replica per catalog, each with another wrong clock (ONE-CLOCK), and with one of these ledgers.
    pub fn new(settings: &Settings, ledgers: &[Ledger], users: usize) -> Self {
        const DAY: i64 = 86_400_000;
        let replica = |(index, sketch): (usize, &crate::sketch::Catalog)| {
            let yaml = sketch.yaml();
            let catalog = catalog::parse(&yaml, jiff::tz::db()).unwrap_or_else(|problems| panic!("{problems}\n{yaml}"));
            let wrong_ms = [0, 40 * DAY, -400 * DAY][index % 3];
            let millis = |ms: i64| Duration::from_millis(u64::try_from(ms).expect("not negative"));
            let options = MeterOptions {
                settlement_window: millis(settings.settlement_ms),
                replay_window: millis(settings.replay_ms),
                fail_open: false,
                clock: Arc::new(move || jiff::Timestamp::now().as_millisecond() + wrong_ms),
            };
            let ledger = ledgers[index % ledgers.len()].clone();
            let apps = Arc::new(Apps::new(Catalogs::Shared(Arc::new(catalog)), ledger, options));
            (Metering(Arc::clone(&apps)), Subscriptions(apps))
        };
        Self {
            replicas: settings.catalogs.iter().enumerate().map(replica).collect(),
            users: (0..users).map(|_| fresh_user("model")).collect(),
            names: Names::default(),
            redis: None,
            went_back: false,
        }
    }

    /// The same, on this Redis.
    pub fn on(self, redis: Arc<TimedRedis>) -> Self {
        Self { redis: Some(redis), ..self }
    }

    /// Redis's clock says this from now on when this user calls; one whose own clock can be set says it to all.
    pub async fn set_clock(&self, user: usize, to: Step) {
        match &self.redis {
            Some(redis) => redis.set_clock(to),
            None => {
                step_clock(&self.users[user], to).await;
            }
        }
    }

    fn redis_url(&self) -> String {
        self.redis.as_ref().map_or_else(redis_url, |redis| redis.url())
    }

    /// What contradicts itself in what is stored of the users.
    pub async fn contradictions(&self) -> Vec<String> {
        let (_, findings) = tollgate::verify::run(&[self.redis_url()]).await.expect("Redis can be read");
        let tags: Vec<_> = self.users.iter().map(|user| format!("{{{}}}", owner(user).tag())).collect();
        let of_users = |finding: &&Finding| tags.iter().any(|tag| finding.key.contains(tag));
        let expired = |finding: &&Finding| {
            self.went_back
                && self.redis.is_some()
                && finding.to_string().contains("is missing, but its reservation is live")
        };
        let contradictions = findings.iter().filter(|finding| finding.kind == Kind::Contradiction);
        let found = contradictions.filter(of_users).filter(|finding| !expired(finding));
        found.map(ToString::to_string).collect()
    }

    /// Everything of the users goes; also the keys of holds that have lapsed by the stepped clock, and not by Redis's: they would
    /// stay for up to an hour.
    pub async fn clean_up(&self) {
        for user_id in self.users.clone() {
            let deleted = self.replicas[0].1.delete_user(asked(v1::DeleteUserRequest { user_id }));
            deleted.await.expect("a user can be deleted");
        }
        let ids = self.names.reservations.values().filter_map(|id| id.parse::<ReservationId>().ok());
        let holds: Vec<_> = ids.map(|id| UserKeys::new(&id.owner).hold(&id.field)).collect();
        if !holds.is_empty() {
            let mut connection = connection_to(&self.redis_url()).await;
            let mut command = redis::cmd("UNLINK");
            let () = command.arg(holds).query_async(&mut connection).await.expect("keys can be deleted");
        }
    }

    /// A reservation, with its user named as in the model.
    fn with_name(&self, found: v1::Reservation) -> v1::Reservation {
        let user = self.users.iter().position(|user| *user == found.user_id).expect("a user of the test");
        v1::Reservation { user_id: format!("user{user}"), ..found }
    }

    /// Every page of a user's live holds.
    async fn holds(&self, metering: &Metering, user: &str, page_size: i32) -> Result<Vec<v1::Reservation>, Status> {
        let (mut holds, mut page_token) = (BTreeMap::new(), String::new());
        // A wrong script may never end a listing.
        for _ in 0..MOST_PAGES {
            let request = v1::ListReservationsRequest { user_id: user.to_owned(), page_size, page_token };
            let page = metering.list_reservations(asked(request)).await?.into_inner();
            let count = page.reservations.len();
            let most = usize::try_from(if page_size == 0 { 100 } else { page_size }).expect("a size");
            assert!(count <= most, "{count} on a page of {most}");
            let page_of: BTreeMap<_, _> =
                page.reservations.into_iter().map(|hold| (hold.reservation_id.clone(), self.with_name(hold))).collect();
            assert_eq!(page_of.len(), count, "none comes twice on a page");
            holds.extend(page_of);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(holds.into_values().collect());
            }
        }
        panic!("more than {MOST_PAGES} pages")
    }

    /// Asks; `at` is what the operation's times mean.
    pub async fn ask(&mut self, operation: &Operation, at: impl Fn(&When) -> i64) -> Answer {
        let answer = self.send(operation, |of| self.names.reservation(of), at).await;
        self.names.learn(operation.number, &answer);
        self.names.learn_etag(operation.number, &answer);
        self.names.symbolic(operation.user, answer)
    }

    /// Asks, and returns the answer as it is. `id_of` is the real name of the reservation that an operation made.
    pub async fn send(
        &self,
        operation: &Operation,
        id_of: impl Fn(u32) -> String,
        at: impl Fn(&When) -> i64,
    ) -> Answer {
        let with = |event: &Event, refund: Option<Refund>| {
            let mut message = event.message();
            if let Some(Refund { of, in_metadata: true }) = refund {
                message.metadata.insert("reservationId".to_owned(), id_of(of));
            }
            Some(message)
        };
        let Operation { number: _, replica, user, call } = operation;
        let (metering, subscriptions) = &self.replicas[*replica];
        let user_id = self.users[*user].clone();
        let answer = match call {
            Call::Reserve { event, ttl_ms, request_id, on_expiry } => {
                let event = with(event, None);
                let (ttl, request_id) = (ttl_ms.map(duration), request_id.clone());
                let on_expiry = on_expiry_message(*on_expiry).into();
                let request = v1::ReserveRequest { user_id, event, ttl, request_id, on_expiry };
                metering.reserve(asked(request)).await.map(|answer| Answer::Reserve(answer.into_inner()))
            }
            Call::Commit { of, actual, partial, ttl_ms } => {
                let (reservation_id, actual) = (id_of(*of), actual.as_ref().map(message));
                let (partial, ttl) = (*partial, ttl_ms.map(duration));
                let request = v1::CommitRequest { reservation_id, actual, partial, ttl };
                metering.commit(asked(request)).await.map(|answer| Answer::Commit(answer.into_inner()))
            }
            Call::Extend { of, ttl_ms, add, request_id } => {
                let (reservation_id, add) = (id_of(*of), add.as_ref().map(message));
                let (ttl, request_id) = (ttl_ms.map(duration), request_id.clone());
                let request = v1::ExtendRequest { reservation_id, ttl, add, request_id };
                metering.extend(asked(request)).await.map(|answer| Answer::Extend(answer.into_inner()))
            }
            Call::Release { of } => {
                let request = v1::ReleaseRequest { reservation_id: id_of(*of), reason: "changed my mind".to_owned() };
                metering.release(asked(request)).await.map(|answer| Answer::Release(answer.into_inner()))
            }
            Call::Track { event, request_id, enforce, refund, at: when } => {
                let named = refund.filter(|refund| !refund.in_metadata).map(|refund| id_of(refund.of));
                let request = v1::TrackRequest {
                    user_id,
                    event: with(event, *refund),
                    request_id: request_id.clone(),
                    enforce: *enforce,
                    reservation_id: named.unwrap_or_default(),
                    time: when.as_ref().map(|when| timestamp(at(when))),
                };
                metering.track(asked(request)).await.map(|answer| Answer::Track(answer.into_inner()))
            }
            Call::Reset { groups, request_id } => {
                let (limit_group_ids, request_id) = (groups.clone(), request_id.clone());
                let reason = "they asked for it".to_owned();
                let request = v1::ResetUsageRequest { user_id, limit_group_ids, reason, request_id };
                metering.reset_usage(asked(request)).await.map(|answer| Answer::Reset(answer.into_inner()))
            }
            Call::CanUse { event } => {
                let request = v1::CanUseRequest { user_id, event: with(event, None) };
                metering.can_use(asked(request)).await.map(|answer| Answer::CanUse(answer.into_inner()))
            }
            Call::Usage { pattern, at: when } => {
                let at = when.as_ref().map(|when| timestamp(at(when)));
                let request = v1::GetUsageRequest { user_id, event: pattern.clone(), at };
                metering.get_usage(asked(request)).await.map(|answer| Answer::Usage(answer.into_inner()))
            }
            Call::Reservation { of } => {
                let found = metering.get_reservation(asked(v1::GetReservationRequest { reservation_id: id_of(*of) }));
                found.await.map(|answer| {
                    let found = answer.into_inner().reservation.expect("a reservation");
                    Answer::Reservation(self.with_name(found))
                })
            }
            Call::Reservations { page_size } => self.holds(metering, &user_id, *page_size).await.map(Answer::Holds),
            Call::Upsert { plan, overrides, end, anchor, etag, wrong_end } => {
                let end_time = end.as_ref().and_then(|end| end.as_ref().map(|end| timestamp(at(end))));
                let (end_time, clear_end_time) = match wrong_end {
                    None => (end_time, matches!(end, Some(None))),
                    Some(WrongEnd::Epoch) => (Some(timestamp(0)), false),
                    Some(WrongEnd::Both) => (Some(timestamp(1_000)), true),
                };
                let request = v1::UpsertSubscriptionRequest {
                    user_id,
                    plan_id: plan.clone(),
                    overrides: overrides.as_ref().map(|own| v1::QuotaOverrides {
                        quotas: own.iter().map(|(id, quota)| (id.clone(), quota_message(*quota))).collect(),
                    }),
                    end_time,
                    cycle_anchor: anchor.as_ref().map(|anchor| timestamp(at(anchor))),
                    clear_end_time,
                    etag: etag.map(|made| self.names.etag(made)).unwrap_or_default(),
                };
                let answer = subscriptions.upsert_subscription(asked(request)).await;
                answer.map(|answer| Answer::Subscription(answer.into_inner().subscription))
            }
            Call::Subscription => {
                let answer = subscriptions.get_subscription(asked(v1::GetSubscriptionRequest { user_id })).await;
                answer.map(|answer| Answer::Subscription(answer.into_inner().subscription))
            }
            Call::Cancel { end } => {
                let end_time = end.as_ref().map(|end| timestamp(at(end)));
                let request = v1::CancelSubscriptionRequest { user_id, end_time };
                let answer = subscriptions.cancel_subscription(asked(request)).await;
                answer.map(|answer| Answer::Subscription(answer.into_inner().subscription))
            }
            Call::Delete => {
                let answer = subscriptions.delete_user(asked(v1::DeleteUserRequest { user_id })).await;
                answer.map(|_| Answer::Deleted)
            }
            Call::Step(_) | Call::Jump(_) => Ok(Answer::Stepped),
        };
        answer.unwrap_or_else(|status| fault(&status))
    }
}

impl Names {
    /// The real name of what this operation made.
    pub fn reservation(&self, of: u32) -> String {
        self.reservations.get(&of).cloned().unwrap_or_else(|| NOBODYS.to_owned())
    }

    /// Takes in what the operation of this number made, if it made something.
    pub fn learn(&mut self, number: u32, answer: &Answer) {
        match answer {
            Answer::Reserve(reserved) if !reserved.reservation_id.is_empty() && !reserved.replayed => {
                self.reservations.insert(number, reserved.reservation_id.clone());
                self.symbols.insert(reserved.reservation_id.clone(), format!("r{number}"));
            }
            Answer::Track(tracked) if !tracked.event_id.is_empty() && !tracked.replayed => {
                self.symbols.insert(tracked.event_id.clone(), format!("e{number}"));
            }
            _ => {}
        }
    }

    /// The etag of the version that this operation has made.
    pub fn etag(&self, of: u32) -> String {
        self.etags.get(&of).cloned().unwrap_or_else(|| "no such version".to_owned())
    }

    /// Takes in a version that nobody has seen before. Operations come one after the other, so that this one has made it.
    fn learn_etag(&mut self, number: u32, answer: &Answer) {
        let Some(etag) = answer.clone().subscription_mut().map(|told| told.etag.clone()) else { return };
        if !self.symbols.contains_key(&etag) {
            self.symbols.insert(etag.clone(), format!("v{number}"));
            self.etags.insert(number, etag);
        }
    }

    /// The answer, with what the service named at random named by the operation that made it.
    pub fn symbolic(&self, user: usize, mut answer: Answer) -> Answer {
        let symbol = |real: &mut String| {
            if let Some(symbol) = self.symbols.get(real) {
                real.clone_from(symbol);
            }
        };
        match &mut answer {
            Answer::Reserve(reserved) => symbol(&mut reserved.reservation_id),
            Answer::Track(tracked) => symbol(&mut tracked.event_id),
            Answer::Reservation(found) => symbol(&mut found.reservation_id),
            Answer::Holds(holds) => {
                holds.iter_mut().for_each(|hold| symbol(&mut hold.reservation_id));
                holds.sort_by(|one, two| one.reservation_id.cmp(&two.reservation_id));
            }
            _ => {}
        }
        if let Some(subscription) = answer.subscription_mut() {
            subscription.user_id = format!("user{user}");
            let symbol = self.symbols.get(&subscription.etag).map_or(SOME_ETAG, String::as_str);
            symbol.clone_into(&mut subscription.etag);
        }
        answer
    }
}

/// From whoever may call everything.
fn asked<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(Admitted::uncounted(Caller::secret(AppId::default())));
    request
}

fn message(actual: &Actual) -> v1::Actual {
    v1::Actual {
        quantity: actual.quantity.map(double),
        quantities: actual.quantities.iter().map(|(name, micros)| (name.clone(), double(*micros))).collect(),
        metadata: actual.metadata.clone(),
    }
}

fn on_expiry_message(on_expiry: OnExpiry) -> v1::OnExpiry {
    match on_expiry {
        OnExpiry::Unsaid => v1::OnExpiry::Unspecified,
        OnExpiry::Release => v1::OnExpiry::Release,
        OnExpiry::Count => v1::OnExpiry::Count,
    }
}

fn quota_message(quota: Quota) -> v1::Quota {
    let limit = match quota {
        Quota::Amount(micros) => v1::quota::Limit::Amount(double(micros)),
        Quota::Unlimited => v1::quota::Limit::Unlimited(true),
    };
    v1::Quota { limit: Some(limit) }
}

fn fault(status: &Status) -> Answer {
    let details = status.get_error_details();
    let info = details.error_info().unwrap_or_else(|| panic!("a fault without ErrorInfo: {status:?}"));
    let facts = info.metadata.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    Answer::Fault(status.code(), info.reason.clone(), facts)
}
