//! Sequences that random operations alone rarely make: each begins with the call that is returned, and plans what comes next.

use std::collections::BTreeMap;

use super::{DAY, Generator, IDS, PLANS, QUANTITIES, USERS, nest, numbers, once_in, pick};
use crate::operations::{Actual, Call, Refund, When};
use crate::sketch::{Event, MICRO};

impl Generator {
    /// The story of this number, from 0 to 5; those of some numbers are rare, and a Reserve takes their place.
    pub fn story(&mut self, number: u32, user: usize, operation: u32) -> Call {
        match number {
            0 if !once_in(&mut self.spice, 3) => self.clock_jumps(),
            1 if once_in(&mut self.random, 2) => self.renewal(user),
            2 if once_in(&mut self.random, 2) => self.tour(user),
            3 => self.full_refund(user, operation),
            4 if once_in(&mut self.random, 6) => self.long_ago(user),
            4 if once_in(&mut self.random, 3) => self.clock_passes_an_end(user),
            5 if once_in(&mut self.random, 2) => self.next_period(user),
            _ => self.reserve(user),
        }
    }

    pub fn plan(&mut self, user: usize, call: Call) {
        self.planned.push_back((user, None, call));
    }

    /// An event that most groups match and can measure.
    fn plain(&mut self) -> Event {
        let quantities = numbers(&mut self.random, 1);
        self.with_model(Event { name: "llm.tokens".to_owned(), quantity: Some(MICRO), quantities, ..Event::default() })
    }

    fn track_plain(&mut self) -> Call {
        Call::Track { event: self.plain(), request_id: String::new(), enforce: false, refund: None, at: None }
    }

    /// Redis's clock is ahead for a while, in which something is counted for both users, and comes back.
    fn clock_jumps(&mut self) -> Call {
        const MINUTE: i64 = 60_000;
        let ahead = [1, 1000, 4 * MINUTE, 5 * MINUTE, 5 * MINUTE + 1, 10 * MINUTE, 3_600_000, DAY, 10 * DAY, 40 * DAY];
        let ahead = pick(&mut self.random, &ahead);
        for user in 0..USERS {
            if once_in(&mut self.random, 2) {
                let ttl_ms = Some(self.random.i64(1000..=3_600_000));
                let event = self.plain();
                self.plan(user, Call::reserve(event, ttl_ms));
            }
            let track = self.track_plain();
            self.plan(user, track);
        }
        self.plan(0, Call::Jump(-ahead));
        for _ in 0..self.random.u32(..3) {
            let user = self.random.usize(..USERS);
            let call = match self.random.u32(..4) {
                0 => Call::commit(self.reservation(user), None),
                1 => Call::Usage { pattern: String::new(), at: None },
                _ => self.track_plain(),
            };
            self.plan(user, call);
        }
        if once_in(&mut self.random, 2) {
            for user in 0..USERS {
                let track = self.track_plain();
                self.plan(user, track);
            }
            self.plan(0, Call::Step(When::After(ahead)));
            self.plan(0, Call::Usage { pattern: String::new(), at: None });
            for user in 0..USERS {
                let track = self.track_plain();
                self.plan(user, track);
            }
        }
        Call::Jump(ahead)
    }

    /// Redis's clock is ahead of the end of a window for a while, so that the next one opens and is set aside.
    fn clock_passes_an_end(&mut self, user: usize) -> Call {
        const AHEAD: i64 = 600_000;
        let calls =
            [Some(Call::Jump(AHEAD)), None, Some(Call::Jump(-AHEAD)), None, Some(Call::Step(When::After(AHEAD))), None];
        for call in calls {
            let call = call.unwrap_or_else(|| self.track_plain());
            self.plan(user, call);
        }
        Call::Step(When::WindowEnd(self.spice.usize(..16), -1000))
    }

    /// A subscription ends, and is renewed before anybody has seen that.
    fn renewal(&mut self, user: usize) -> Call {
        let upsert = |plan: &str, end| Call::Upsert {
            plan: plan.to_owned(),
            overrides: None,
            end,
            anchor: None,
            etag: None,
            wrong_end: None,
        };
        let plan = pick(&mut self.random, &PLANS);
        if once_in(&mut self.random, 2) {
            let track = self.track(user);
            self.plan(user, track);
        }
        self.plan(user, Call::Step(When::SubscriptionEnd(5000)));
        self.plan(user, upsert(plan, Some(None)));
        self.plan(user, Call::Usage { pattern: String::new(), at: None });
        upsert(plan, Some(Some(When::After(1000))))
    }

    /// Some periods after the cycle anchor, that is moved to where a period began, as payment providers do.
    fn next_period(&mut self, user: usize) -> Call {
        let upsert = |plan: &str, anchor| {
            let end = Some(None);
            Call::Upsert {
                plan: plan.to_owned(),
                overrides: None,
                end,
                anchor: Some(anchor),
                etag: None,
                wrong_end: None,
            }
        };
        let track = self.track_plain();
        self.plan(user, track);
        let (number, late) = (self.random.usize(..4), pick(&mut self.random, &[0, 0, 0, 1]));
        self.plan(user, upsert("", When::WindowStart(number, late)));
        self.plan(user, Call::Usage { pattern: String::new(), at: None });
        if once_in(&mut self.random, 3) {
            let back = self.random.i64(-40 * DAY..0);
            self.plan(user, upsert("", When::After(back)));
            let track = self.track_plain();
            self.plan(user, track);
        }
        let ago = [-DAY - 1000, -45 * DAY - 7000, -400 * DAY];
        upsert(pick(&mut self.random, &PLANS), When::After(pick(&mut self.random, &ago)))
    }

    /// Every plan is entered, and every replica counts by it.
    fn tour(&mut self, user: usize) -> Call {
        let upsert = |plan: &str| Call::Upsert {
            plan: plan.to_owned(),
            overrides: None,
            end: Some(None),
            anchor: None,
            etag: None,
            wrong_end: None,
        };
        let mut plans = PLANS;
        self.random.shuffle(&mut plans);
        for plan in plans {
            let first = self.random.usize(..3);
            self.planned.push_back((user, Some(first), upsert(plan)));
            for replica in 0..3 {
                let track = self.track_plain();
                self.planned.push_back((user, Some(replica), track));
            }
        }
        let last = pick(&mut self.random, &PLANS);
        self.plan(user, upsert(last));
        self.plan(user, Call::Usage { pattern: String::new(), at: None });
        upsert(plans[0])
    }

    /// All that was committed is refunded.
    fn full_refund(&mut self, user: usize, number: u32) -> Call {
        let event = if once_in(&mut self.random, 2) { self.event(user) } else { self.plain() };
        let mut refunded = event.clone();
        refunded.name.push_str(".refund");
        // The counters are reset before it is committed, or after that.
        let resets = (once_in(&mut self.spice, 4), once_in(&mut self.spice, 4));
        let request_id = pick(&mut self.spice, &IDS).to_owned();
        if resets.0 {
            self.plan(user, Call::Reset { groups: Vec::new(), request_id: request_id.clone() });
        }
        self.plan(user, Call::commit(number, None));
        if resets.1 {
            self.plan(user, Call::Reset { groups: Vec::new(), request_id });
        }
        let refund = Some(Refund { of: number, in_metadata: false });
        // Sometimes once more, when nothing is left of it.
        for _ in 0..self.random.u32(1..3) {
            let event = refunded.clone();
            self.plan(user, Call::Track { event, request_id: String::new(), enforce: false, refund, at: None });
        }
        Call::reserve(event, None)
    }

    /// A reservation whose quantities have parts is settled, by some of them, and refunded bit by bit.
    pub fn parts(&mut self, user: usize, number: u32) -> Call {
        let mut some = |most: u128, times: u32| {
            let spice = &mut self.spice;
            let mut quantities = BTreeMap::new();
            for name in QUANTITIES {
                if !once_in(spice, times) {
                    quantities.insert(name.to_owned(), spice.u128(0..2 * most) * MICRO / 2);
                }
            }
            nest(spice, &mut quantities);
            quantities
        };
        let (reserved, actual) = (some(8, 20), some(8, 2));
        let refunds = [some(4, 2), some(4, 2), some(40, 8)];
        let event = Event { name: "llm.tokens".to_owned(), quantities: reserved, ..Event::default() };
        let actual = (!once_in(&mut self.spice, 3)).then_some(Actual { quantities: actual, ..Actual::default() });
        self.plan(user, Call::commit(number, actual));
        let refund = Some(Refund { of: number, in_metadata: false });
        for quantities in refunds {
            let event = Event { name: "llm.tokens.refund".to_owned(), quantities, ..Event::default() };
            self.plan(user, Call::Track { event, request_id: String::new(), enforce: false, refund, at: None });
        }
        self.plan(user, Call::Reservation { of: number });
        Call::reserve(event, None)
    }

    /// A user who is on the default plan and subscribes when nothing of that is left.
    fn long_ago(&mut self, user: usize) -> Call {
        let track = self.track_plain();
        self.plan(user, track);
        let later = pick(&mut self.random, &[400 * DAY, 800 * DAY]);
        self.plan(user, Call::Step(When::After(later)));
        let plan = pick(&mut self.random, &PLANS).to_owned();
        self.plan(user, Call::Upsert { plan, overrides: None, end: None, anchor: None, etag: None, wrong_end: None });
        Call::Delete
    }
}
