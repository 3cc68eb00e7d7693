//! What is wrong with windows that open with their first event or have a given length, with resets, and with what is tracked with a time.

use super::Mutant;

/// TRUTH: windows of every kind, and what they keep.
pub const PERIODS: &[Mutant] = &[
    ("lib/ledger", "if format ~= FORMAT and format ~= WIDE_FORMAT", "if format ~= FORMAT"),
    ("lib/windows", "if led.format == FORMAT then return read_window(packed, at) end", ""),
    ("lib/windows", "window.period >= FIRST_LENGTH or window.anchor", "window.anchor"),
    ("lib/windows", "or window.reset > 0", ""),
    (
        "lib/windows",
        "if is_wide(windows[i]) then return WIDE_FORMAT end",
        "if is_wide(windows[i]) then return FORMAT end",
    ),
    ("lib/windows", "led.format == FORMAT and write_window or write_wide_window", "write_window"),
    ("lib/windows", "return anchor >= FIRST_USE and anchor or 0", "return anchor == CALENDAR and anchor or 0"),
    ("lib/windows", "return anchor >= FIRST_USE and anchor or 0", "return anchor >= FIRST_USE and CALENDAR or 0"),
    ("lib/windows", "return kind_of(window.anchor) == kind_of(frame.anchor)", "return true"),
    ("lib/windows", "used = 0, held = 0, reset = 0,", "used = 0, held = 0, reset = 1,"),
    ("lib/windows", "local ends = start + frame.lasts", "local ends = led.time + frame.lasts"),
    ("lib/windows", "start, ends, ends + frame.lasts)", "start, ends, ends + 1)"),
    ("lib/windows", "window.is_unopened = true", ""),
    ("lib/windows", "if frame.anchor == FIRST_USE then return open_with_event(led, group, frame, now) end", ""),
    ("lib/windows", "return window.is_unopened and NO_SPAN or span_of(window)", "return span_of(window)"),
    ("lib/windows", "set_windows(led, group.id, windows_after(led, group, frame, mark))", ""),
    (
        "lib/windows",
        "window.used, window.reset, window.reset_at = 0, led.memory and led.memory.sequence or 0, led.time",
        "window.used = 0",
    ),
    (
        "lib/windows",
        "window.used, window.reset, window.reset_at = 0, led.memory and led.memory.sequence or 0, led.time",
        "window.reset, window.reset_at = led.memory and led.memory.sequence or 0, led.time",
    ),
    ("lib/windows", "0, led.memory and led.memory.sequence or 0", "0, led.memory and led.memory.sequence + 1 or 1"),
    (
        "lib/subscription",
        "if not window and frame.anchor == FIRST_USE then return leave_window(led, group, frame) end",
        "",
    ),
    ("lib/subscription", "return leave_window(led, group, frame) end", "return nil end"),
    ("lib/subscription", "window.is_unopened = nil", ""),
    (
        "lib/subscription",
        "window, at = read_stored_window(led, led.tail, at)",
        "window, at = read_window(led.tail, at)",
    ),
    ("lib/decide", "if window.is_unopened then claim.span = NO_SPAN end", ""),
];

/// TRUTH: what is counted before a reset cannot be refunded after it, and what is counted after it can.
pub const RESETS: &[Mutant] = &[
    ("lib/record", "elseif led.format ~= FORMAT then", "elseif false then"),
    ("lib/record", "led.memory.sequence + 1)", "led.memory.sequence)"),
    ("lib/record", "if window.reset == 0 then return false end", ""),
    ("lib/record", "return sequence <= window.reset", "return true"),
    ("lib/settle", "note_settlement(led, record)", ""),
    ("refund_reservation", "if led.format == WIDE_FORMAT then unfold(led) end", ""),
    (
        "refund_reservation",
        "elseif window and not (led.windows and is_reset_since(window, record)) then",
        "elseif window then",
    ),
    ("reset", "if not ids[1] then return plan.groups end", ""),
    ("reset", "if names[group.id] then groups[#groups + 1] = group end", "groups[#groups + 1] = group"),
    ("reset", "if unknown and not record then return fault('GROUP_UNKNOWN', 0, unknown) end", ""),
    ("reset", "recall(led, asked, TRACKED)", "nil"),
    ("reset", "if record == false then return fault(reason) end", ""),
    ("reset", "if not plan then return other end", ""),
    ("reset", "replayed = record and true", "replayed = false"),
    ("reset", "if record then return answer_assessed(named, claims) end", ""),
    ("reset", "if claim.number <= last then", "if claim.number < last then"),
    ("reset", "reset_window(led, claim.window)", "claim.window.used = 0"),
    ("reset", "reset_window(led, claim.window)", "reset_window(led, claim.window)\n      claim.window.held = 0"),
    ("reset", "undo_windows(led)", ""),
    ("reset", "own_quota = quotas and (quotas[group.place] or group.quota)", "own_quota = nil"),
    ("reset", "span = shown_span(window)", "span = span_of(window)"),
    ("reset", "write_tracked(led, asked, plan.digest, claims, asked.replay_ms)", "save_ledger(led)"),
];

/// TRUTH and ONCE: what is tracked with a time.
pub const TIMES: &[Mutant] = &[
    ("track_at", "local MOST_FUTURE_MS = 60000", "local MOST_FUTURE_MS = 59999"),
    ("track_at", "local MOST_FUTURE_MS = 60000", "local MOST_FUTURE_MS = 60001"),
    ("track_at", "if asked.at > led.time + MOST_FUTURE_MS then return fault('TIME_IN_FUTURE') end", ""),
    ("track_at", "happened_at = min(asked.at, led.time)", "happened_at = asked.at"),
    ("track_at", "happened_at = min(asked.at, led.time)", "happened_at = led.time"),
    ("track_at", "recall(led, asked, TRACKED)", "nil"),
    ("track_at", "if record then return tracked(led, record, true) end", ""),
    ("track_at", "if not plan then return other end", ""),
    ("track_at", "if not is_counted then return fault('WINDOW_CLOSED') end", ""),
    ("track_at", "if claim.window == GONE then claim.window = false else is_counted = true end", "is_counted = true"),
    ("track_at", "claim.window.used = claim.window.used + claim.charge", "claim.window.used = claim.window.used"),
    (
        "track_at",
        "write_tracked(led, asked, plan.digest, claims, asked.replay_ms)",
        "write_tracked(led, asked, plan.digest, claims, 0)",
    ),
    ("track_at", "if open and at >= open.start then return open end", "if open then return open end"),
    ("track_at", "at >= window.start and at < window.ends then", "at >= window.start then"),
    ("track_at", "at >= window.start and at < window.ends then", "at < window.ends then"),
    ("track_at", "if same_kind ~= nil and at", "if at"),
    ("track_at", "if window then return window end", ""),
    ("track_at", "if open then return open.anchor == FIRST_USE and open or GONE end", ""),
    ("track_at", "if at + frame.lasts <= led.time then return GONE end", ""),
    ("track_at", "elseif not open and at >= start_after_others(led, group, frame) then", "elseif false then"),
    (
        "track_at",
        "elseif at >= frame.previous_start and at < frame.previous_ends then",
        "elseif at < frame.previous_ends then",
    ),
    ("track_at", "elseif at >= frame.previous_start and at < frame.previous_ends then", "elseif false then"),
    ("lib/decide", "window = find(led, plan, asked, group)", "window = opened_window(led, plan, asked, group)"),
];
