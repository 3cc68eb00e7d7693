//! The reference model's Track, and refunds by the rules of the event.

use tollgate::grpc::v1;
use tonic::Code;

use crate::answers::{Answer, claim_row, fault, invalid, uncounted};
use crate::decisions::{Asked, Match};
use crate::operations::Refund;
use crate::reference::{Model, Outcome};
use crate::sketch::Event;
use crate::user::{Claim, Id};

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
        let body = format!("track {:?} {enforce} {refund:?}", event.normal());
        if let Some(memory) = self.users[user].recall(request_id) {
            let Id::Track { body: first, number, claims, .. } = memory else { return Err(self.reused("other RPC")) };
            if first != body {
                return Err(self.reused("other body"));
            }
            self.cover("a track asked again");
            return Ok(self.tracked(user, number, &claims, true));
        }
        let claims = match (event.refunded(), refund) {
            (Some(name), Some(refund)) => self.refund_reservation(user, refund.of, event, name)?,
            (refunded, _) => {
                let Some((plan, anchor)) = self.deciding(replica, user)? else {
                    return Err(uncounted(v1::MatchStatus::NoSubscription, v1::Reason::NoSubscription));
                };
                let before = self.users[user].clone();
                let name = refunded.unwrap_or(&event.name);
                let asked = if refunded.is_some() { Asked::Refund } else { Asked::Charge };
                let matches = self.matches(user, &plan, anchor, event, name, asked)?;
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
            let forgotten = self.users[user].now + self.settings.replay_ms;
            let memory = Id::Track { body, number, claims: claims.clone(), forgotten };
            self.users[user].ids.insert(request_id.to_owned(), memory);
        }
        Ok(self.tracked(user, number, &claims, false))
    }

    fn count(&mut self, user: usize, matches: &[Match<'_>]) -> Result<Vec<(Claim, u128)>, Answer> {
        if matches.iter().any(|found| self.overflows(user, found)) {
            self.cover("an amount that no counter can hold");
            return Err(fault(Code::OutOfRange, "OUT_OF_RANGE"));
        }
        if matches.iter().any(|found| !self.fits(user, found)) {
            self.cover("a track passes a limit");
        }
        self.cover("tracked");
        self.cover_free(user, matches);
        for found in matches {
            self.users[user].windows[found.window].used += found.charge;
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
            let window = &mut self.users[user].windows[found.window];
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
        })
    }
}
