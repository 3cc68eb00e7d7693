//! Commits and refunds by what was really used: what measures nothing, what is rounded, and what costs nothing.

use crate::scenario::check;

const CATALOG: &str = r"
default_plan: free
plans:
  free:
    period: monthly
    limit_groups:
      - id: tokens
        unit: tokens
        quota: 100000
        match:
          - { event: llm.tokens, measure: { prompt_tokens: 1, completion_tokens: 1 } }
          - { event: llm.tokens, measure: quantity }
      - { id: calls, unit: count, quota: 10, match: [{ event: llm.tokens, measure: events }, { event: call, measure: events }] }
      - { id: rounded, unit: count, quota: 100, match: [{ event: work, measure: { n: 0.001 } }] }
      - { id: tenths, unit: cents, quota: 100, match: [{ event: work, measure: { n: 0.0000001, m: 0.1 } }] }
      - { id: base, unit: count, quota: 100, match: [{ event: extra, measure: [{ name: n, weight: 1 }, { name: d, weight: 2, default: 3 }] }] }
";

#[tokio::test]
async fn a_commit_that_measures_nothing_is_refused_and_changes_nothing() {
    check(
        CATALOG,
        "
        reserve u llm.tokens prompt_tokens=1200 completion_tokens=800 as=A => allowed tokens.held=2000
        commit A 350 => code=InvalidArgument NOTHING_MEASURED field:actual
        commit A input_tokens=1200 output_tokens=20 => code=InvalidArgument NOTHING_MEASURED field:actual
        commit A completion_token=20 => code=InvalidArgument NOTHING_MEASURED
        commit A total_tokens=1220 => code=InvalidArgument NOTHING_MEASURED
        commit A nothing => code=InvalidArgument NOTHING_MEASURED
        usage u => tokens.used=0 tokens.held=2000
        # One measured name is enough; the other quantities stay as reserved.
        commit A completion_tokens=20 typo=1 => COMMITTED tokens.used=1220 tokens.held=0
        commit A total_tokens=1220 => code=InvalidArgument NOTHING_MEASURED
        commit A completion_tokens=20 => COMMITTED replayed tokens.used=1220
    ",
    )
    .await;
}

#[tokio::test]
async fn a_commit_may_name_anything_where_only_events_are_counted_and_the_quantity_where_that_is_measured() {
    check(
        CATALOG,
        "
        reserve u call as=A => allowed
        commit A n=5 => COMMITTED calls.used=1
        reserve u call as=B => allowed
        commit B nothing => COMMITTED calls.used=2
        reserve u llm.tokens 500 as=C => allowed
        commit C 350 => COMMITTED tokens.used=350
        reserve u llm.tokens 500 as=D => allowed
        commit D prompt_tokens=3 => code=InvalidArgument NOTHING_MEASURED
        commit D prompt_tokens=3 completion_tokens=4 => COMMITTED tokens.used=357
    ",
    )
    .await;
}

#[tokio::test]
async fn a_commit_that_names_the_quantity_twice_is_counted_by_the_named_one_as_an_event_is() {
    check(
        CATALOG,
        "
        track u llm.tokens 16 quantity=4 => tokens.used=4
        reserve u llm.tokens 16 quantity=4 as=A => allowed tokens.held=4
        commit A 20 quantity=5 => COMMITTED tokens.used=9 calls.used=2
        commit A 5 => COMMITTED replayed tokens.used=9
    ",
    )
    .await;
}

#[tokio::test]
async fn refunding_all_that_was_committed_gives_back_every_charge_whatever_the_rounding() {
    check(
        CATALOG,
        "
        reserve u work n=999 m=2 as=A => allowed
        commit A => rounded.used=1 tenths.used=0.2001
        track u work.refund n=998 of=A => rounded.used=1 rounded.requested=0 tenths.used=0.200001
        track u work.refund n=1 of=A => rounded.used=0 rounded.requested=1 rounded.unapplied=0 tenths.used=0.2
        track u work.refund m=2 of=A => rounded.used=0 tenths.used=0 tenths.unapplied=0
        # What was never committed comes back to nobody.
        track u work.refund n=2000 of=A => rounded.requested=2 rounded.unapplied=2 rounded.used=0
    ",
    )
    .await;
}

#[tokio::test]
async fn a_refund_settles_at_what_stays_of_the_committed_quantities_not_of_the_reserved() {
    check(
        CATALOG,
        "
        reserve u llm.tokens prompt_tokens=1000 completion_tokens=1000 as=A => allowed
        commit A completion_tokens=100.5 => tokens.used=1101
        track u llm.tokens.refund completion_tokens=0.4 of=A => tokens.used=1101 tokens.requested=0
        track u llm.tokens.refund completion_tokens=0.1 of=A => tokens.used=1100 tokens.requested=1
        track u llm.tokens.refund prompt_tokens=1000 of=A => tokens.used=100 calls.used=1 calls.requested=0
        track u llm.tokens.refund completion_tokens=150 of=A => tokens.used=0 tokens.requested=150 tokens.unapplied=50
        # By another rule than it was committed by: so much less of what is left.
        reserve u llm.tokens prompt_tokens=1000 completion_tokens=1000 as=B => allowed
        commit B => tokens.used=2000
        track u llm.tokens.refund 300 of=B => tokens.used=1700
        track u llm.tokens.refund prompt_tokens=1000 completion_tokens=1000 of=B => tokens.used=0 tokens.requested=1700 tokens.unapplied=0
        track u llm.tokens.refund typo=1 of=B => code=InvalidArgument QUANTITY_MISSING
        # A default is part of the charge, and comes back with the last of what was committed.
        reserve u extra n=5 as=C => allowed
        commit C => base.used=11
        track u extra.refund n=4 of=C => base.used=7
        track u extra.refund n=1 of=C => base.used=0
    ",
    )
    .await;
}

#[tokio::test]
async fn a_refund_does_not_lower_what_others_have_used_since_a_reset() {
    check(
        "
default_plan: p
plans:
  p: { limit_groups: [{ id: g, unit: tokens, quota: 1000, period: monthly, match: [{ event: t }] }] }
  q: { on_plan_change: reset, limit_groups: [{ id: g, unit: tokens, quota: 1000, period: monthly, match: [{ event: t }] }] }
",
        "
        reserve u t 100 as=A => allowed
        commit A => g.used=100
        subscribe u q
        track u t.refund 60 of=A => g.used=0 g.requested=60 g.unapplied=60
        track u t 500 => g.used=500
        track u t.refund 60 of=A => g.used=500 g.requested=60 g.unapplied=60
    ",
    )
    .await;
}

#[tokio::test]
async fn what_costs_nothing_fits_a_full_group_but_not_one_whose_quota_is_0() {
    check(
        "
default_plan: p
plans:
  p:
    limit_groups:
      - { id: g, unit: cents, quota: 100, period: monthly, match: [{ event: paid }, { event: free, measure: { n: 0 } }] }
  none:
    limit_groups:
      - { id: g, unit: cents, quota: 0, period: monthly, match: [{ event: free, measure: { n: 0 } }] }
",
        "
        reserve u paid 100 as=A => allowed
        commit A 100.000001 => overage g.used=100.000001
        reserve u free n=7 => allowed g.requested=0 g.held=0
        can u free n=7 => allowed
        track u free n=7 enforce => MATCHED g.used=100.000001
        reserve u paid 0.000001 => denied
        subscribe v none
        reserve v free n=7 => denied g.shortfall=0
        track v free n=7 enforce => BLOCKED
    ",
    )
    .await;
}
