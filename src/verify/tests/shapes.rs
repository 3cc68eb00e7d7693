//! Tests with values that end too early, and with values of any shape.

use super::super::stored::{Plan, Record, State, Undo};
use super::super::value::Value;
use super::world::*;

fn encode(value: &impl serde::Serialize) -> Vec<u8> {
    rmp_serde::to_vec(value).unwrap()
}

#[test]
fn what_ends_at_any_byte_before_its_end_is_too_short() {
    const SHORT: &str = "does not fit its format: it ends after too few bytes";
    let world = World::default();
    let state = world.state_bytes();
    assert!(State::decode(&state).is_ok());
    for end in 0..state.len() {
        let error = State::decode(&state[..end]).unwrap_err().to_string();
        assert!(error.ends_with(SHORT), "{end}: {error}");
    }
    for field in [FIRST, COMMITTED, TRACKED] {
        let record = world.clone().record(field).bytes();
        assert!(Record::decode(&record).is_ok());
        for end in 0..record.len() {
            let error = Record::decode(&record[..end]).unwrap_err().to_string();
            assert!(error.ends_with(SHORT), "{end}: {error}");
        }
    }
    let undo = undo(6, &[(&FIRST, Some(vec![1])), (&SECOND, None)]);
    assert!(Undo::decode(&undo).is_ok());
    for end in 0..undo.len() {
        let error = Undo::decode(&undo[..end]).unwrap_err().to_string();
        assert!(error.ends_with(SHORT), "{end}: {error}");
    }
}

#[test]
fn what_a_later_version_has_added_is_no_contradiction() {
    let mut world = World::default();
    world.state = Some([world.state_bytes(), b"more".to_vec()].concat());
    assert_eq!(world.found(), [""; 0]);
    let record = World::default().record(COMMITTED).bytes();
    let longer = [&record[..], b"more"].concat();
    assert_eq!(Record::decode(&longer), Record::decode(&record));
}

#[test]
fn a_plan_of_another_shape_is_told_precisely() {
    let group = |schedule| ("a", 1, schedule, -1, true, "label", [0; 0]);
    let told = |plan: &[u8]| Plan::decode(plan).unwrap_err().to_string();
    assert_eq!(told(&encode(&("p", "carry"))), "the plan is a list of 2, and not a list of 5");
    let other = encode(&("p", "stay", [""; 0], [(5, false)], [group(1)]));
    assert_eq!(told(&other), "the plan's change is \"stay\", and not carry, reset or block");
    let other = encode(&("p", "carry", [""; 0], [(5, false)], [group(2)]));
    assert_eq!(told(&other), "the schedule of a group is 2, and not one of the plan's");
    let other = encode(&("p", "carry", [1], [(5, false)], [group(1)]));
    assert_eq!(told(&other), "one of the plan's names is 1, and not text");
    let other = encode(&("p", "carry", [""; 0], [(5, false)], [("a", 1, 1, -1, true, "label", [(1, "e")])]));
    assert_eq!(told(&other), "a rule of a group is a list of 2, and not a list of 4");
}

#[test]
fn every_value_that_scripts_write_can_be_read() {
    let value = Value::read(&encode(&(1, -1, 0.5, "a", true, ((), [1], u64::MAX)))).unwrap();
    assert_eq!(value.to_string(), "a list of 6");
    let Value::List(values) = value else { panic!("{value}") };
    let shown: Vec<_> = values.iter().map(Value::to_string).collect();
    assert_eq!(shown, ["1", "-1", "0.5", "\"a\"", "true", "a list of 3"]);
    // Lua's text is bytes, and its empty map is an empty list.
    assert_eq!(
        Value::read(&[0xa1, 0xff]).unwrap().text("it").unwrap_err().to_string(),
        "it is \"\u{fffd}\", and not UTF-8"
    );
    assert_eq!(Value::read(&[0x90]).unwrap().map("it").unwrap(), []);
    assert_eq!(
        Value::read(&[0x81, 0x01, 0x01]).unwrap().map("it").unwrap_err().to_string(),
        "a key of it is 1, and not text"
    );
}
