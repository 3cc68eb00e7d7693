//! Several calls in one: each must be answered, and leave behind, what it would alone. So they are made twice, by users of the same state.

use std::collections::BTreeMap;

use redis::Value;
use redis::aio::MultiplexedConnection;
use tollgate::domain::event::Event;
use tollgate::domain::fault::Fault;
use tollgate::domain::id::{Field, ReservationId};
use tollgate::ledger::{Basis, InForce, Ledger, NoAnswer, Once, Script, UserKeys, read_answer};

use super::raw::{self, Call};
use super::user::{MINUTE, START, event, plan_at, redis, set_clock, used};
use crate::support::{fresh_user, owner};

/// Users by what they have: a plan of their own each, no plan, a plan that nobody knows, and keys that are not Tollgate's.
const USERS: usize = 6;
const NO_PLAN: usize = 2;
const UNKNOWN: usize = 3;
/// Its state is a list, and its memories are text.
const WRONG_TYPES: usize = 4;
/// Its state ends too early.
const GARBLED: usize = 5;

/// Whose calls travel together, in this order: first one that has no plan, then failures between others.
const ORDER: [usize; 8] = [NO_PLAN, 0, WRONG_TYPES, 1, UNKNOWN, GARBLED, 0, NO_PLAN];

struct World {
    names: Vec<String>,
    bases: Vec<Basis>,
}

pub async fn right(ledger: &Ledger) -> bool {
    let mut redis = redis().await;
    let (alone, together) = (World::new(ledger, &mut redis).await, World::new(ledger, &mut redis).await);
    let mut right = true;
    for step in 0..13 {
        if step == 5 {
            // The memories change places.
            alone.step(16 * MINUTE).await;
            together.step(16 * MINUTE).await;
        }
        let (script, one_by_one) = alone.calls(ledger, step);
        let (_, batch) = together.calls(ledger, step);
        let mut expected = Vec::new();
        for call in &one_by_one {
            expected.push(raw::answer(script, std::slice::from_ref(call)).await);
        }
        let found = raw::answer(script, &batch).await;
        right &= agree(&expected, found) && (matches!(step, 5 | 6 | 9 | 12) || is_unknown(&expected));
        if !right {
            break;
        }
    }
    right = right && alone.state(&mut redis).await == together.state(&mut redis).await;
    for world in [alone, together] {
        world.delete(&mut redis).await;
    }
    right
}

/// What a call that raises would answer alone stands in its place as a fault that says the same.
fn agree(expected: &[Result<Value, String>], found: Result<Value, String>) -> bool {
    let Ok(Value::Array(found)) = found else { return false };
    let same = |(expected, found): (&Result<Value, String>, &Value)| {
        let Value::BulkString(packed) = found else { return false };
        match (expected, read_answer(packed, None)) {
            (Ok(Value::Array(alone)), _) => alone.len() == 1 && alone[0] == *found,
            (Err(error), Err(NoAnswer::Fault(Fault::Internal(source)))) => {
                let told = source.to_string();
                told.starts_with("a script failed: ")
                    && !told.contains("table: ")
                    && told.contains("WRONGTYPE") == error.contains("WRONGTYPE")
            }
            _ => false,
        }
    };
    let failed = expected.iter().filter(|answer| answer.is_err()).count();
    found.len() == expected.len() && (1..expected.len()).contains(&failed) && expected.iter().zip(&found).all(same)
}

/// Whether who is on a plan that nobody knows is told so.
fn is_unknown(answers: &[Result<Value, String>]) -> bool {
    let told = |answer: &Result<Value, String>| match answer {
        Ok(Value::Array(parts)) => match &parts[..] {
            [Value::BulkString(packed)] => {
                matches!(read_answer(packed, None), Err(NoAnswer::Fault(Fault::PlanUnknown(_))))
            }
            _ => false,
        },
        _ => false,
    };
    ORDER.iter().zip(answers).all(|(user, answer)| (*user == UNKNOWN) == told(answer))
}

impl World {
    async fn new(ledger: &Ledger, redis: &mut MultiplexedConnection) -> Self {
        let plans = [("yearly", 100, "{ a: 1 }"), ("monthly", 40, "{ a: 2 }")].map(|(period, quota, measure)| {
            let rule = |condition| format!("{{ event: e{condition}, measure: {measure} }}");
            let group = |id, condition| {
                let rule = rule(condition);
                format!("{{ period: {period}, id: {id}, unit: count, quota: {quota}, match: [{rule}] }}")
            };
            let groups = format!("{}, {}", group("g", ""), group("h", ", metadata: { m: x }"));
            plan_at(ledger, &groups, None, START)
        });
        let basis = |user| {
            let plan = match user {
                NO_PLAN => InForce::None,
                UNKNOWN => InForce::Unknown("p".to_owned()),
                _ => plans[user % 2].clone(),
            };
            Basis { revision: None, ended: false, plan }
        };
        let names: Vec<_> = (0..USERS).map(|_| fresh_user("together")).collect();
        let world = Self { names, bases: (0..USERS).map(basis).collect() };
        world.step(0).await;
        let broken = [WRONG_TYPES, GARBLED].map(|user| UserKeys::new(&owner(&world.names[user])));
        let mut pipe = redis::pipe();
        pipe.rpush(broken[0].state(), "x").set(broken[1].state(), b"\x01");
        for memory in broken[0].memories() {
            pipe.set(memory, "x");
        }
        let () = pipe.query_async(redis).await.expect("Redis answers");
        world
    }

    async fn step(&self, ms: i64) {
        for name in &self.names[..WRONG_TYPES] {
            set_clock(name, START + ms).await;
        }
    }

    /// The script of this step, and its calls.
    fn calls<'a>(&self, ledger: &'a Ledger, step: usize) -> (&'a Script, Vec<Call>) {
        let scripts = ledger.scripts();
        let script = match step {
            1 | 2 | 11 => &scripts.reserve,
            3 => &scripts.can_use,
            4 | 8 => &scripts.usage,
            5 => &scripts.commit,
            6 => &scripts.release,
            7 => &scripts.refund,
            9 => &scripts.refund_reservation,
            12 => &scripts.commit_changed,
            _ => &scripts.track,
        };
        (script, ORDER.iter().enumerate().map(|(place, user)| self.call(step, place, *user)).collect())
    }

    fn call(&self, step: usize, place: usize, user: usize) -> Call {
        let (owner, basis) = (owner(&self.names[user]), &self.bases[user]);
        let once = once_of(step, place);
        let amount = (3 + place).to_string();
        let plan = basis.plan.known();
        let reservation = |step| {
            let Once { field, suffix, .. } = once_of(step, place);
            let plan = plan.map(|plan| plan.digest).unwrap_or_default();
            ReservationId { field, suffix, plan, owner: owner.clone() }
        };
        let event = happened(&amount, place);
        match step {
            1 | 2 | 11 => raw::reserve(&owner, basis, &once, &event, 30 * MINUTE),
            3 => raw::can_use(&owner, basis, &event),
            4 | 8 => raw::usage(&owner, basis),
            5 => raw::commit(&reservation(1), &used(&[("a", &(4 + place).to_string())]), plan),
            6 => raw::release(&reservation(2)),
            9 => raw::refund_reservation(&reservation(1), &once, &event, plan),
            12 => {
                let mut actual = used(&[("a", &(4 + place).to_string())]);
                // The others match the second group now.
                actual.metadata.insert("m".to_owned(), if place > 4 { "y" } else { "x" }.to_owned());
                raw::commit_changed(&reservation(11), basis, &actual)
            }
            _ => raw::track(&owner, basis, &once, &event, step == 10),
        }
    }

    /// Every value, user by user.
    async fn state(&self, redis: &mut MultiplexedConnection) -> Vec<(Option<Vec<u8>>, BTreeMap<Vec<u8>, Vec<u8>>)> {
        let mut values = Vec::new();
        for key in self.every_key() {
            let kind: String = redis::cmd("TYPE").arg(&key).query_async(redis).await.expect("Redis answers");
            values.push(if kind == "hash" {
                (None, redis::cmd("HGETALL").arg(key).query_async(redis).await.expect("Redis answers"))
            } else {
                (redis::cmd("DUMP").arg(key).query_async(redis).await.expect("Redis answers"), BTreeMap::new())
            });
        }
        values
    }

    fn every_key(&self) -> Vec<String> {
        let holds =
            || [1, 2, 11].into_iter().flat_map(|step| (0..ORDER.len()).map(move |place| once_of(step, place).field));
        let of_user = |name: &String| {
            let keys = UserKeys::new(&owner(name));
            keys.all().into_iter().chain(holds().map(|field| keys.hold(&field))).collect::<Vec<_>>()
        };
        self.names.iter().flat_map(of_user).collect()
    }

    async fn delete(self, redis: &mut MultiplexedConnection) {
        let () = redis::cmd("UNLINK").arg(self.every_key()).query_async(redis).await.expect("Redis answers");
    }
}

/// By the number of the call, so that the calls of one user have a hold each.
fn once_of(step: usize, place: usize) -> Once {
    let number = u8::try_from(10 * step + place).expect("a few calls");
    let field: Field = [number; 16];
    Once { field, digest: Some([number; 8]), suffix: [number; 6] }
}

/// Those of one user match other groups.
fn happened(amount: &str, place: usize) -> Event {
    let mut happened = event("e", &[("a", amount)]);
    let model = if place > 4 { "x" } else { "y" };
    happened.metadata.insert("m".to_owned(), model.to_owned());
    happened
}
