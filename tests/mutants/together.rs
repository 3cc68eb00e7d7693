//! Several calls in one: each must be answered, and leave behind, what it would alone. So they are made twice, by users of the same state.

use std::collections::BTreeMap;

use redis::Value;
use redis::aio::MultiplexedConnection;
use tollgate::catalog::CompiledPlan;
use tollgate::domain::amount::Quantity;
use tollgate::domain::event::{Event, EventName};
use tollgate::domain::fault::Fault;
use tollgate::ledger::codec::{self, Reply};
use tollgate::ledger::{Ledger, Script, UserKeys};

use crate::direct::{MINUTE, START, call_of_reserve, call_of_track, plan};
use crate::support::{Step, fresh_user, owner, redis, step_clock};

/// What a script takes of one call.
type Call = (Vec<String>, Vec<Vec<u8>>);

/// Users by what they have: a plan of their own each, no plan, a plan that nobody knows, and keys that are not Tollgate's.
const USERS: usize = 6;
const NO_PLAN: usize = 2;
const UNKNOWN: usize = 3;
/// Its ledger is a list, and its memory is text.
const WRONG_TYPES: usize = 4;
/// Its ledger is text that is none.
const GARBLED: usize = 5;

/// Whose calls travel together, in this order: first one that has no plan, then failures between others.
const ORDER: [usize; 8] = [NO_PLAN, 0, WRONG_TYPES, 1, UNKNOWN, GARBLED, 0, NO_PLAN];

struct World {
    names: Vec<String>,
    keys: Vec<UserKeys>,
    plans: [CompiledPlan; 2],
}

pub async fn right(ledger: &Ledger) -> bool {
    let mut redis = redis().await;
    let (alone, together) = (World::new(&mut redis).await, World::new(&mut redis).await);
    let mut right = true;
    for step in 0..11 {
        let (script, one_by_one) = alone.step(ledger, step);
        let (_, batch) = together.step(ledger, step);
        let mut expected = Vec::new();
        for call in &one_by_one {
            expected.push(run(&mut redis, script, std::slice::from_ref(call)).await);
        }
        let found = run(&mut redis, script, &batch).await;
        right &= agree(&expected, found) && (one_by_one[0].1.len() == 1 || is_unknown(&expected));
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
        match (expected, codec::decode(packed)) {
            // A list is no ledger, and has no time: only Redis's own, which goes on.
            (Ok(Value::Array(alone)), Ok(Reply::Stale(..))) => matches!(&alone[..], [Value::BulkString(alone)]
                if matches!(codec::decode(alone), Ok(Reply::Stale(..)))),
            (Ok(Value::Array(alone)), _) => alone.len() == 1 && alone[0] == *found,
            (Err(error), Err(Fault::Internal(source))) => {
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
            [Value::BulkString(packed)] => matches!(codec::decode(packed), Err(Fault::PlanUnknown(_))),
            _ => false,
        },
        _ => false,
    };
    ORDER.iter().zip(answers).all(|(user, answer)| (*user == UNKNOWN) == told(answer))
}

/// All of them in one.
async fn run(redis: &mut MultiplexedConnection, script: &Script, calls: &[Call]) -> Result<Value, String> {
    let mut load = redis::cmd("SCRIPT");
    load.arg("LOAD").arg(&script.body);
    let () = load.query_async(redis).await.map_err(|error| error.to_string())?;
    let mut command = redis::cmd("EVALSHA");
    command.arg(&script.sha1).arg(calls.iter().map(|(keys, _)| keys.len()).sum::<usize>());
    for (keys, _) in calls {
        command.arg(keys);
    }
    for (_, args) in calls {
        command.arg(args);
    }
    command.query_async(redis).await.map_err(|error| error.to_string())
}

fn event(name: &str, quantity: u32) -> Event {
    let quantity = Quantity::from_decimal(&quantity.to_string()).expect("a number");
    let quantities = [("a".to_owned(), quantity)].into();
    Event::new(EventName::parse(name).expect("a name"), None, quantities, BTreeMap::new())
}

impl World {
    async fn new(redis: &mut MultiplexedConnection) -> Self {
        let names: Vec<_> = (0..USERS).map(|_| fresh_user("together")).collect();
        let keys: Vec<_> = names.iter().map(|name| UserKeys::new(&owner(name))).collect();
        for name in &names[..WRONG_TYPES] {
            step_clock(name, Step::To(START)).await;
        }
        let broken = (&keys[WRONG_TYPES], &keys[GARBLED]);
        let mut pipe = redis::pipe();
        pipe.rpush(broken.0.ledger(), "x").set(broken.0.memory(), "x").set(broken.1.ledger(), b"\xc1");
        let () = pipe.query_async(redis).await.expect("Redis answers");
        let plans = [("yearly", 100, "{ a: 1 }"), ("monthly", 40, "{ a: 2 }")];
        let plans = plans.map(|(period, quota, measure)| {
            plan(&format!(
                "period: {period}, id: g, unit: count, quota: {quota}, match: [{{ event: e, measure: {measure} }}]"
            ))
        });
        Self { names, keys, plans }
    }

    /// The script of this step, and its calls.
    fn step<'a>(&self, ledger: &'a Ledger, step: usize) -> (&'a Script, Vec<Call>) {
        let scripts = ledger.scripts();
        let script = match step {
            0 => &scripts.track,
            1 | 2 => &scripts.reserve,
            3 => &scripts.can_use,
            4 | 8 => &scripts.usage,
            5 => &scripts.commit,
            6 => &scripts.release,
            7 => &scripts.refund,
            9 => &scripts.refund_reservation,
            _ => &scripts.track,
        };
        (script, ORDER.iter().enumerate().map(|(place, user)| self.call(step, place, *user)).collect())
    }

    fn call(&self, step: usize, place: usize, user: usize) -> Call {
        let keys = &self.keys[user];
        let amount = 3 + u32::try_from(place).expect("a few");
        // By their number, so that the calls of one user have a hold each.
        let nonce = |step: usize| format!("n{step}-{place}");
        let with_hold = |nonce: &str| vec![keys.ledger(), keys.memory(), keys.agenda(), keys.hold(nonce)];
        let once = format!("{step}-{place}");
        let (keys, call) = match step {
            1 | 2 => {
                let mut all = keys.all();
                all.push(keys.hold(&nonce(step)));
                (all, call_of_reserve(&event("e", amount), &nonce(step), 10 * MINUTE, &once))
            }
            3 => (keys.all(), codec::can_use_call("", false, &event("e", amount))),
            4 | 8 => (keys.all(), codec::encode(&("", false, -1))),
            5 => {
                let actual = BTreeMap::from([("a", amount + 1)]);
                (with_hold(&nonce(1)), codec::encode(&(nonce(1), true, false, actual, MINUTE)))
            }
            6 => (with_hold(&nonce(2)), codec::encode(&(nonce(2), MINUTE))),
            7 => (keys.all(), call_of_track(&event("e.refund", amount - 2), &once, &"e")),
            9 => {
                let refunded = event("e.refund", amount - 1);
                let (_, _, quantity, quantities, numeric) = codec::event(&refunded);
                let call = (nonce(1), &once, "digest", "event", "e", MINUTE, quantity, quantities, numeric);
                (vec![keys.ledger(), keys.memory(), keys.agenda()], codec::encode(&call))
            }
            _ => (keys.all(), call_of_track(&event("e", amount), &once, &(step == 10))),
        };
        let plan = match user {
            NO_PLAN => b"none".to_vec(),
            UNKNOWN => b"unknown".to_vec(),
            _ => self.plans[user % 2].message.to_vec(),
        };
        let args = if matches!(step, 5 | 6 | 9) { vec![call] } else { vec![call, plan] };
        (keys, args)
    }

    /// Every value, user by user.
    async fn state(&self, redis: &mut MultiplexedConnection) -> Vec<Value> {
        let mut pipe = redis::pipe();
        for key in self.every_key() {
            pipe.cmd("DUMP").arg(key);
        }
        pipe.query_async(redis).await.expect("Redis answers")
    }

    fn every_key(&self) -> impl Iterator<Item = String> {
        let holds = |keys: &UserKeys| {
            let nonces = (1..3).flat_map(|step| (0..ORDER.len()).map(move |place| format!("n{step}-{place}")));
            nonces.map(|nonce| keys.hold(&nonce)).collect::<Vec<_>>()
        };
        self.keys.iter().flat_map(move |keys| keys.all().into_iter().chain(holds(keys)))
    }

    async fn delete(self, redis: &mut MultiplexedConnection) {
        let keys: Vec<_> = self.every_key().collect();
        let () = redis::cmd("UNLINK").arg(keys).query_async(redis).await.expect("Redis answers");
    }
}
