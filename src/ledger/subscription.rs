//! `subscription_get` and `subscription_put`: a user's subscription as it is stored.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::answer::{About, NoAnswer, Reply, unfitting};
use super::frames::Frames;
use super::message::Message;
use super::packed::Reader;
use super::plan::CompiledPlan;
use super::{Ledger, formats};
use crate::domain::amount::Quantity;
use crate::domain::fault::Fault;
use crate::domain::id::Owner;
use crate::domain::subscription::{QuotaOverride, Revision, Subscription};

/// A user's stored subscription, and the time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The user's time.
    pub now_ms: i64,
    /// Redis's own time.
    pub redis_ms: i64,
    /// The subscription.
    pub subscription: Option<Subscription>,
    /// The plan that the counters were last used with; empty if that has left nothing.
    pub plan: String,
}

impl Stored {
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, Fault> {
        let misfit = |error| Fault::Internal(Box::new(error));
        let stale = formats::Stale::read(reader).map_err(misfit)?;
        let plan = String::from_utf8(stale.plan).map_err(|error| Fault::Internal(error.into()))?;
        let fallen_to = match stale.subscribed {
            0 | 1 => None,
            2 => Some(plan.clone()),
            other => return Err(unfitting(("subscribed", other))),
        };
        let subscription = match stale.subscribed {
            0 => None,
            _ => Some(decoded(&stale.blob, stale.revision, fallen_to)?),
        };
        Ok(Self { now_ms: stale.now, redis_ms: stale.redis_now, subscription, plan })
    }
}

/// A subscription as it is stored: plan, start, end or 0, cycle anchor, overrides. Only this file reads it; what scripts have to know of it
/// stands beside it.
#[derive(Serialize, Deserialize)]
struct Blob(String, i64, i64, i64, Vec<(String, String)>);

const UNLIMITED: &str = "unlimited";

/// Encodes a subscription for storage, apart from the parts that scripts read, which are stored beside it.
#[must_use]
pub fn encode_subscription(subscription: &Subscription) -> Vec<u8> {
    let Subscription { revision: _, plan_id, start_ms, end_ms, cycle_anchor_ms, fallen_to: _, overrides } =
        subscription;
    let overrides = overrides.iter().map(|(group, quota)| match quota {
        QuotaOverride::Amount(amount) => (group.clone(), amount.to_string()),
        QuotaOverride::Unlimited => (group.clone(), UNLIMITED.to_owned()),
    });
    let end_ms = end_ms.unwrap_or_default();
    encode(&Blob(plan_id.clone(), *start_ms, end_ms, *cycle_anchor_ms, overrides.collect()))
}

/// The owner's own quotas, which are for one plan.
pub(super) struct Overrides {
    /// The plan.
    pub plan_id: String,
    /// By limit group id.
    pub overrides: BTreeMap<String, QuotaOverride>,
}

impl Overrides {
    /// Reads those of a stored subscription.
    pub(super) fn read(blob: &[u8]) -> Result<Self, Fault> {
        let Subscription { plan_id, overrides, .. } = decoded(blob, Revision::default(), None)?;
        Ok(Self { plan_id, overrides })
    }
}

fn decoded(blob: &[u8], revision: Revision, fallen_to: Option<String>) -> Result<Subscription, Fault> {
    let Blob(plan_id, start_ms, end_ms, cycle_anchor_ms, overrides) =
        rmp_serde::from_slice(blob).map_err(|error| Fault::Internal(Box::new(error)))?;
    let overrides = overrides.into_iter().map(|(group, quota)| {
        let quota = match quota.as_str() {
            UNLIMITED => QuotaOverride::Unlimited,
            amount => QuotaOverride::Amount(Quantity::from_decimal(amount).map_err(|_| unfitting(&quota))?),
        };
        Ok((group, quota))
    });
    Ok(Subscription {
        revision,
        plan_id,
        start_ms,
        end_ms: (end_ms != 0).then_some(end_ms),
        cycle_anchor_ms,
        fallen_to,
        overrides: overrides.collect::<Result<BTreeMap<_, _>, Fault>>()?,
    })
}

fn encode(value: &impl Serialize) -> Vec<u8> {
    rmp_serde::to_vec(value).expect("numbers and text can be encoded")
}

/// The effect that a plan has on the counters when a change brings the user to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Apply {
    /// The effect that its `on_plan_change` sets.
    Enter,
    /// Only counts windows from another anchor.
    Realign,
}

/// A plan that a change brings the user to.
#[derive(Debug, Clone)]
pub struct Step {
    /// The effect on the counters.
    pub apply: Apply,
    /// The plan, as the scripts read it.
    pub plan: Arc<CompiledPlan>,
    /// Its windows at the user's time.
    pub frames: Frames,
}

impl Step {
    fn write(&self, bytes: &mut Vec<u8>) {
        let Frames { arrangement, overrides, bytes: frames, .. } = &self.frames;
        formats::Step { arrangement: *arrangement, overrides: *overrides, frames: frames.to_vec() }.write(bytes);
    }
}

/// A change of a subscription.
#[derive(Debug)]
pub struct PutCall<'a> {
    /// The subscription that was read before. If it has changed since, nothing is written.
    pub before: &'a Stored,
    /// The subscription to store.
    pub wanted: &'a Subscription,
    /// The plans that the change brings the user to, one after the other.
    pub steps: &'a [Step],
}

/// The answer to a change that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PutAnswer {
    /// The number of clocks that it has corrected.
    pub corrected_clocks: i64,
}

/// The answer of `subscription_put`.
#[derive(Deserialize)]
struct Written {
    put: (i64,),
}

impl Ledger {
    /// Reads a user's stored subscription.
    ///
    /// # Errors
    /// [`Fault::Unavailable`], or [`Fault::Internal`] for an answer that is not understood.
    pub async fn subscription(&self, owner: &Owner) -> Result<Stored, Fault> {
        let packed = self.run(&self.scripts.subscription_get, owner, Message::about(owner, 0)).await?;
        match Reply::read(&packed)? {
            Reply::Stale(stored) => Ok(*stored),
            _ => self.fault_in(&packed).await,
        }
    }

    /// Writes a subscription, if nobody has written since it was read.
    ///
    /// # Errors
    /// [`NoAnswer::Stale`] if somebody has; as [`Self::subscription`].
    pub async fn put_subscription(&self, owner: &Owner, call: &PutCall<'_>) -> Result<PutAnswer, NoAnswer> {
        let PutCall { before, wanted, steps } = call;
        let mut message = Message::about(owner, 512);
        message.argument(|bytes| write_put(bytes, before, wanted, steps));
        message.argument(|bytes| bytes.extend_from_slice(&encode_subscription(wanted)));
        for step in *steps {
            message.argument(|bytes| step.write(bytes));
            message.argument(|bytes| bytes.extend_from_slice(&step.plan.message));
        }
        let packed = self.run(&self.scripts.subscription_put, owner, message).await?;
        match rmp_serde::from_slice(&packed) {
            Ok(Written { put: (corrected_clocks,) }) => Ok(PutAnswer { corrected_clocks }),
            Err(_) => match Reply::read(&packed)? {
                Reply::Stale(stored) => Err(NoAnswer::Stale(stored)),
                _ => Ok(self.fault_in(&packed).await?),
            },
        }
    }

    /// The fault that a script has answered.
    async fn fault_in<T>(&self, packed: &[u8]) -> Result<T, Fault> {
        match self.answer(packed, About::default()).await {
            Err(NoAnswer::Fault(fault)) => Err(fault),
            other => Err(unfitting(other)),
        }
    }
}

/// Writes the arguments that the script compares and stores beside the subscription: the revision that was read, the
/// plan last used, and the new revision, end (0: never), plan in force, whether that is the default plan after the end,
/// and steps.
fn write_put(bytes: &mut Vec<u8>, before: &Stored, wanted: &Subscription, steps: &[Step]) {
    let read = before.subscription.as_ref().map_or(&[][..], |stored| &stored.revision);
    let in_force = wanted.fallen_to.as_ref().unwrap_or(&wanted.plan_id);
    let steps = steps.iter().map(|step| match step.apply {
        Apply::Enter => "enter",
        Apply::Realign => "realign",
    });
    rmp::encode::write_array_len(bytes, 7).expect("memory takes it");
    write_bytes(bytes, read);
    write_bytes(bytes, before.plan.as_bytes());
    write_bytes(bytes, &wanted.revision);
    bytes.extend_from_slice(&encode(&wanted.end_ms.unwrap_or_default()));
    write_bytes(bytes, in_force.as_bytes());
    bytes.extend_from_slice(&encode(&wanted.fallen_to.is_some()));
    bytes.extend_from_slice(&encode(&steps.collect::<Vec<_>>()));
}

/// Appends bytes as text: the scripts know no other type, and Lua's text is bytes.
fn write_bytes(message: &mut Vec<u8>, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).expect("the ids of plans are short");
    rmp::encode::write_str_len(message, length).expect("memory takes it");
    message.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subscription() -> Subscription {
        Subscription {
            revision: [0xff; 8],
            plan_id: "pro".to_owned(),
            start_ms: 1,
            end_ms: Some(5),
            cycle_anchor_ms: 3,
            fallen_to: None,
            overrides: BTreeMap::from([
                ("a".to_owned(), QuotaOverride::Amount(Quantity::from_decimal("1.5").unwrap())),
                ("b".to_owned(), QuotaOverride::Unlimited),
            ]),
        }
    }

    fn read(subscribed: i64, subscription: &Subscription) -> Result<Stored, Fault> {
        let mut bytes = Vec::new();
        let stale = formats::Stale {
            kind: 2,
            now: 10,
            redis_now: 11,
            subscribed,
            revision: subscription.revision,
            plan: b"free".to_vec(),
            blob: encode_subscription(subscription),
        };
        stale.write(&mut bytes);
        let mut reader = Reader(&bytes);
        let stored = Stored::read(&mut reader);
        assert!(reader.is_at_end());
        stored
    }

    #[test]
    fn a_subscription_is_read_as_it_was_written() {
        let lasting = Subscription { end_ms: None, overrides: BTreeMap::new(), ..subscription() };
        for subscription in [subscription(), lasting] {
            let expected =
                Stored { now_ms: 10, redis_ms: 11, subscription: Some(subscription.clone()), plan: "free".to_owned() };
            assert_eq!(read(1, &subscription).unwrap(), expected);
            // The state says whether it has ended, and for which plan.
            let fallen = Subscription { fallen_to: Some("free".to_owned()), ..subscription.clone() };
            assert_eq!(read(2, &fallen).unwrap(), Stored { subscription: Some(fallen), ..expected.clone() });
            assert_eq!(read(0, &subscription).unwrap(), Stored { subscription: None, ..expected });
        }
        assert!(matches!(read(3, &subscription()), Err(Fault::Internal(_))));
        assert!(matches!(decoded(b"", [0; 8], None), Err(Fault::Internal(_))));
        let odd = Blob("p".to_owned(), 0, 0, 0, vec![("a".to_owned(), "many".to_owned())]);
        assert!(matches!(decoded(&encode(&odd), [0; 8], None), Err(Fault::Internal(_))));
    }

    #[test]
    fn a_change_says_what_was_read_and_what_is_in_force_from_now_on() {
        let before = Stored { now_ms: 10, redis_ms: 11, subscription: None, plan: "free".to_owned() };
        let put = |before: &Stored, wanted: &Subscription| {
            let mut bytes = Vec::new();
            write_put(&mut bytes, before, wanted, &[]);
            bytes
        };
        let mut expected = b"\x97\xa0\xa4free\xa8".to_vec();
        expected.extend_from_slice(&[0xff; 8]);
        let read = expected.len();
        expected.extend_from_slice(b"\x05\xa3pro\xc2\x90");
        assert_eq!(put(&before, &subscription()), expected);
        expected.truncate(read);
        expected.extend_from_slice(b"\0\xa4free\xc3\x90");
        let fallen = Subscription { fallen_to: Some("free".to_owned()), end_ms: None, ..subscription() };
        assert_eq!(put(&before, &fallen), expected);
        let stored = Stored { subscription: Some(Subscription { revision: *b"revision", ..subscription() }), ..before };
        assert!(put(&stored, &subscription()).starts_with(b"\x97\xa8revision\xa4free\xa8\xff"));
    }
}
