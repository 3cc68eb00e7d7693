//! What a table can say of answers: the facts that are in them.

use std::collections::BTreeSet;

use tollgate::grpc::v1;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

pub fn flag(facts: &mut BTreeSet<String>, name: &str, set: bool) {
    if set {
        facts.insert(name.to_owned());
    }
}

pub fn reasons(facts: &mut BTreeSet<String>, reasons: &[i32]) {
    for reason in reasons {
        let reason = v1::Reason::try_from(*reason).expect("a known reason");
        facts.insert(reason.as_str_name().trim_start_matches("REASON_").to_owned());
    }
}

pub fn state(state: i32) -> String {
    let state = v1::ReservationState::try_from(state).expect("a known state");
    state.as_str_name().trim_start_matches("RESERVATION_STATE_").to_owned()
}

pub fn retry(after: Option<prost_types::Duration>) -> String {
    match after {
        None => "retry=never".to_owned(),
        Some(after) => format!("retry={}", milliseconds(after.seconds * 1000 + i64::from(after.nanos) / 1_000_000)),
    }
}

pub fn milliseconds(ms: i64) -> String {
    if ms % 1000 == 0 { format!("{}s", ms / 1000) } else { format!("{ms}ms") }
}

/// What a table can say of limit groups.
pub fn limits(limits: &[v1::LimitStatus]) -> BTreeSet<String> {
    let ids: Vec<_> = limits.iter().map(|limit| limit.limit_group_id.as_str()).collect();
    let mut facts = BTreeSet::from([format!("groups={}", ids.join(","))]);
    for limit in limits {
        let v1::LimitStatus {
            limit_group_id: id,
            label,
            unit,
            quota,
            unlimited,
            used,
            held,
            remaining,
            requested,
            shortfall,
            exceeded,
            hard,
            window_start,
            reset_time,
            window_closed,
            unapplied,
        } = limit;
        let amounts = [
            ("quota", quota),
            ("used", used),
            ("held", held),
            ("remaining", remaining),
            ("requested", requested),
            ("shortfall", shortfall),
            ("unapplied", unapplied),
        ];
        for (name, amount) in amounts {
            facts.insert(format!("{id}.{name}={amount}"));
        }
        for (name, set) in [("unlimited", unlimited), ("exceeded", exceeded), ("hard", hard), ("closed", window_closed)]
        {
            flag(&mut facts, &format!("{id}.{name}"), *set);
        }
        facts.insert(format!("{id}.label={label}"));
        facts.insert(format!("{id}.unit={unit}"));
        facts.insert(format!("{id}.start={}", shown(window_start.as_ref())));
        facts.insert(format!("{id}.reset={}", shown(reset_time.as_ref())));
    }
    facts
}

pub fn subscription(subscription: Option<v1::Subscription>) -> BTreeSet<String> {
    let Some(v1::Subscription { user_id: _, plan_id, start_time, end_time, cycle_anchor, overrides, etag: _ }) =
        subscription
    else {
        return BTreeSet::from(["no-subscription".to_owned()]);
    };
    let mut facts = BTreeSet::from([
        format!("plan={plan_id}"),
        format!("start={}", shown(start_time.as_ref())),
        format!("end={}", shown(end_time.as_ref())),
        format!("anchor={}", shown(cycle_anchor.as_ref())),
    ]);
    for (id, quota) in overrides.unwrap_or_default().quotas {
        let quota = match quota.limit.expect("a limit") {
            v1::quota::Limit::Amount(amount) => amount.to_string(),
            v1::quota::Limit::Unlimited(_) => "unlimited".to_owned(),
        };
        facts.insert(format!("override:{id}={quota}"));
    }
    facts
}

/// What a table can say of a reservation that was looked up.
pub fn reservation(found: v1::Reservation, now: Option<i64>) -> BTreeSet<String> {
    let on_expiry = found.on_expiry();
    let v1::Reservation { reservation_id: _, user_id: _, event, state, expire_time, charges, late, on_expiry: _ } =
        found;
    let v1::Event { name, quantity, quantities, metadata } = event.expect("an event");
    let ids: Vec<_> = charges.iter().map(|charge| charge.limit_group_id.as_str()).collect();
    let mut facts = BTreeSet::from([self::state(state), format!("event={name}"), format!("groups={}", ids.join(","))]);
    flag(&mut facts, "late", late);
    facts.insert(on_expiry.as_str_name().to_owned());
    facts.extend(quantity.map(|quantity| format!("quantity={quantity}")));
    facts.extend(quantities.iter().map(|(name, quantity)| format!("{name}={quantity}")));
    facts.extend(metadata.iter().map(|(key, value)| format!("@{key}={value}")));
    if let (Some(expire), Some(now)) = (expire_time, now) {
        let left = expire.seconds * 1000 + i64::from(expire.nanos) / 1_000_000 - now;
        facts.insert(format!("expires-in={}", milliseconds(left)));
    }
    for charge in charges {
        let v1::Charge { limit_group_id: id, unit, reserved_amount, committed, refunded, window_start, reset_time } =
            charge;
        for (name, amount) in [("reserved", reserved_amount), ("committed", committed), ("refunded", refunded)] {
            facts.insert(format!("{id}.{name}={amount}"));
        }
        facts.insert(format!("{id}.unit={unit}"));
        facts.insert(format!("{id}.start={}", shown(window_start.as_ref())));
        facts.insert(format!("{id}.reset={}", shown(reset_time.as_ref())));
    }
    facts
}

/// What a table can say of a fault: code, reason, fields, and facts of `ErrorInfo`.
pub fn fault(status: &Status) -> BTreeSet<String> {
    let details = status.get_error_details();
    let info = details.error_info().expect("every fault carries ErrorInfo");
    assert_eq!(info.domain, "tollgate");
    let code = format!("{:?}", status.code());
    let mut facts = BTreeSet::from([format!("code={code}"), info.reason.clone(), format!("({})", status.message())]);
    facts.extend(info.metadata.iter().map(|(key, value)| format!("{key}={value}")));
    for violation in details.bad_request().into_iter().flat_map(|bad| &bad.field_violations) {
        facts.insert(format!("field:{}", violation.field));
    }
    let retry = details.retry_info().is_some();
    assert_eq!(retry, status.code() == Code::Unavailable, "UNAVAILABLE, and only that, carries RetryInfo");
    facts
}

pub fn shown(time: Option<&prost_types::Timestamp>) -> String {
    let Some(time) = time else { return "none".to_owned() };
    jiff::Timestamp::new(time.seconds, time.nanos).expect("a time").to_string()
}

/// What a table can say of crossed thresholds: `crossed=a:0.8@80,a@100` names them all in order, a share with its amount and an amount alone.
/// `crossed:a.used=` and so on say more of each.
pub fn crossed(crossed: &[v1::CrossedThreshold]) -> BTreeSet<String> {
    let name = |threshold: &v1::CrossedThreshold| {
        let v1::CrossedThreshold { limit_group_id, share, amount, .. } = threshold;
        let share = share.map(|share| format!(":{share}")).unwrap_or_default();
        format!("{limit_group_id}{share}@{amount}")
    };
    let names: Vec<_> = crossed.iter().map(name).collect();
    let mut facts = BTreeSet::from([format!("crossed={}", names.join(","))]);
    for threshold in crossed {
        let v1::CrossedThreshold {
            limit_group_id: id,
            label,
            unit,
            share: _,
            amount: _,
            used,
            quota,
            unlimited,
            window_start,
            reset_time,
        } = threshold;
        facts.insert(format!("crossed:{id}.label={label}"));
        facts.insert(format!("crossed:{id}.unit={unit}"));
        facts.insert(format!("crossed:{id}.used={used}"));
        facts.insert(format!("crossed:{id}.quota={quota}"));
        flag(&mut facts, &format!("crossed:{id}.unlimited"), *unlimited);
        facts.insert(format!("crossed:{id}.start={}", shown(window_start.as_ref())));
        facts.insert(format!("crossed:{id}.reset={}", shown(reset_time.as_ref())));
    }
    facts
}
