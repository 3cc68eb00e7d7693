//! Commits of another event than was reserved: `actual.metadata`.

use crate::scenario::{Scenario, check};
use crate::support::Replica;

const CATALOG: &str = r"
default_plan: free
plans:
  free:
    period: daily
    limit_groups:
      - { id: all, unit: tokens, quota: 1000, match: [{ event: llm, measure: { in: 1, out: 1 } }] }
      - { id: small, unit: cents, quota: 50, match: [{ event: llm, metadata: { model: mini* }, measure: { in: 0.01, out: 0.02 } }] }
      - { id: calls, unit: count, quota: 20, match: [{ event: llm, measure: events }] }
      - { id: big, unit: cents, quota: 10, match: [{ event: llm, metadata: { model: [big, huge] }, measure: { in: 0.1, out: 0.2 } }] }
      - { id: eu, unit: count, quota: 5, match: [{ event: llm, metadata: { region: eu }, measure: events }] }
      - { id: images, unit: count, quota: 5, match: [{ event: llm, metadata: { model: draw }, measure: { pictures: 1 } }] }
";

#[tokio::test]
async fn a_fallback_model_is_charged_as_itself() {
    check(
        CATALOG,
        "
        clock u 2031-01-15T10:00:00Z
        reserve u llm in=20 out=30 @model=big @region=eu as=A => allowed groups=all,calls,big,eu big.held=8
        commit A @model=mini-2 out=10 => COMMITTED overage !late !replayed groups=all,small,calls,big,eu all.used=30 all.held=0 small.used=0.4 small.requested=0.4 small.held=0 big.used=0 big.held=0 big.requested=0 calls.used=1 eu.used=1 eu.held=0
        commit A @model=mini-2 out=10 => COMMITTED replayed overage small.used=0.4
        commit A @model=mini out=10 => COMMITTED replayed # another model of the same price
        commit A @model=mini-2 out=11 => ALREADY_COMMITTED committed.small=0.4
        commit A @model=mini-2 => ALREADY_COMMITTED
        commit A out=10 => ALREADY_COMMITTED # as the model that was reserved
        commit A => ALREADY_COMMITTED
        commit A @model=draw pictures=1 => ALREADY_COMMITTED
        commit A part out=11 => ALREADY_COMMITTED
        usage u => all.used=30 small.used=0.4 big.used=0 calls.used=1 eu.used=1
        reservation A => COMMITTED small.reserved=0 small.committed=0.4 big.reserved=8 big.committed=0 all.committed=30
        release A => ALREADY_COMMITTED
        # A group that costs nothing makes no difference.
        reserve u llm in=20 out=30 @model=big as=Z
        commit Z in=0 out=0 => COMMITTED big.used=0 all.used=30
        commit Z @model=mini in=0 out=0 => COMMITTED replayed groups=all,calls,big
        commit Z @model=mini in=1 => ALREADY_COMMITTED
        # A name and a value that no rule asks for change nothing.
        reserve u llm in=20 out=30 @model=big as=B => big.held=8
        commit B @trace=7 => COMMITTED !overage groups=all,calls,big big.used=8 all.used=80
        commit B => replayed
        # Less for one, more for another.
        reserve u llm in=20 out=5 @model=mini @region=us as=C => small.held=0.3
        commit C @region=eu in=2 => overage eu.used=2 all.used=87 small.used=0.52
    ",
    )
    .await;
}

#[tokio::test]
async fn metadata_alone_prices_what_was_reserved() {
    check(
        CATALOG,
        "
        clock u 2031-01-15T10:00:00Z
        reserve u llm in=20 out=30 @model=mini as=A => small.held=0.8
        commit A @model=big => COMMITTED overage small.used=0 small.held=0 big.used=8 big.remaining=2 all.used=50
        # It may pass the quota: it was spent.
        reserve u llm in=20 out=30 @model=mini as=B
        commit B @model=huge => overage big.used=16 big.remaining=0 big.exceeded
        reserve u llm in=1 out=1 @model=big => denied
        # What Extend has added, and what partial commits have named, counts as well.
        reserve u llm in=10 out=10 @model=mini as=C
        extend C out=10 => extended
        commit C part out=12 => HELD all.used=122 all.held=8 small.used=0.34
        commit C @model=none => COMMITTED all.used=122 all.held=0 small.used=0 small.held=0 groups=all,small,calls
        # A quantity under a measured name is a quantity.
        reserve u llm in=10 out=10 @model=mini as=D => small.held=0.3
        commit D @out=5 => COMMITTED small.used=0.2 all.used=137
        reserve u llm in=10 out=10 @model=mini as=E
        commit E @out=5 out=6 => small.used=0.42
    ",
    )
    .await;
}

#[tokio::test]
async fn a_commit_of_another_event_that_cannot_be_priced_changes_nothing() {
    check(
        CATALOG,
        "
        clock u 2031-01-15T10:00:00Z
        reserve u llm in=20 out=30 @model=big as=A
        commit A @model=draw => QUANTITY_MISSING field:event.quantities[\"pictures\"]
        commit A @model=draw tokens=3 => QUANTITY_MISSING
        commit A @model=mini tokens=3 => NOTHING_MEASURED field:actual
        clock v 2031-01-15T10:00:00Z
        reserve v llm in=1 out=1 @model=big @pictures=1e3 as=P => allowed # no group that matches counts pictures
        commit P @model=draw => QUANTITY_MISSING limit_group_id=images quantity=pictures
        commit P @model=draw pictures=2 => COMMITTED images.used=2
        commit A @out=1,000 => INVALID_FIELD field:actual.metadata[\"out\"]
        commit A part @model=mini out=1 => INVALID_FIELD field:actual.metadata
        extend A @model=mini out=1 => INVALID_FIELD field:add.metadata
        extend A @model=mini => INVALID_FIELD field:add.metadata
        commit A out=9007199254740991 @model=huge => OUT_OF_RANGE
        commit \"AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAdkZWZhdWx0BgBub2JvZHk\" @model=mini => RESERVATION_NOT_FOUND
        usage u => big.held=8 big.used=0 all.held=50 images.used=0 small.used=0
        commit A @model=draw pictures=2 => COMMITTED images.used=2 big.used=0 big.held=0
    ",
    )
    .await;
}

#[tokio::test]
async fn an_event_that_no_group_matches_any_more_is_refused() {
    check(
        "default_plan: free
plans:
  free:
    period: daily
    limit_groups:
      - { id: big, unit: count, quota: 10, match: [{ event: llm, metadata: { model: big } }] }
",
        "
        clock u 2031-01-15T10:00:00Z
        reserve u llm 3 @model=big as=A
        commit A @model=small => UNMATCHED_EVENT field:actual.metadata
        usage u => big.held=3
        commit A @model=big 2 => COMMITTED big.used=2
    ",
    )
    .await;
}

#[tokio::test]
async fn a_late_commit_of_another_event_counts_in_the_window_of_now() {
    check(
        CATALOG,
        "
        clock u 2031-01-15T23:59:30Z
        reserve u llm in=20 out=30 @model=big as=A => big.held=8
        reserve u llm in=20 out=30 @model=mini as=B counting
        reserve u llm in=20 out=30 @model=mini as=C
        release C
        clock u 2031-01-16T00:00:10Z
        # Reserved yesterday, so all counts yesterday, and small, which matches only now, today.
        commit A @model=mini => COMMITTED !late overage all.used=50 all.start=2031-01-15T00:00:00Z small.used=0.8 small.start=2031-01-16T00:00:00Z big.used=0
        usage u => all.used=0 small.used=0.8
        clock u 2031-01-16T00:00:30Z
        reservation B => EXPIRED
        usage u at=2031-01-15T12:00:00Z => all.used=100 small.used=0.8 big.used=0
        commit B @model=big out=10 => COMMITTED late overage all.used=80 small.used=0 big.used=4 big.start=2031-01-16T00:00:00Z small.start=2031-01-15T00:00:00Z
        commit C @model=big in=1 out=1 => COMMITTED late big.used=4.3
        commit C @model=big in=1 out=1 => COMMITTED late replayed
        usage u => big.used=4.3 small.used=0.8
    ",
    )
    .await;
}

#[tokio::test]
async fn a_refund_is_of_what_was_committed() {
    check(
        CATALOG,
        "
        clock u 2031-01-15T10:00:00Z
        reserve u llm in=20 out=30 @model=big @region=eu as=A
        commit A @model=mini out=10 @region=us => small.used=0.4 all.used=30 eu.used=0
        track u llm.refund out=10 of=A id=r => small.used=0.2 small.requested=0.2 all.used=20 big.used=0 big.requested=0 eu.used=0
        track u llm.refund out=10 of=A id=r => replayed small.used=0.2
        track u llm.refund in=20 of=A => small.used=0 all.used=0 big.requested=0
        track u llm.refund in=20 of=A => small.unapplied=0.2
        commit A @model=mini @region=us out=10 => replayed
    ",
    )
    .await;
}

#[tokio::test]
async fn a_reset_ends_what_a_commit_of_another_event_can_give_back() {
    check(
        CATALOG,
        "
        clock u 2031-01-15T10:00:00Z
        reserve u llm in=20 out=30 @model=mini as=A
        commit A part out=30 => small.used=0.8 small.held=0
        track u llm in=5 out=0 @model=mini => small.used=0.85
        reset u groups=small => small.used=0
        track u llm in=5 out=0 @model=mini => small.used=0.05
        commit A @model=big => COMMITTED small.used=0.05 small.unapplied=0.8 big.used=8
    ",
    )
    .await;
}

#[tokio::test]
async fn the_windows_are_those_of_the_reservations_plan_and_of_the_present_anchor() {
    let catalog = |zone: &str, rest: &str| {
        format!(
            "plans:
  pro:
    period: daily
    anchor: subscription_start
    timezone: {zone}
    limit_groups:
      - {{ id: one, unit: count, quota: 10, match: [{{ event: llm, metadata: {{ model: big }} }}] }}
      - {{ id: two, unit: count, quota: 10, match: [{{ event: llm, metadata: {{ model: mini }} }}] }}
      - {{ id: cal, unit: count, quota: 10, anchor: calendar, match: [{{ event: llm, metadata: {{ model: mini }} }}] }}
      - {{ id: first, unit: count, quota: 10, period: 5h, anchor: first_use, match: [{{ event: llm, metadata: {{ model: mini }} }}] }}
  {rest}
"
        )
    };
    let other = "other: { limit_groups: [{ id: x, unit: count, period: daily, quota: 1, match: [{ event: x }] }] }";
    let old = Replica::start(&catalog("Asia/Kolkata", other)).await;
    // It no longer has the plan as it was, so that only the archive says its time zone.
    let new = Replica::start(&format!("plans: {{ {other} }}")).await;
    Scenario::new(vec![("old", old), ("new", new)])
        .run(
            "
        clock u 2031-01-15T10:00:00Z
        subscribe u pro anchor=2031-01-15T07:00:00Z
        reserve u llm 3 @model=big as=A => one.held=3 one.start=2031-01-15T07:00:00Z
        reserve u llm 1 @model=big as=B
        # The other replica has never seen the subscription.
        on new
        commit A @model=mini 2 => COMMITTED groups=one,two,cal,first one.held=1 two.used=2 two.start=2031-01-15T07:00:00Z cal.start=2031-01-14T18:30:00Z cal.reset=2031-01-15T18:30:00Z first.used=2 first.start=2031-01-15T10:00:00Z first.reset=2031-01-15T15:00:00Z
        on old
        usage u => one.held=1 two.used=2 cal.used=2 first.used=2
        reserve u llm 4 @model=mini => two.held=4 two.used=2 first.used=2
        subscribe u pro anchor=2031-01-15T09:00:00Z
        on new
        commit B @model=mini => two.used=1 two.start=2031-01-15T09:00:00Z cal.used=3 first.used=3 one.used=0
    ",
        )
        .await;
}
