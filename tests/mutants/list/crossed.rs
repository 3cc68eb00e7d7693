//! Mutants of what answers say of `used` before a script, by which the service finds the thresholds that were crossed.

use super::Mutant;

pub const CROSSED: &[Mutant] = &[
    ("lib/deadlines", "note_used(led, window)", ""),
    ("lib/life", "note_used(led, window)", ""),
    (
        "lib/windows",
        "befores[window.number] = befores[window.number] or window.used",
        "befores[window.number] = window.used",
    ),
    ("lib/windows", "befores[window.number] = befores[window.number] or window.used", "befores[window.number] = 0"),
    ("lib/plan", "has_thresholds = message[8] and true", "has_thresholds = false"),
    ("lib/plan", "plan.has_thresholds or group.has_thresholds", "group.has_thresholds"),
    (
        "lib/crossed",
        "led.used_before[claim.number] or claim.window.used - (charges and charges[i] or 0)",
        "claim.window.used - (charges and charges[i] or 0)",
    ),
    (
        "lib/crossed",
        "led.used_before[claim.number] or claim.window.used - (charges and charges[i] or 0)",
        "led.used_before[claim.number] or claim.window.used",
    ),
    ("lib/crossed", "before < window.used and is_of_group and not has_row[window.number]", "is_of_group"),
    ("lib/crossed", " and not has_row[window.number]", ""),
    ("lib/crossed", "place, span_of(window), before, window.used)", "place, span_of(window), 0, window.used)"),
    ("lib/crossed", "place, span_of(window), before, window.used)", "place, NO_SPAN, before, window.used)"),
    ("lib/crossed", "parts[count + 1] = pack_struct(", "parts[2] = pack_struct("),
    ("commit", "if writes and led.used_before then", "if led.used_before then"),
    ("commit", "if writes and led.used_before then", "if false then"),
    ("commit", "if led.used_before then return with_befores(led, answered, claims, plan, charges) end", ""),
    ("commit", "claims, plan, charges) end", "claims, plan) end"),
    ("track", "led.used_before and with_befores(led, denial, claims, plan) or denial", "denial"),
    ("track", "led.used_before and with_befores(led, done, claims, plan, charges_of(claims)) or done", "done"),
    ("track", "claims, plan, charges_of(claims)) or done", "claims, plan) or done"),
    ("track_at", "led.used_before and with_befores(led, done, claims, plan, charges_of(claims)) or done", "done"),
    ("track_at", "claims, plan, charges_of(claims)) or done", "claims, plan) or done"),
    ("refund", "led.used_before and with_befores(led, done, claims, plan) or done", "done"),
    ("refund_reservation", "led.used_before and with_befores(led, done, refunds, plan) or done", "done"),
];
