//! The reference model's Track, and refunds by the rules of the event.

use tollgate::grpc::v1;
use tonic::Code;

use crate::answers::{Answer, claim_row, fault, invalid, row, uncounted};
use crate::decisions::{Asked, Match};
use crate::operations::Refund;
use crate::reference::{Model, Outcome};
use crate::sketch::Event;
use crate::user::{Claim, Id};
use crate::windows::Wanted;

impl Model {
    #[allow(clippy::too_many_arguments)]
    pub fn track(
        &mut self,
        number: u32,
        replica: usize,
        user: usize,
        event: &Event,
        request_id: &str,
        enforce: bool,
        refund: Option<Refund>,
        at: Option<i64>,
    ) -> Outcome {
        if event.refunded().is_none() && refund.is_some_and(|refund| !refund.in_metadata) {
            return Err(invalid("INVALID_FIELD"));
        }
        let refund = refund.filter(|_| event.refunded().is_some());
        if let Some(refund) = refund
            && !self.users[user].reserved.contains(&refund.of)
        {
            self.cover("a reservation that is unknown or forgotten");
            return Err(fault(Code::NotFound, "RESERVATION_NOT_FOUND"));
        }
        let now = self.users[user].now;
        if at.is_some_and(|at| at < 0 || enforce || event.refunded().is_some()) {
            self.cover("a track with a time and what does not go with it");
            return Err(invalid("INVALID_FIELD"));
        }
        let body = format!("track {:?} {enforce} {refund:?} {at:?}", event.normal());
        if let Some(memory) = self.users[user].recall(request_id) {
            let Id::Track { body: first, number, claims, .. } = memory else { return Err(self.reused("other RPC")) };
            if first != body {
                return Err(self.reused("other body"));
            }
            self.cover("a track asked again");
            return Ok(self.tracked(user, number, &claims, true));
        }
        if at.is_some_and(|at| at > now + 60_000) {
            self.cover("a track with a time in the future");
            return Err(invalid("INVALID_FIELD"));
        }
        let past = at.map(|at| at.min(now));
        let claims = match (event.refunded(), refund) {
            (Some(name), Some(refund)) => self.refund_reservation(user, refund.of, event, name)?,
            (refunded, _) => {
                let Some((plan, anchor)) = self.deciding(replica, user)? else {
                    return Err(uncounted(v1::MatchStatus::NoSubscription, v1::Reason::NoSubscription));
                };
                let before = self.users[user].clone();
                let name = refunded.unwrap_or(&event.name);
                let asked = if refunded.is_some() { Asked::Refund } else { Asked::Charge };
                let matches = self.matches(user, &plan, anchor, event, name, asked, past)?;
                if matches.is_empty() {
                    self.cover("a track that matches nothing");
                    return Err(uncounted(v1::MatchStatus::Unmatched, v1::Reason::UnmatchedEvent));
                }
                if refunded.is_some() {
                    self.uses_default(user, &plan);
                    self.refund(user, &matches)
                } else if enforce && matches.iter().any(|found| !self.fits(user, found)) {
                    self.cover("an enforced track is blocked");
                    let limits = self.rows(user, &matches, true);
                    self.restore(user, before);
                    return Ok(Answer::Track(v1::TrackResponse {
                        match_status: v1::MatchStatus::Blocked.into(),
                        limits,
                        reasons: vec![v1::Reason::LimitReached.into()],
                        ..Default::default()
                    }));
                } else {
                    self.uses_default(user, &plan);
                    self.count(user, &matches)?
                }
            }
        };
        if !request_id.is_empty() {
            // What happened earlier may have waited for long.
            let remembered =
                if at.is_some() { self.settings.replay_ms.max(24 * 3_600_000) } else { self.settings.replay_ms };
            let forgotten = now + remembered;
            let memory = Id::Track { body, number, claims: claims.clone(), forgotten };
            self.users[user].ids.insert(request_id.to_owned(), memory);
        }
        Ok(self.tracked(user, number, &claims, false))
    }

    /// Takes back what was counted in the current windows of these groups, or of all of the plan.
    pub fn reset(&mut self, replica: usize, user: usize, ids: &[String], request_id: &str) -> Outcome {
        let body = format!("reset {ids:?}");
        let mut replayed = false;
        if let Some(memory) = self.users[user].recall(request_id) {
            let Id::Reset { body: first, .. } = memory else { return Err(self.reused("other RPC")) };
            if first != body {
                return Err(self.reused("other body"));
            }
            replayed = true;
        }
        let Some((plan, anchor)) = self.deciding(replica, user)? else {
            return Err(fault(Code::FailedPrecondition, "NO_SUBSCRIPTION"));
        };
        let is_unknown = |id: &String| plan.groups.iter().all(|group| group.id != *id);
        if !replayed && ids.iter().any(is_unknown) {
            self.cover("a reset of an unknown group");
            return Err(invalid("GROUP_UNKNOWN"));
        }
        let mut limits = Vec::new();
        for group in plan.groups.iter().filter(|group| ids.is_empty() || ids.contains(&group.id)) {
            let wanted = Wanted { group, zone: plan.zone, cycle_anchor: anchor };
            let this = &mut self.users[user];
            let (bounds, counted) = match this.windows.open_one(wanted, this.now) {
                Ok(window) => {
                    if !replayed {
                        this.windows[window].used = 0;
                        this.windows[window].resets += 1;
                        this.begins_anew(window);
                    }
                    (this.bounds(window), (this.windows[window].used, this.held(window)))
                }
                Err(bounds) => {
                    self.cover("a reset of a window that is not open");
                    (bounds, (0, 0))
                }
            };
            limits.push(row(group, bounds, counted));
        }
        let answer = Answer::Reset(v1::ResetUsageResponse { limits, replayed });
        if replayed {
            self.cover("a reset asked again");
            return Err(answer);
        }
        self.cover("reset");
        self.uses_default(user, &plan);
        if !request_id.is_empty() {
            let memory = Id::Reset { body, forgotten: self.users[user].now + self.settings.replay_ms };
            self.users[user].ids.insert(request_id.to_owned(), memory);
        }
        Ok(answer)
    }

    fn count(&mut self, user: usize, matches: &[Match<'_>]) -> Result<Vec<(Claim, u128)>, Answer> {
        if matches.iter().any(|found| self.overflows(user, found)) {
            self.cover("an amount that no counter can hold");
            return Err(fault(Code::OutOfRange, "OUT_OF_RANGE"));
        }
        if matches.iter().all(|found| found.window.is_none()) {
            self.cover("a track with a time whose windows are all gone");
            return Err(fault(Code::FailedPrecondition, "WINDOW_CLOSED"));
        }
        if matches.iter().any(|found| found.window.is_none()) {
            self.cover("a track with a time of which some windows are gone");
        }
        if matches.iter().any(|found| !self.fits(user, found)) {
            self.cover("a track passes a limit");
        }
        self.cover("tracked");
        self.cover_free(user, matches);
        for found in matches {
            if let Some(window) = found.window {
                self.users[user].windows[window].used += found.charge;
            }
        }
        Ok(matches.iter().map(|found| (found.claim(), 0)).collect())
    }

    fn refund(&mut self, user: usize, matches: &[Match<'_>]) -> Vec<(Claim, u128)> {
        let mut claims = Vec::new();
        for found in matches {
            let mut claim = found.claim();
            if found.by_events {
                claim.charge = 0;
                self.cover("a refund where events are counted");
            }
            let window = found.window.expect("the current one is there");
            let window = &mut self.users[user].windows[window];
            let applied = claim.charge.min(window.used);
            window.used -= applied;
            let unapplied = claim.charge - applied;
            if unapplied > 0 {
                self.cover("a refund below 0");
            }
            claims.push((claim, unapplied));
        }
        self.cover("a refund by the event's rules");
        claims
    }

    fn tracked(&self, user: usize, number: u32, claims: &[(Claim, u128)], replayed: bool) -> Answer {
        let user = &self.users[user];
        let rows = claims.iter().map(|(claim, unapplied)| claim_row(user, claim, claim.charge, *unapplied));
        Answer::Track(v1::TrackResponse {
            event_id: format!("e{number}"),
            match_status: v1::MatchStatus::Matched.into(),
            limits: rows.collect(),
            reasons: Vec::new(),
            replayed,
            crossed: Vec::new(),
        })
    }
}
