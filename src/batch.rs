//! The use case of BatchTrack: many requests of Track, some of them at the same time.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt as _};

use crate::domain::answer::Tracked;
use crate::domain::fault::Fault;
use crate::domain::id::Owner;
use crate::meter::{Meter, TrackCall};

/// The number of users whose requests are tracked at the same time. To Redis, a batch is as many callers, so that it does not crowd out
/// others.
const AT_ONCE: usize = 16;

/// The time after which a batch begins no further request. It ends also where Redis answers nothing, and its caller has gone.
const PATIENCE: Duration = Duration::from_secs(20);

/// The calls of one user, in their order, each with its place in the batch.
struct OfUser {
    owner: Owner,
    calls: Vec<(usize, TrackCall)>,
}

impl Meter {
    /// Tracks all of these, those of one user in their order. The outcomes are in the order of the calls.
    pub async fn track_all(&self, calls: Vec<(Owner, TrackCall)>) -> Vec<Result<Tracked, Fault>> {
        let started = Instant::now();
        let users = by_user(calls).into_iter().map(|of_user| self.track_in_order(of_user, started));
        let outcomes: Vec<Vec<_>> = stream::iter(users).buffer_unordered(AT_ONCE).collect().await;
        let mut outcomes: Vec<_> = outcomes.into_iter().flatten().collect();
        outcomes.sort_by_key(|(place, _)| *place);
        outcomes.into_iter().map(|(_, outcome)| outcome).collect()
    }

    /// Tracks the calls of one user. None is tried after one without an answer: a repetition of both would apply them in another order.
    async fn track_in_order(&self, of_user: OfUser, started: Instant) -> Vec<(usize, Result<Tracked, Fault>)> {
        let OfUser { owner, calls } = of_user;
        let mut outcomes = Vec::with_capacity(calls.len());
        let mut unanswered = false;
        for (place, call) in calls {
            let outcome = if unanswered || started.elapsed() >= PATIENCE {
                Err(Fault::NotTried)
            } else {
                self.track(&owner, &call).await
            };
            unanswered |= matches!(outcome, Err(Fault::Unavailable(_) | Fault::Contended | Fault::NotTried));
            outcomes.push((place, outcome));
        }
        outcomes
    }
}

fn by_user(calls: Vec<(Owner, TrackCall)>) -> Vec<OfUser> {
    let mut users: Vec<OfUser> = Vec::new();
    let mut known: HashMap<Owner, usize> = HashMap::new();
    for (place, (owner, call)) in calls.into_iter().enumerate() {
        match known.get(&owner) {
            Some(user) => users[*user].calls.push((place, call)),
            None => {
                known.insert(owner.clone(), users.len());
                users.push(OfUser { owner, calls: vec![(place, call)] });
            }
        }
    }
    users
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::domain::event::{Event, EventName};
    use crate::domain::id::{AppId, UserId};

    #[test]
    fn the_calls_of_a_user_stay_in_their_order() {
        let call = |user: &str| {
            let event = Event::new(EventName::parse("e").unwrap(), None, BTreeMap::new(), BTreeMap::new());
            let owner = Owner::new(&AppId::default(), &UserId::parse(user).unwrap());
            (owner, TrackCall { event, request_id: None, enforce: false, reservation: None, at_ms: None })
        };
        let calls = ["a", "b", "a", "c", "b", "a"].map(call);
        let places: Vec<Vec<_>> =
            by_user(calls.into()).iter().map(|user| user.calls.iter().map(|(place, _)| *place).collect()).collect();
        assert_eq!(places, [vec![0, 2, 5], vec![1, 4], vec![3]]);
        assert!(by_user(Vec::new()).is_empty());
    }
}
