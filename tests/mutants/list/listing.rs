//! What is wrong with how reservations are looked up.

use super::Mutant;

/// GetReservation and ListReservations.
pub const LISTING: &[Mutant] = &[
    ("lib/reservations", "state_of(record, led.time), record.deadline", "STATE_HELD, record.deadline"),
    ("lib/reservations", "state_of(record, led.time), record.deadline", "state_of(record, led.time), 0"),
    ("lib/reservations", "state_of(record, led.time), record.deadline", "state_of(record, 0), record.deadline"),
    ("reservation_get", "load_reservation(led, asked)", "load_record(led, asked.field)"),
    ("reservations_list", "byte(packed) > LIVING_FORMAT or byte(packed, 2) == HELD", "byte(packed, 2) == HELD"),
    ("reservations_list", "byte(packed) > LIVING_FORMAT or byte(packed, 2) == HELD", "byte(packed) > LIVING_FORMAT"),
    ("reservations_list", "if reason == 'FORMAT_UNKNOWN' then return fault(reason) end", ""),
    ("reservations_list", "if record and state_of(record, led.time) == STATE_HELD then", "if record then"),
    ("reservations_list", "if #page[i] == FIELD_BYTES then", "if true then"),
    ("reservations_list", "led.undone = undone(led, call('HGET', young_key(led), 'u'))", "led.undone = NOTHING"),
    ("reservations_list", "note(led, fields[i], values[i])", "known[fields[i]] = values[i]"),
    ("reservations_list", "led.undone = undone(led, young[1])", "led.undone = NOTHING"),
    ("reservations_list", "if led.undone[field] ~= nil then value = led.undone[field] end", ""),
    ("reservations_list", "known[field] = value or values[i]", "known[field] = values[i]"),
    ("reservations_list", "known[field] = value or values[i]", "known[field] = value"),
    ("reservations_list", "young[i - first + 2]", "young[i + 1]"),
    ("reservations_list", "young[i - first + 2]", "young[i - first + 1]"),
    ("reservations_list", "min(first + CHUNK - 1, #fields)", "min(first + CHUNK - 2, #fields)"),
    ("reservations_list", "number == led.young and from_young or from_old", "from_old"),
    ("reservations_list", "number == led.young and from_young or from_old", "from_young"),
    ("reservations_list", "elseif asked.fields ~= '' then", "elseif false then"),
    ("reservations_list", "sub(asked.fields, at, at + FIELD_BYTES - 1)", "sub(asked.fields, at, at + FIELD_BYTES)"),
    ("reservations_list", "know(led, fields)", ""),
    ("reservations_list", "local has_old = memory.old_expires > led.time", "local has_old = false"),
    ("reservations_list", "has_old and 3 - led.young or led.young", "led.young"),
    ("reservations_list", "has_old and 0 or 1, '0'", "1, '0'"),
    ("reservations_list", "has_old and 0 or 1, '0'", "0, '0'"),
    ("reservations_list", "if cursor == '0' then", "if true then"),
    ("reservations_list", "is_last == 0 and 3 - number or 0, 1", "0, 1"),
    ("reservations_list", "is_last == 0 and 3 - number or 0, 1", "is_last == 0 and number or 0, 1"),
    ("reservations_list", "is_last == 0 and 3 - number or 0, 1", "is_last == 0 and 3 - number or 0, 0"),
    ("reservations_list", "if failed then return failed end\nreturn", "return"),
];
