//! The clients' reservations: how they are made, extended, counted and settled.

use std::ops::RangeInclusive;

use tollgate::grpc::v1;
use tonic::Code;

use super::{Client, User, add, event};

impl Client {
    /// Reserves, and settles in one of the ways that callers do.
    pub async fn reserve(&mut self, user: &User) {
        let quantity = self.random.u64(1..=20);
        let counts = self.random.u32(..8) == 0;
        let on_expiry = if counts { v1::OnExpiry::Count } else { v1::OnExpiry::Unspecified };
        let request = v1::ReserveRequest {
            user_id: user.id.clone(),
            event: event("work", quantity),
            ttl: self.ttl(),
            request_id: self.request_id(),
            on_expiry: on_expiry.into(),
        };
        let answer = self.ask_reserve(user, &request).await;
        if !answer.allowed {
            assert_eq!(answer.reasons, [i32::from(v1::Reason::LimitReached)]);
            self.denied(user).await;
            return;
        }
        add(&user.tally.allowed, 1);
        add(&user.tally.replayed, u64::from(answer.replayed));
        if self.asks_again() {
            let again = self.ask_reserve(user, &request).await;
            let first = (true, &answer.reservation_id, &answer.expire_time);
            assert_eq!((again.replayed, &again.reservation_id, &again.expire_time), first, "{again:?}");
        }
        let id = answer.reservation_id;
        match self.random.u32(..10) {
            // The deadline counts all of it. A commit of as much does not change that, whenever it comes.
            0..5 if counts => {
                add(&user.tally.expired, 1);
                counted(user, 0, quantity, true);
            }
            _ if counts => self.commit(user, &id, 0, quantity..=quantity, true).await,
            // The caller crashes.
            0 => add(&user.tally.abandoned, 1),
            1..3 => self.release(user, id).await,
            3..5 => self.stream(user, &id, quantity).await,
            _ => self.commit(user, &id, 0, 1..=quantity, true).await,
        }
    }

    fn ttl(&self) -> Option<prost_types::Duration> {
        Some(prost_types::Duration::try_from(self.plan.ttl).expect("a short time"))
    }

    /// Settles for a total in these bounds, of which `before` was counted. `is_first` if nothing was counted, not even the call.
    async fn commit(
        &mut self,
        user: &User,
        reservation_id: &str,
        before: u64,
        bounds: RangeInclusive<u64>,
        is_first: bool,
    ) {
        let used = self.random.u64(bounds);
        let is_fallback = self.random.u32(..6) == 0;
        let mut actual = v1::Actual { quantity: Some(used as f64), ..v1::Actual::default() };
        if is_fallback {
            actual.metadata.insert("model".to_owned(), "fallback".to_owned());
        }
        let request = v1::CommitRequest {
            reservation_id: reservation_id.to_owned(),
            actual: Some(actual),
            ..v1::CommitRequest::default()
        };
        let Some(answer) = self.ask_commit(user, &request).await else { return };
        counted(user, before, used, is_first);
        add(&user.tally.fallbacks, if is_fallback { used } else { 0 });
        add(&user.tally.limited_late, if self.may_exceed(&answer) { used } else { 0 });
        add(&user.tally.late, u64::from(answer.late));
        add(&user.tally.replayed, u64::from(answer.replayed));
    }

    async fn ask_commit(&mut self, user: &User, request: &v1::CommitRequest) -> Option<v1::CommitResponse> {
        let answer = self.ask(user, |mut stub| {
            let request = request.clone();
            async move { stub.commit(request).await }
        });
        answer.await
    }

    /// Whether it may have passed the limit: after the deadline, or beyond what is held since an Extend was forgotten.
    fn may_exceed(&self, answer: &v1::CommitResponse) -> bool {
        answer.late || self.plan.may_forget && answer.overage
    }

    /// Commits in part, each time a larger total, and asks for more room. In the end it commits, releases, or crashes: what was counted stays.
    async fn stream(&mut self, user: &User, reservation_id: &str, reserved: u64) {
        let (mut total, mut room) = (0, reserved);
        for part in 0..self.random.u32(1..=3) {
            if self.random.bool() {
                room += self.extend(user, reservation_id).await;
            }
            let so_far = self.random.u64(total..=room);
            let request = v1::CommitRequest {
                reservation_id: reservation_id.to_owned(),
                actual: Some(v1::Actual { quantity: Some(so_far as f64), ..v1::Actual::default() }),
                partial: true,
                ttl: self.ttl().filter(|_| self.random.bool()),
            };
            let Some(answer) = self.ask_commit(user, &request).await else { return };
            add(&user.tally.parts, 1);
            counted(user, total, so_far, part == 0);
            add(&user.tally.limited_late, if self.may_exceed(&answer) { so_far - total } else { 0 });
            total = so_far;
        }
        match self.random.u32(..4) {
            0 => add(&user.tally.abandoned, 1),
            1 => self.release(user, reservation_id.to_owned()).await,
            _ => self.commit(user, reservation_id, total, total..=room, false).await,
        }
    }

    /// Holds more, if there is room for it and the deadline has not passed. Returns how much more.
    async fn extend(&mut self, user: &User, reservation_id: &str) -> u64 {
        let more = self.random.u64(1..=10);
        let request = v1::ExtendRequest {
            reservation_id: reservation_id.to_owned(),
            ttl: self.ttl(),
            add: Some(v1::Actual { quantity: Some(more as f64), ..v1::Actual::default() }),
            request_id: self.request_id(),
        };
        let answer = self.ask(user, |mut stub| {
            let request = request.clone();
            async move {
                match stub.extend(request).await {
                    // Its deadline has passed.
                    Err(status) if status.code() == Code::FailedPrecondition => {
                        Ok(tonic::Response::new(v1::ExtendResponse::default()))
                    }
                    other => other,
                }
            }
        });
        let Some(answer) = answer.await else { return 0 };
        add(&user.tally.extended, u64::from(answer.extended));
        add(&user.tally.replayed, u64::from(answer.replayed));
        if answer.extended { more } else { 0 }
    }

    async fn release(&mut self, user: &User, reservation_id: String) {
        let request = v1::ReleaseRequest { reservation_id, reason: String::new() };
        let answer = self.ask(user, |mut stub| {
            let request = request.clone();
            async move { stub.release(request).await }
        });
        if let Some(answer) = answer.await {
            add(&user.tally.released, 1);
            // What has lapsed is answered as it is, however often.
            let again = answer.replayed && answer.state() == v1::ReservationState::Released;
            add(&user.tally.replayed, u64::from(again));
        }
    }
}

/// Notes that a reservation has counted this total, and what it had counted before.
fn counted(user: &User, before: u64, total: u64, is_first: bool) {
    add(&user.tally.calls, u64::from(is_first));
    add(&user.tally.all, total - before);
    add(&user.tally.limited, total - before);
}
