//! What is wrong with tables that the next call uses again, and with what is kept to spare work.
//!
//! A mutant here leaves in a table what the last call has put there: the values that a table has at first say that it is new.

use super::Mutant;

/// The ledger, its windows and its memory.
pub const LEDGERS: &[Mutant] = &[
    ("lib/ledger", "opening = opening + 1", ""),
    ("lib/ledger", "for name in pairs(known) do known[name] = nil end", ""),
    ("lib/ledger", "if window and window.opening == opening then return window end", ""),
    (
        "lib/ledger",
        "if window and window.opening == opening then return window end",
        "if window then return window end",
    ),
    (
        "lib/ledger",
        "if not window or window.opening ~= opening then return nil end",
        "if not window then return nil end",
    ),
    (
        "lib/ledger",
        "= opening, number, counters[at + 3], counters[at + 4]",
        "= opening, window.number > 0 and window.number or number, counters[at + 3], counters[at + 4]",
    ),
    (
        "lib/ledger",
        "= opening, number, counters[at + 3], counters[at + 4]",
        "= opening, number, max(window.used, counters[at + 3]), counters[at + 4]",
    ),
    (
        "lib/ledger",
        "= opening, number, counters[at + 3], counters[at + 4]",
        "= opening, number, counters[at + 3], max(window.held, counters[at + 4])",
    ),
    ("lib/ledger", "= span_at(led, counters[at + 2]), false", "= window.span or span_at(led, counters[at + 2]), false"),
    (
        "lib/ledger",
        "window.span, window.ends = span_at(led, counters[at + 2]), false",
        "window.span = span_at(led, counters[at + 2])",
    ),
    ("lib/ledger", "led.asked = led.asked + 1\n", ""),
    ("lib/ledger", "asked_windows[led.asked] = window\n", ""),
    ("lib/ledger", "led.asked, led.lapsed = 0, 0", "led.asked, led.lapsed = led.asked or 0, 0"),
    ("lib/ledger", "led.asked, led.lapsed = 0, 0", "led.asked, led.lapsed = 0, led.lapsed or 0"),
    ("lib/ledger", "for i = 1, led.asked do", "for i = 2, led.asked do"),
    (
        "lib/ledger",
        "led.stored_expires = key, redis_now, stored_time, led.expires",
        "led.stored_expires = led.key or key, redis_now, stored_time, led.expires",
    ),
    (
        "lib/ledger",
        "led.stored_expires = key, redis_now, stored_time, led.expires",
        "led.stored_expires = key, led.redis_now or redis_now, stored_time, led.expires",
    ),
    (
        "lib/ledger",
        "led.stored_expires = key, redis_now, stored_time, led.expires",
        "led.stored_expires = key, redis_now, led.stored_time or stored_time, led.expires",
    ),
    (
        "lib/ledger",
        "led.stored_expires = key, redis_now, stored_time, led.expires",
        "led.stored_expires = key, redis_now, stored_time, led.stored_expires or led.expires",
    ),
    ("lib/begin", "led.k = k", "led.k = led.k or k"),
    ("lib/ledger", "for i = 1, led.asked do", "for i = 1, #asked_windows do"),
    (
        "lib/ledger",
        READ_HEAD,
        "local before = head_table.memory\n  local led, at = read_head(packed)\n  led.memory = before",
    ),
    (
        "lib/ledger",
        READ_HEAD,
        "local before = head_table.terms\n  local led, at = read_head(packed)\n  led.terms = before",
    ),
    (
        "lib/ledger",
        READ_HEAD,
        "local before = head_table.was_wrong\n  local led, at = read_head(packed)\n  led.was_wrong = before",
    ),
    (
        "lib/ledger",
        READ_HEAD,
        "local before = head_table.windows\n  local led, at = read_head(packed)\n  led.windows = before",
    ),
    (
        "lib/ledger",
        READ_HEAD,
        "local before = head_table.last_kept\n  local led, at = read_head(packed)\n  led.last_kept = before",
    ),
    (
        "lib/ledger",
        READ_HEAD,
        "local before = head_table.windows_before\n  local led, at = read_head(packed)\n  led.windows_before = before",
    ),
    (
        "lib/ledger",
        READ_HEAD,
        "local before = head_table.span_of\n  local led, at = read_head(packed)\n  led.span_of = before",
    ),
    (
        "lib/ledger",
        READ_HEAD,
        "local before = head_table.undone\n  local led, at = read_head(packed)\n  led.undone = before",
    ),
    (
        "lib/ledger",
        READ_HEAD,
        "local before = head_table.from_old\n  local led, at = read_head(packed)\n  led.from_old = before",
    ),
    (
        "lib/ledger",
        READ_HEAD,
        "local before = head_table.memory_corrected\n  local led, at = read_head(packed)\n  led.memory_corrected = before",
    ),
];

/// The first line that reads a state, whose table has other fields besides.
const READ_HEAD: &str = "local led, at = read_head(packed)";

/// Claims, of a call and of a record, and the record that a call makes.
pub const CLAIMS: &[Mutant] = &[
    ("lib/decide", "= matches.name, true, false", "= claims.name or matches.name, true, false"),
    ("lib/decide", "= matches.name, true, false", "= matches.name, claims.all_fit or not claims.name, false"),
    ("lib/decide", "= matches.name, true, false", "= matches.name, true, claims.overflow"),
    (
        "lib/decide",
        "= group.place, window, window.number, ",
        "= max(claim.place, group.place), window, window.number, ",
    ),
    ("lib/decide", "= group.place, window, window.number, ", "= group.place, claim.window or window, window.number, "),
    (
        "lib/decide",
        "= group.place, window, window.number, ",
        "= group.place, window, max(claim.number, window.number), ",
    ),
    ("lib/decide", "window.number, window.span or span_of", "window.number, claim.span or window.span or span_of"),
    ("lib/decide", "= charge, quota, has_room, 0, ", "= max(claim.charge, charge), quota, has_room, 0, "),
    (
        "lib/decide",
        "= charge, quota, has_room, 0, ",
        "= charge, claim.quota ~= 0 and claim.quota or quota, has_room, 0, ",
    ),
    ("lib/decide", "= charge, quota, has_room, 0, ", "= charge, quota, claim.fits or has_room, 0, "),
    ("lib/decide", "has_room, 0, quotas and quota", "has_room, 0, quotas and quota or claim.own_quota"),
    (
        "lib/record",
        "= numbers[from + 1], numbers[from + 2], span, charge",
        "= max(claim.place, numbers[from + 1]), numbers[from + 2], span, charge",
    ),
    (
        "lib/record",
        "= numbers[from + 1], numbers[from + 2], span, charge",
        "= numbers[from + 1], max(claim.number, numbers[from + 2]), span, charge",
    ),
    (
        "lib/record",
        "= numbers[from + 1], numbers[from + 2], span, charge",
        "= numbers[from + 1], numbers[from + 2], claim.span or span, charge",
    ),
    (
        "lib/record",
        "= numbers[from + 1], numbers[from + 2], span, charge",
        "= numbers[from + 1], numbers[from + 2], span, max(claim.charge, charge)",
    ),
    (
        "lib/record",
        "= nil, committed_unsaid(record, charge), 0, false",
        "= claim.window or nil, committed_unsaid(record, charge), 0, false",
    ),
    (
        "lib/record",
        "= nil, committed_unsaid(record, charge), 0, false",
        "= nil, max(claim.committed, committed_unsaid(record, charge)), 0, false",
    ),
    (
        "lib/record",
        "= nil, committed_unsaid(record, charge), 0, false",
        "= nil, committed_unsaid(record, charge), claim.refunded, false",
    ),
    (
        "lib/record",
        "= nil, committed_unsaid(record, charge), 0, false",
        "= nil, committed_unsaid(record, charge), 0, claim.own_quota",
    ),
    ("lib/record", "for i = count + 1, #claims do claims[i] = nil end", ""),
    ("lib/record", "led.memory and led.memory.epoch or 0", "led.memory and led.memory.epoch or made.epoch"),
    ("lib/record", "for i = at, #parts do parts[i] = nil end", ""),
    ("reserve", "= is_paged and 1 or 0, deadline", "= is_paged and 1 or made.paged, deadline"),
    (
        "reserve",
        "deadline, asked.what, asked.quantities",
        "deadline, made.what ~= '' and made.what or asked.what, asked.quantities",
    ),
    (
        "reserve",
        "deadline, asked.what, asked.quantities",
        "deadline, asked.what, made.quantities ~= '' and made.quantities or asked.quantities",
    ),
    (
        "lib/answer",
        "rows[at + 3], columns = 0, 0, WITH_CLOSINGS",
        "rows[at + 3], columns = rows[at + 2] or 0, rows[at + 3] or 0, WITH_CLOSINGS",
    ),
];

/// What is found by what it is made of.
pub const MADE_ONCE: &[Mutant] = &[
    ("lib/base", "local format = of_one[count]", "local _, format = next(of_one)"),
    ("lib/base", "local of_one = formats[first or one]", "local _, of_one = next(formats)"),
    (
        "lib/base",
        "format = (first or '<') .. rep(sub(one, 2), count)",
        "format = (first or '<') .. rep(sub(one, 2), max(count - 1, 0))",
    ),
    ("lib/base", "format = (first or '<') .. rep", "format = '<' .. rep"),
    ("lib/deadlines", "local packed = ends[count]", "local _, packed = next(ends)"),
    ("lib/record", "local key = spans * 65536 + count", "local key = count"),
    ("lib/record", "local key = spans * 65536 + count", "local key = spans"),
    ("lib/record", "'c' .. SPAN_BYTES * spans", "'c' .. SPAN_BYTES"),
    ("lib/record", "record.claim_bytes = sub(packed, spans, at - 1)", "record.claim_bytes = sub(packed, spans, at)"),
    (
        "lib/record",
        "record.claim_bytes = sub(packed, spans, at - 1)",
        "record.claim_bytes = sub(packed, spans, at - 2)",
    ),
    (
        "lib/record",
        "columns, record.spans, #claims) .. record.claim_bytes",
        "columns, 1, #claims) .. record.claim_bytes",
    ),
    ("lib/record", "record.claim_bytes .. column_bytes .. record.rest", "record.claim_bytes .. record.rest"),
    ("lib/record", "if numbers[from + 3] > 1 then", "if false then"),
    ("lib/record", "if record.state ~= HELD then columns, column_bytes", "if false then columns, column_bytes"),
];

/// Which plan decides a call, where a claim's window is, and what a denied call writes.
pub const SHARED: &[Mutant] = &[
    ("lib/in_force", "if not is_current then return nil, stale(led) end", ""),
    (
        "lib/in_force",
        "if not is_current then return nil, stale(led) end",
        "if not is_current and not plan then return nil, stale(led) end",
    ),
    ("lib/in_force", "if asked.in_force == UNKNOWN_PLAN then return nil, fault('PLAN_UNKNOWN') end", ""),
    ("lib/in_force", "answer({ outcome = NO_SUBSCRIPTION }, 0)", "answer({ outcome = UNMATCHED }, 0)"),
    ("lib/in_force", "answer({ outcome = NO_SUBSCRIPTION }, 0)", "fault('PLAN_UNKNOWN')"),
    ("lib/in_force", "return plan, nil, has_changed", "return plan"),
    ("lib/in_force", "return plan, nil, has_changed", "return plan, nil, true"),
    (
        "lib/decide",
        "is_current and not led.windows and window_at(led, group.place) or opened",
        "not led.windows and window_at(led, group.place) or opened",
    ),
    (
        "lib/decide",
        "is_current and not led.windows and window_at(led, group.place) or opened",
        "is_current and window_at(led, group.place) or opened",
    ),
    (
        "lib/decide",
        "if not window then return nil, stale(led) end",
        "if not window then return nil, fault('PLAN_UNKNOWN') end",
    ),
    ("lib/decide", "if not matches[1] then return nil, answer({ outcome = UNMATCHED, plan = plan.digest }, 0) end", ""),
    ("lib/decide", "answer({ outcome = UNMATCHED, plan = plan.digest }, 0)", "answer({ outcome = UNMATCHED }, 0)"),
    ("lib/decide", "answer({ outcome = UNMATCHED, plan = plan.digest }, 0)", "answer({ plan = plan.digest }, 0)"),
    ("lib/record", "led.time < led.current_until and number_at", "number_at"),
    ("lib/record", "number_at(led, claim.place) == claim.number then", "number_at(led, claim.place) then"),
    ("lib/record", "number_at(led, claim.place) == claim.number then", "number_at(led, claim.place) ~= 0 then"),
    ("lib/record", "window = window_at(led, claim.place)\n", "window = false\n"),
    ("lib/record", "window = kept_window(led, claim.number) or false\n", "window = false\n"),
    ("lib/save", "if led.lapsed == 0 and not has_changed and not led.was_wrong then return end", ""),
    (
        "lib/save",
        "if led.lapsed == 0 and not has_changed and not led.was_wrong then return end",
        "if not has_changed and not led.was_wrong then return end",
    ),
    (
        "lib/save",
        "if led.lapsed == 0 and not has_changed and not led.was_wrong then return end",
        "if led.lapsed == 0 and not led.was_wrong then return end",
    ),
    (
        "lib/save",
        "if led.lapsed == 0 and not has_changed and not led.was_wrong then return end",
        "if led.lapsed == 0 and not has_changed then return end",
    ),
    ("lib/save", "  undo_windows(led)\n", ""),
    ("lib/save", "write_corrected(led)\n  save_ledger(led)", "save_ledger(led)"),
    ("lib/save", "write_corrected(led)\n  save_ledger(led)", "write_corrected(led)"),
    ("lib/memory", "#name, name,\n    before and 1 or 0,", "#name, name,\n    1,"),
    (
        "lib/memory",
        "before and 1 or 0, before and #before or 0, before or '')\n  if other_name",
        "before and 1 or 0, 0, '')\n  if other_name",
    ),
    ("lib/memory", "    before = said_before(led, other_name, is_renewed)\n", ""),
    (
        "lib/memory",
        "before and 1 or 0, before and #before or 0, before or '')\n  end\n  for i",
        "before and 1 or 0, 0, '')\n  end\n  for i",
    ),
    ("lib/record", "    claim.window = window\n", ""),
];
