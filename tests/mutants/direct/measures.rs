//! What few events come to: parts of parts, defaults of parts, refunds bit by bit, and stars that meet the ends of a value.

use tollgate::domain::fault::Fault;
use tollgate::domain::id::ReservationId;
use tollgate::ledger::{Ledger, NoAnswer};

use super::user::{MINUTE, TTL, User, event, made, used};

type Parts<'a> = &'a [(&'a str, &'a str)];

/// A refund, and of each group what it asks and what of that does not come back.
type Asked<'a> = (Parts<'a>, [(u64, u64); 3]);

fn group(id: &str, measures: &[&str]) -> String {
    let rules: Vec<_> = measures.iter().map(|measure| format!("{{ event: e, measure: {measure} }}")).collect();
    format!("{{ period: yearly, id: {id}, unit: tokens, quota: 90000, match: [{}] }}", rules.join(", "))
}

/// `c` is a part of `b`, and that of `a`.
const NESTED: &str =
    "[{ name: c, weight: 100, part_of: b, default: 0 }, { name: b, weight: 10, part_of: a }, { name: a }]";

/// The whole and its parts, of which a call has too much.
fn exceeds<T>(answer: Result<T, Fault>, of_group: &str, names: &[&str]) -> bool {
    matches!(answer, Err(Fault::PartsExceedWhole { group, whole, parts })
        if group == of_group && whole == names[0] && parts == names[1..])
}

fn fault<T>(answer: Result<T, NoAnswer>) -> Result<T, Fault> {
    answer.map_err(|no_answer| match no_answer {
        NoAnswer::Fault(fault) => fault,
        NoAnswer::Stale(_) => Fault::Contended,
    })
}

/// A reservation of these quantities, committed with those.
async fn committed(
    user: &User<'_>,
    reserved: Parts<'_>,
    actual: Option<Parts<'_>>,
) -> Option<(ReservationId, Vec<u64>)> {
    let (id, _) = made(user.reserve_for("", TTL, &event("e", reserved)).await)?;
    let done = user.commit(&id, actual.map(used).as_ref()).await.ok()?;
    Some((id, done.standings.iter().map(|standing| standing.requested).collect()))
}

/// What a refund asks of each group, and what of that did not come back.
async fn refunds(user: &User<'_>, id: &ReservationId, parts: Parts<'_>) -> Vec<(u64, u64)> {
    let answer = user.refund_reservation("", id, &event("e", parts)).await;
    let standings = answer.map(|tracked| tracked.standings).unwrap_or_default();
    standings.iter().map(|standing| (standing.requested, standing.unapplied)).collect()
}

/// Parts of parts; and which are told to exceed their whole.
pub async fn nested_parts(ledger: &Ledger) -> bool {
    let user = User::on(ledger, &format!("{}, {}", group("g", &["{ a: 1 }"]), group("h", &[NESTED, "{ a: 7 }"]))).await;
    let mut right = true;
    for (parts, charge) in [
        (&[("a", "10"), ("b", "4"), ("c", "3")][..], 316),
        (&[("a", "10"), ("b", "4")], 46),
        (&[("a", "10"), ("b", "10"), ("c", "10")], 1000),
        (&[("a", "0.7"), ("b", "0.5"), ("c", "0.25")], 28),
        (&[("a", "10")], 70),
    ] {
        let asked = user.can_use(&event("e", parts)).await;
        right &= asked.is_ok_and(|decision| decision.standings[1].requested == charge);
    }
    let both = [("a", "10"), ("b", "11"), ("c", "12")];
    right &= exceeds(fault(user.can_use(&event("e", &both)).await), "h", &["a", "b"]);
    let inner = [("a", "10"), ("b", "4"), ("c", "4.000001")];
    right &= exceeds(fault(user.reserve_for("", TTL, &event("e", &inner)).await), "h", &["b", "c"]);
    right &= exceeds(fault(user.track_for("", MINUTE, &event("e", &inner), false).await), "h", &["b", "c"]);
    right &= user.standing().await == Some((0, 0));
    user.delete().await;
    right
}

/// What a commit names of a whole, and of its parts.
pub async fn committed_parts(ledger: &Ledger) -> bool {
    // A default of 2, and a group that counts the part by itself.
    let parts = "[{ name: a }, { name: b, weight: 10, part_of: a, default: 2 }]";
    let groups = [group("g", &[NESTED]), group("h", &["{ c: 1 }"]), group("i", &[parts])].join(", ");
    let user = User::on(ledger, &groups).await;
    let reserved = [("a", "10"), ("b", "5"), ("c", "4")];
    let mut right = true;
    for (actual, charges) in [
        (None, [415, 4, 55]),
        (Some(&[("a", "9")][..]), [9, 4, 27]),
        (Some(&[("a", "9"), ("b", "3")]), [36, 4, 36]),
        (Some(&[("b", "6")]), [64, 4, 64]),
        (Some(&[("b", "6"), ("c", "6")]), [604, 6, 64]),
    ] {
        right &= committed(&user, &reserved, actual).await.is_some_and(|(_, found)| found == charges);
    }
    let Some((id, _)) = made(user.reserve_for("", TTL, &event("e", &reserved)).await) else { return false };
    for (actual, names) in [(&[("a", "9"), ("c", "1")][..], ["b", "c"]), (&[("a", "4"), ("b", "5")], ["a", "b"])] {
        right &= exceeds(user.commit(&id, Some(&used(actual))).await, "g", &names);
    }
    user.delete().await;
    // A rule that lacks only a part applies, where the commit names the whole.
    let user = User::on(ledger, &group("g", &["[{ name: a, weight: 3 }, { name: b, part_of: a }]", "{ a: 2 }"])).await;
    right &= committed(&user, &[("a", "5")], None).await.is_some_and(|(_, found)| found == [10]);
    right &= committed(&user, &[("a", "5")], Some(&[("a", "4")])).await.is_some_and(|(_, found)| found == [12]);
    user.delete().await;
    right
}

/// What comes back of a reservation whose quantities have parts.
pub async fn refunded_parts(ledger: &Ledger) -> bool {
    let parts = "[{ name: a }, { name: b, weight: 10, part_of: a, default: 2 }, { name: d, default: 7 }]";
    let groups = [group("g", &[NESTED]), group("h", &["{ c: 1 }"]), group("i", &[parts])].join(", ");
    let reserved = [("a", "10"), ("b", "5"), ("c", "4")];
    let mut right = true;
    let cases: [(Option<Parts<'_>>, &[Asked<'_>]); 5] = [
        // A default that came back in part.
        (Some(&[("a", "8")]), &[(&[("d", "3")], [(0, 0), (0, 0), (3, 0)]), (&[("a", "1")], [(1, 0), (0, 0), (1, 0)])]),
        // Bit by bit: the parts that a refund does not name stay as far as the whole does.
        (
            None,
            &[
                (&[("a", "3")], [(3, 0), (0, 0), (3, 0)]),
                // 4 stay, and 5 of the part, of which 4 count.
                (&[("a", "3")], [(12, 0), (0, 0), (12, 0)]),
                (&[("a", "0.5"), ("b", "0.5"), ("c", "0.5")], [(50, 0), (0, 0), (5, 0)]),
                (&[("a", "0.5"), ("b", "0.5"), ("c", "0.5")], [(50, 0), (1, 0), (5, 0)]),
                (&[("a", "0.5"), ("b", "0.5"), ("c", "0.5")], [(50, 0), (0, 0), (5, 0)]),
                (&[("a", "0.5"), ("b", "0.5"), ("c", "0.5")], [(50, 0), (1, 0), (5, 0)]),
                (&[("a", "2")], [(200, 0), (0, 0), (27, 0)]),
                (&[("a", "2"), ("b", "1"), ("c", "1")], [(101, 101), (1, 0), (11, 11)]),
            ],
        ),
        // The commit has named the whole alone: there is nothing of its parts, but where they are counted by themselves.
        (
            Some(&[("a", "8")]),
            &[
                (&[("a", "4")], [(4, 0), (0, 0), (4, 0)]),
                (&[("a", "1"), ("b", "1"), ("c", "1")], [(1, 0), (1, 0), (10, 0)]),
                (&[("a", "3")], [(3, 0), (0, 0), (19, 0)]),
            ],
        ),
        // It has named the part.
        (Some(&[("b", "6")]), &[(&[("a", "10"), ("b", "6")], [(64, 0), (0, 0), (71, 0)])]),
        // By the whole alone.
        (None, &[(&[("a", "10")], [(415, 0), (0, 0), (62, 0)])]),
    ];
    for (actual, asked) in cases {
        let user = User::on(ledger, &groups).await;
        let Some((id, _)) = committed(&user, &reserved, actual).await else { return false };
        for (parts, expected) in asked {
            right &= refunds(&user, &id, parts).await == expected;
        }
        user.delete().await;
    }
    // A refund names a whole to name its parts, and no more of them; also by a rule that was not committed by.
    // Although another group can measure it.
    let groups = format!("{}, {}", group("g", &["{ quantity: 1 }", NESTED]), group("h", &["{ a: 1 }"]));
    let user = User::on(ledger, &groups).await;
    let Some((id, _)) = committed(&user, &[("quantity", "5"), ("a", "3")], None).await else { return false };
    let too_much = event("e", &[("a", "1"), ("b", "2")]);
    right &= exceeds(user.refund_reservation("", &id, &too_much).await, "g", &["a", "b"]);
    let Some((id, _)) = committed(&user, &[("a", "5"), ("b", "5")], None).await else { return false };
    for (parts, names) in [(&[("b", "1")][..], ["a", "b"]), (&[("a", "1"), ("b", "1"), ("c", "2")], ["b", "c"])] {
        right &= exceeds(user.refund_reservation("", &id, &event("e", parts)).await, "g", &names);
    }
    user.delete().await;
    // The first parts keep what there is of the whole.
    let beside = "[{ name: a }, { name: b, weight: 10, part_of: a }, { name: c, weight: 100, part_of: a }]";
    let user = User::on(ledger, &group("g", &[beside])).await;
    let Some((id, _)) = committed(&user, &[("a", "10"), ("b", "6"), ("c", "4")], None).await else { return false };
    right &= refunds(&user, &id, &[("a", "6")]).await == [(420, 0)];
    user.delete().await;
    // By the rule that the commit made apply.
    let user = User::on(ledger, &group("g", &["[{ name: a, weight: 3 }, { name: b, part_of: a }]", "{ a: 2 }"])).await;
    let Some((id, _)) = committed(&user, &[("a", "5")], Some(&[("a", "4")])).await else { return false };
    right &= refunds(&user, &id, &[("a", "1")]).await == [(3, 0)];
    user.delete().await;
    // What a later rule would look up need not be a number.
    let user = User::on(ledger, &group("g", &[NESTED, "{ x: 1 }"])).await;
    let Some((id, _)) = committed(&user, &[("a", "5"), ("b", "5")], None).await else { return false };
    right &= refunds(&user, &id, &[("a", "1"), ("@x", "many")]).await == [(10, 0)];
    user.delete().await;
    right
}

/// The smallest charge, of which only CanUse is asked.
pub async fn smallest_charges(ledger: &Ledger) -> bool {
    let mut right = true;
    for (measures, parts, charge) in [
        (&["{ a: 1, b: 5 }", "{ a: 1000000 }"][..], &[][..], Some(1)),
        (&["{ a: 1000000, b: 5 }", "{ a: 1 }"], &[], Some(2)),
        (&["[{ name: a, default: 7 }, { name: b }]"], &[], Some(8)),
        (&["{ a: 1, b: 5 }"], &[("@a", "1")], None),
        (&["{ a: 1, b: 5 }", "{ c: 1 }"], &[("@c", "3")], Some(3)),
        (&["{ a: 1, b: 5 }", "{ b: 1, c: 1 }"], &[("@c", "3")], None),
        (&["{ a: 1, b: 5 }"], &[("@b", "x")], None),
        (&["{ a: 1, b: 5 }"], &[("other", "1")], None),
        // A whole counts at least as much as its parts, and these as theirs.
        (&["[{ name: a }, { name: b, weight: 10, part_of: a, default: 3 }]"], &[], Some(30)),
        (
            &["[{ name: a }, { name: b, weight: 10, part_of: a }, { name: c, weight: 100, part_of: b, default: 3 }]"],
            &[],
            Some(300),
        ),
        (&["[{ name: a, default: 5 }, { name: b, weight: 10, part_of: a }]"], &[], Some(6)),
        (&["[{ name: a }, { name: b, part_of: a }, { name: c, part_of: a }]"], &[], Some(1)),
    ] {
        let user = User::on(ledger, &group("g", measures)).await;
        let asked = user.can_use(&event("e", parts)).await;
        right &= asked.ok().map(|decision| decision.standings[0].requested) == charge;
        if charge != Some(3) {
            right &= user.reserve_for("", TTL, &event("e", parts)).await.is_err();
            right &= user.track_for("", MINUTE, &event("e", parts), false).await.is_err();
        }
        user.delete().await;
    }
    right
}

/// Pieces of a pattern have places of their own, in their order.
pub async fn stars(ledger: &Ledger) -> bool {
    let mut right = true;
    for (pattern, accepted, refused) in [
        ("aba*aba", &["abaaba", "abaxaba"][..], &["aba", "ababa", "abaxabax", "xabaaba"][..]),
        ("*-mini", &["-mini", "a-mini"], &["mini", "-minix"]),
        ("a*b*c", &["abc", "axbxc", "abcbc"], &["acb", "ac", "abcb", "abbbc."]),
        ("*aa*aa*", &["aaaa", "xaaxaax"], &["aaa", "aaxa"]),
        ("a*bc*c", &["abcc", "abcbcc"], &["abc"]),
        ("*a.b*", &["a.b", "xa.bx"], &["axb"]),
        ("*%a*", &["%a"], &["a"]),
        ("*a*a*a*a*b", &["aaaab"], &["aaab", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"]),
    ] {
        let rule = format!("{{ event: e, metadata: {{ k: \"{pattern}\" }} }}");
        let user =
            User::on(ledger, &format!("{{ period: yearly, id: g, unit: count, quota: 9, match: [{rule}] }}")).await;
        for (value, accepts) in
            accepted.iter().map(|value| (value, true)).chain(refused.iter().map(|value| (value, false)))
        {
            let decision = user.can_use(&event("e", &[("@k", value)])).await;
            right &= decision.is_ok_and(|decision| decision.denied.is_none() == accepts);
        }
        user.delete().await;
    }
    right
}
