//! The kinds of calls that are counted one after another, and the catalog they are made against.

use anyhow::{Result, bail};
use tollgate::grpc::v1;
use tollgate::grpc::v1::metering_service_client::MeteringServiceClient;
use tollgate::grpc::v1::plan_service_client::PlanServiceClient;
use tonic::transport::Channel;

/// One kind of call.
pub struct Case {
    /// Its name in the table and in the file.
    pub name: &'static str,
    /// The plan its users are subscribed to.
    pub plan: &'static str,
    /// The outcome every call must have. Any other outcome means that the figure belongs to a different kind of call.
    pub ends: Outcome,
    /// Makes what each call needs to find.
    pub before: Option<fn(&Turn) -> CountedCall>,
    /// The call.
    pub call: fn(&Turn) -> CountedCall,
    /// The number of live holds of its single user.
    pub live_holds: usize,
}

/// The user and the number that one call is made for.
pub struct Turn {
    /// The user.
    pub user: String,
    /// Differs between all turns of a user.
    pub number: usize,
    /// The reservation that `before` made.
    pub reservation_id: String,
}

/// A request.
#[allow(missing_docs)]
pub enum CountedCall {
    Reserve(v1::ReserveRequest),
    Commit(v1::CommitRequest),
    Release(v1::ReleaseRequest),
    Track(v1::TrackRequest),
    BatchTrack(v1::BatchTrackRequest),
    CanUse(v1::CanUseRequest),
    GetReservation(v1::GetReservationRequest),
    ListReservations(v1::ListReservationsRequest),
    GetUsage(v1::GetUsageRequest),
    ResetUsage(v1::ResetUsageRequest),
    ListPlans,
}

/// The outcome of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The call did, or reported, what was asked.
    Done,
    /// A limit was reached.
    Denied,
    /// The call had been done before.
    Replayed,
}

/// Returns all cases, in the order of the table.
pub fn cases() -> Vec<Case> {
    let case = |name, plan, call| Case { name, plan, call, ends: Outcome::Done, before: None, live_holds: 0 };
    vec![
        case("reserve", "three", reserve_once),
        Case { ends: Outcome::Denied, ..case("reserve, denied", "full", reserve_once) },
        Case {
            ends: Outcome::Replayed,
            before: Some(reserve_once),
            ..case("reserve, replayed", "three", reserve_once)
        },
        case("reserve, 1 group", "groups-1", reserve),
        case("reserve, 10 groups", "groups-10", reserve),
        case("reserve, 50 groups", "groups-50", reserve),
        Case { live_holds: 1000, ..case("reserve, 1000 holds", "three", reserve_once) },
        Case { before: Some(reserve), ..case("commit", "three", commit) },
        Case { before: Some(reserve), ..case("release", "three", release) },
        case("track", "three", track),
        case("track, request id", "three", track_once),
        case("track, with a time", "three", track_earlier),
        case("reset usage", "three", reset_usage),
        case("batch track, 10 requests", "three", batch_track),
        case("can use", "three", can_use),
        Case { before: Some(reserve), ..case("get reservation", "three", get_reservation) },
        Case { live_holds: 10, ..case("list reservations, 10 holds", "three", list_reservations) },
        case("get usage", "three", get_usage),
        case("list plans", "three", |_| CountedCall::ListPlans),
    ]
}

fn event() -> v1::Event {
    v1::Event {
        name: "llm.tokens".to_owned(),
        quantity: None,
        quantities: [("prompt_tokens".to_owned(), 1200.0), ("completion_tokens".to_owned(), 350.0)].into(),
        metadata: [("provider".to_owned(), "openai".to_owned()), ("model".to_owned(), "gpt-4o".to_owned())].into(),
    }
}

/// Longer than any run takes, so that no hold lapses in it.
const TTL: prost_types::Duration = prost_types::Duration { seconds: 3600, nanos: 0 };

/// Holds what the event may cost, without an id.
pub fn reserve(turn: &Turn) -> CountedCall {
    let request =
        v1::ReserveRequest { user_id: turn.user.clone(), event: Some(event()), ttl: Some(TTL), ..Default::default() };
    CountedCall::Reserve(request)
}

fn reserve_once(turn: &Turn) -> CountedCall {
    CountedCall::Reserve(v1::ReserveRequest {
        user_id: turn.user.clone(),
        event: Some(event()),
        ttl: Some(TTL),
        request_id: request_id(turn),
        ..v1::ReserveRequest::default()
    })
}

fn commit(turn: &Turn) -> CountedCall {
    let quantities = [("prompt_tokens".to_owned(), 1200.0), ("completion_tokens".to_owned(), 270.0)].into();
    let actual = Some(v1::Actual { quantities, ..v1::Actual::default() });
    CountedCall::Commit(v1::CommitRequest {
        reservation_id: turn.reservation_id.clone(),
        actual,
        ..v1::CommitRequest::default()
    })
}

fn release(turn: &Turn) -> CountedCall {
    CountedCall::Release(v1::ReleaseRequest { reservation_id: turn.reservation_id.clone(), ..Default::default() })
}

fn track(turn: &Turn) -> CountedCall {
    CountedCall::Track(v1::TrackRequest { user_id: turn.user.clone(), event: Some(event()), ..Default::default() })
}

fn track_once(turn: &Turn) -> CountedCall {
    CountedCall::Track(v1::TrackRequest {
        user_id: turn.user.clone(),
        event: Some(event()),
        request_id: request_id(turn),
        ..Default::default()
    })
}

fn track_earlier(turn: &Turn) -> CountedCall {
    let now = std::time::SystemTime::now();
    CountedCall::Track(v1::TrackRequest {
        user_id: turn.user.clone(),
        event: Some(event()),
        time: Some(now.into()),
        ..Default::default()
    })
}

fn reset_usage(turn: &Turn) -> CountedCall {
    CountedCall::ResetUsage(v1::ResetUsageRequest { user_id: turn.user.clone(), ..Default::default() })
}

/// Ten events of one user, who cannot be in two places: they are counted one after the other.
fn batch_track(turn: &Turn) -> CountedCall {
    let request = |_| v1::TrackRequest { user_id: turn.user.clone(), event: Some(event()), ..Default::default() };
    CountedCall::BatchTrack(v1::BatchTrackRequest { requests: (0..10).map(request).collect() })
}

fn get_reservation(turn: &Turn) -> CountedCall {
    CountedCall::GetReservation(v1::GetReservationRequest { reservation_id: turn.reservation_id.clone() })
}

fn list_reservations(turn: &Turn) -> CountedCall {
    CountedCall::ListReservations(v1::ListReservationsRequest { user_id: turn.user.clone(), ..Default::default() })
}

fn can_use(turn: &Turn) -> CountedCall {
    CountedCall::CanUse(v1::CanUseRequest { user_id: turn.user.clone(), event: Some(event()) })
}

fn get_usage(turn: &Turn) -> CountedCall {
    CountedCall::GetUsage(v1::GetUsageRequest { user_id: turn.user.clone(), ..Default::default() })
}

fn request_id(turn: &Turn) -> String {
    format!("request-{:06}", turn.number)
}

/// Sends calls to a server.
pub struct Client {
    /// The client for metering, over the server's connection.
    pub metering: MeteringServiceClient<Channel>,
    /// The client for plans, over the same connection.
    pub plans: PlanServiceClient<Channel>,
}

impl Client {
    /// Makes a call. Returns how it ended, and of a reservation its id.
    pub async fn send(&mut self, call: CountedCall) -> Result<(Outcome, String)> {
        let none = String::new();
        let ended = |replayed| if replayed { Outcome::Replayed } else { Outcome::Done };
        Ok(match call {
            CountedCall::Reserve(request) => {
                let answer = self.metering.reserve(request).await?.into_inner();
                let outcome = if answer.allowed { ended(answer.replayed) } else { Outcome::Denied };
                (outcome, answer.reservation_id)
            }
            CountedCall::Commit(request) => (ended(self.metering.commit(request).await?.into_inner().replayed), none),
            CountedCall::Release(request) => (ended(self.metering.release(request).await?.into_inner().replayed), none),
            CountedCall::Track(request) => {
                let answer = self.metering.track(request).await?.into_inner();
                if answer.match_status() != v1::MatchStatus::Matched {
                    bail!("an event was not counted: {answer:?}");
                }
                (ended(answer.replayed), none)
            }
            CountedCall::BatchTrack(request) => {
                for result in self.metering.batch_track(request).await?.into_inner().results {
                    let Some(v1::batch_track_result::Result::Response(answer)) = result.result else {
                        bail!("an event was not counted: {result:?}");
                    };
                    if answer.match_status() != v1::MatchStatus::Matched {
                        bail!("an event was not counted: {answer:?}");
                    }
                }
                (Outcome::Done, none)
            }
            CountedCall::GetReservation(request) => {
                self.metering.get_reservation(request).await?;
                (Outcome::Done, none)
            }
            CountedCall::ListReservations(request) => {
                if self.metering.list_reservations(request).await?.into_inner().reservations.is_empty() {
                    bail!("no hold is listed");
                }
                (Outcome::Done, none)
            }
            CountedCall::CanUse(request) => {
                let allowed = self.metering.can_use(request).await?.into_inner().allowed;
                (if allowed { Outcome::Done } else { Outcome::Denied }, none)
            }
            CountedCall::GetUsage(request) => {
                self.metering.get_usage(request).await?;
                (Outcome::Done, none)
            }
            CountedCall::ResetUsage(request) => {
                let answer = self.metering.reset_usage(request).await?.into_inner();
                (ended(answer.replayed), none)
            }
            CountedCall::ListPlans => {
                self.plans.list_plans(v1::ListPlansRequest {}).await?;
                (Outcome::Done, none)
            }
        })
    }
}

/// Plans of three groups as people write them, one of them full after one call; and of 1, 10 and 50 groups that all match.
pub fn catalog() -> String {
    let mut text = "plans:\n".to_owned();
    for (plan, calls) in [("three", "1000000000"), ("full", "1")] {
        text += &format!(
            "  {plan}:
    period: monthly
    limit_groups:
      - id: tokens_total
        label: Tokens
        unit: tokens
        quota: 1000000000
        match:
          - {{ event: llm.tokens, measure: {{ prompt_tokens: 1, completion_tokens: 1 }} }}
      - id: spend
        label: Spend
        unit: cents
        quota: 1000000
        match:
          - event: llm.tokens
            metadata: {{ provider: openai, model: [gpt-4o, gpt-4o-2*] }}
            measure: {{ prompt_tokens: 0.00025, completion_tokens: 0.001 }}
          - {{ event: image.render, measure: {{ quantity: 4 }} }}
      - id: calls
        label: Calls
        unit: count
        quota: {calls}
        match:
          - {{ event: \"llm.*\", measure: events }}
"
        );
    }
    for groups in [1, 10, 50] {
        text += &format!("  groups-{groups}:\n    period: monthly\n    limit_groups:\n");
        for group in 1..=groups {
            text += &format!(
                "      - id: group_{group:02}
        label: Group {group:02}
        unit: tokens
        quota: 1000000000
        match:
          - {{ event: llm.tokens, measure: {{ prompt_tokens: 1, completion_tokens: 1 }} }}
"
            );
        }
    }
    text
}
