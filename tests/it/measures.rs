//! What an event costs: quantities that are parts of others, stars in values of metadata, and CanUse without any quantity.

use crate::scenario::{check, check_with};
use crate::support::{Replica, redis_options};

const PARTS: &str = r"
default_plan: free
plans:
  free:
    period: monthly
    limit_groups:
      - id: spend
        unit: cents
        quota: 1000
        match:
          - event: chat
            measure:
              - { name: prompt, weight: 1 }
              - { name: cached, weight: 0.1, part_of: prompt, default: 0 }
              - { name: answer, weight: 2, default: 0 }
      # Knows nothing of parts.
      - { id: cached, unit: tokens, quota: 1000, match: [{ event: chat, measure: [{ name: cached, default: 0 }] }] }
      - id: nested
        unit: tokens
        quota: 100000
        match:
          - event: deep
            measure:
              - { name: inner, weight: 100, part_of: middle, default: 0 }
              - { name: middle, weight: 10, part_of: outer, default: 0 }
              - { name: beside, weight: 1000, part_of: outer, default: 0 }
              - { name: outer, weight: 1 }
      - id: needed
        unit: tokens
        quota: 1000
        match:
          - { event: strict, measure: [{ name: whole, weight: 3 }, { name: part, weight: 1, part_of: whole }] }
          - { event: strict, measure: [{ name: whole, weight: 2 }] }
      - { id: rounded, unit: count, quota: 100, match: [{ event: round, measure: [{ name: whole, weight: 0.5 }, { name: part, weight: 0.1, part_of: whole, default: 0 }] }] }
";

#[tokio::test]
async fn a_whole_counts_what_is_in_none_of_its_parts() {
    check(
        PARTS,
        "
        track u chat prompt=100 cached=40 answer=10 => spend.requested=84 cached.requested=40
        track u chat prompt=100 => spend.requested=100
        track u chat prompt=40 cached=40 => spend.requested=4
        track u chat prompt=0.5 cached=0.25 => spend.requested=0.275
        track u chat prompt=100 @cached=40 => spend.requested=64 # also from the metadata
        reserve u chat prompt=100 cached=40 => allowed spend.held=64
        can u chat prompt=100 cached=40 => allowed spend.requested=64
        track v deep outer=10 => nested.requested=10
        track v deep outer=10 middle=4 => nested.requested=46
        track v deep outer=10 middle=4 inner=3 => nested.requested=316
        track v deep outer=0.01 middle=0.004 inner=0.003 => nested.requested=1 # rounded up once
        track w deep outer=5 middle=0.004 beside=0.5 => nested.requested=505
        # A plain refund gives back what the event costs, rounded down.
        track x chat prompt=100 cached=40 => spend.used=64
        track x chat.refund prompt=50 cached=40 => spend.used=50 spend.requested=14
        track y round whole=3 part=1 => rounded.requested=2
        track y round.refund whole=3 part=1 => rounded.requested=1 rounded.used=1
    ",
    )
    .await;
}

#[tokio::test]
async fn parts_that_exceed_their_whole_are_refused_before_anything_is_written() {
    let mut table = String::new();
    for call in ["reserve u E id=r1", "track u E id=r1", "track u E enforce", "can u E", "track u E.refund"] {
        let call = |event: &str, values: &str| format!("{} {values}", call.replace('E', event));
        let chat = call("chat", "prompt=39.999999 cached=40");
        table += &format!(
            "{chat} => code=InvalidArgument PARTS_EXCEED_WHOLE limit_group_id=spend quantity=prompt parts=cached field:event.quantities[\"prompt\"]\n"
        );
        let deep = call("deep", "outer=10 middle=6 beside=5");
        table += &format!("{deep} => PARTS_EXCEED_WHOLE limit_group_id=nested quantity=outer\n");
        let inner = call("deep", "outer=10 middle=6 inner=7");
        table += &format!("{inner} => PARTS_EXCEED_WHOLE quantity=middle parts=inner\n");
    }
    check(
        PARTS,
        &format!(
            "
        {table}
        usage u => spend.used=0 spend.held=0 cached.used=0 nested.used=0
        # No later rule stands in.
        track u strict whole=1 part=2 => PARTS_EXCEED_WHOLE
        track u strict whole=1 => needed.requested=2
        # Sums that no double has: each part is taken off by itself.
        track u deep outer=9007199254740991 middle=9007199254740990 beside=2 => PARTS_EXCEED_WHOLE
        reserve u chat prompt=100 cached=40 id=r1 as=A => allowed
        commit A prompt=39 cached=40 => PARTS_EXCEED_WHOLE limit_group_id=spend
        commit A cached=101 => PARTS_EXCEED_WHOLE # the whole stays as reserved
        usage u => spend.used=0 spend.held=64
        commit A cached=100 => COMMITTED spend.used=10
    "
        ),
    )
    .await;
}

#[tokio::test]
async fn a_commit_that_names_the_whole_takes_unnamed_parts_for_their_default() {
    check(
        PARTS,
        "
        reserve u chat prompt=100 cached=40 answer=10 as=A => allowed spend.held=84
        # In the group without `part_of` the cached tokens stay as reserved.
        commit A prompt=50 => COMMITTED spend.used=70 cached.used=40
        commit A prompt=50 => replayed
        commit A prompt=50 cached=0 => ALREADY_COMMITTED # other cached tokens
        reserve v chat prompt=100 cached=40 as=B => allowed
        commit B cached=50 => spend.used=55 cached.used=50
        reserve w chat prompt=100 cached=40 as=C => allowed
        commit C => spend.used=64 cached.used=40
        reserve x deep outer=10 middle=5 inner=4 as=D => allowed nested.held=415
        commit D outer=8 => nested.used=8 # and the parts of the parts
        reserve y deep outer=10 middle=5 inner=4 as=E => allowed
        commit E outer=8 middle=3 => nested.used=35
        reserve z deep outer=10 middle=5 inner=4 as=F => allowed
        commit F outer=8 inner=3 => PARTS_EXCEED_WHOLE quantity=middle
        commit F middle=6 => nested.used=64
        # A rule that lacked only a part applies.
        reserve z strict whole=10 as=G => allowed needed.held=20
        commit G whole=7 => needed.used=21 overage
    ",
    )
    .await;
}

#[tokio::test]
async fn refunding_all_that_was_committed_gives_back_every_charge() {
    check(
        PARTS,
        "
        reserve u chat prompt=100 cached=40 answer=10 as=A => allowed
        commit A => spend.used=84 cached.used=40
        track u chat.refund cached=40 of=A => code=InvalidArgument PARTS_EXCEED_WHOLE limit_group_id=spend quantity=prompt
        track u chat.refund prompt=40 cached=41 of=A => PARTS_EXCEED_WHOLE
        usage u => spend.used=84 cached.used=40
        track u chat.refund prompt=10 cached=10 of=A => spend.requested=1 spend.used=83 cached.used=30
        track u chat.refund prompt=30 of=A => spend.requested=30 spend.used=53 cached.requested=0
        # 60 stay, 30 of them cached.
        track u chat.refund prompt=40 of=A => spend.requested=31 spend.used=22
        # 20 stay, and 30 cached ones, of which the whole has room for 20.
        track u chat.refund answer=10 of=A => spend.requested=20 spend.used=2
        track u chat.refund prompt=20 of=A => spend.requested=2 spend.used=0 spend.unapplied=0 cached.used=30
        track u chat.refund prompt=30 cached=30 of=A => spend.requested=3 spend.unapplied=3 spend.used=0 cached.used=0 cached.unapplied=0
        # All at once, and by the whole alone.
        reserve v chat prompt=100 cached=40 answer=10 as=B => allowed
        commit B prompt=90 cached=30
        track v chat.refund prompt=90 cached=30 answer=10 of=B => spend.used=0 spend.unapplied=0 cached.used=0
        reserve v chat prompt=100 cached=40 answer=10 as=C => allowed
        commit C
        track v chat.refund prompt=100 answer=10 of=C => spend.used=0 spend.unapplied=0 cached.used=40
        # Whatever the rounding.
        reserve w round whole=3 part=1 as=D => allowed
        commit D => rounded.used=2
        track w round.refund whole=1 part=1 of=D => rounded.used=1 rounded.requested=1
        track w round.refund whole=2 of=D => rounded.used=0 rounded.requested=1
        # What was never committed.
        track w round.refund whole=10 of=D => rounded.requested=5 rounded.unapplied=5
    ",
    )
    .await;
}

#[tokio::test]
async fn a_refund_settles_by_what_the_commit_has_named() {
    check(
        PARTS,
        "
        # The commit named the whole alone, so that nothing was cached; elsewhere it stays as reserved.
        reserve u chat prompt=100 cached=40 as=A => allowed
        commit A prompt=50 => spend.used=50 cached.used=40
        track u chat.refund prompt=20 of=A => spend.used=30 cached.used=40
        track u chat.refund prompt=10 cached=10 of=A => spend.used=20 spend.requested=10 cached.used=30
        track u chat.refund prompt=20 of=A => spend.used=0 spend.unapplied=0 cached.used=30
        track u chat.refund prompt=30 cached=30 of=A => spend.requested=3 spend.unapplied=3 cached.used=0 cached.unapplied=0
        # The commit named nothing: 40 were cached, also after the whole was refunded in part.
        reserve v chat prompt=100 cached=40 as=B => allowed
        commit B => spend.used=64
        track v chat.refund prompt=20 of=B => spend.used=44
        track v chat.refund prompt=40 of=B => spend.used=4
        track v chat.refund prompt=40 cached=40 of=B => spend.used=0 spend.unapplied=0 cached.used=0
        # The first parts keep what there is of the whole.
        reserve u deep outer=10 middle=6 beside=4 inner=5 as=A => allowed
        commit A => nested.used=4510
        track u deep.refund outer=2 of=A => nested.requested=2000 nested.used=2510
        track u deep.refund outer=4 of=A => nested.requested=2110 nested.used=400
        track u deep.refund outer=4 middle=4 inner=4 of=A => nested.requested=400 nested.used=0
    ",
    )
    .await;
}

#[tokio::test]
async fn a_reservation_with_parts_is_settled_by_its_own_plan() {
    let options = tollgate::meter::MeterOptions::default();
    let other = PARTS.replace(", part_of: prompt", "");
    let replicas = vec![
        ("parts", Replica::start(PARTS).await),
        ("none", Replica::start_with(&other, jiff::tz::db(), options.clone(), redis_options()).await),
    ];
    let mut scenario = crate::scenario::Scenario::new(replicas);
    scenario
        .run(
            "
        reserve u chat prompt=100 cached=40 as=A => allowed spend.held=64
        on none
        reserve u chat prompt=100 cached=40 as=B => allowed spend.held=168
        commit A prompt=50 cached=40 => spend.used=14
        track u chat.refund prompt=10 cached=0 of=A => spend.used=4
        on parts
        commit B => spend.used=108
        track u chat.refund cached=40 of=B => spend.used=104
    ",
        )
        .await;
    check_with(PARTS, options, "track u chat prompt=1 cached=1 => spend.used=0.1").await;
}

const STARS: &str = r#"
default_plan: free
plans:
  free:
    period: monthly
    limit_groups:
      - { id: mini, unit: count, quota: 100, match: [{ event: x, metadata: { model: "*-mini" } }] }
      - { id: both, unit: count, quota: 100, match: [{ event: x, metadata: { model: "gpt-*-mini*" } }] }
      - { id: inside, unit: count, quota: 100, match: [{ event: x, metadata: { model: [o1, "*4*o*", claude*] } }] }
      - { id: ends, unit: count, quota: 100, match: [{ event: x, metadata: { model: "aba*aba" } }] }
      - { id: nasty, unit: count, quota: 100, match: [{ event: x, metadata: { model: "*a*a*a*a*b" } }] }
      - { id: any, unit: count, quota: 1000, match: [{ event: x, metadata: { model: "**" } }] }
"#;

#[tokio::test]
async fn a_star_stands_for_any_text_at_any_place_of_a_value() {
    let long = "a".repeat(256);
    check(
        STARS,
        &format!(
            "
        track u x @model=gpt-4o-mini => groups=mini,both,inside,any
        track u x @model=gpt-4o-mini-2024-07-18 => groups=both,inside,any
        track u x @model=-mini => groups=mini,any
        track u x @model=gpt-mini => groups=mini,any
        track u x @model=gpt--mini => groups=mini,both,any
        track u x @model=GPT-4o-mini => groups=mini,inside,any
        track u x @model=o1 => groups=inside,any
        track u x @model=claude-3 => groups=inside,any
        track u x @model=o4 => groups=any
        track u x @model=a4bo => groups=inside,any
        track u x @model=aba => groups=any # neither end takes characters of the other
        track u x @model=ababa => groups=any
        track u x @model=abaaba => groups=ends,any
        track u x @model=aaaab => groups=nasty,any
        track u x @model=aaab => groups=any
        track u x @model= => groups=any
        track u x @other=o1 => UNMATCHED
        track u x @model={long} => groups=any
        track u x @model=%s => groups=any # a pattern is no pattern of Lua
    "
        ),
    )
    .await;
}

const SMALLEST: &str = r"
default_plan: free
plans:
  free:
    period: monthly
    limit_groups:
      - id: tokens
        unit: tokens
        quota: 10
        match:
          - { event: chat, measure: { prompt: 1, answer: 1 } }
          - { event: chat, measure: { prompt: 5 } }
      - { id: chats, unit: count, quota: 3, match: [{ event: chat, measure: events }] }
      - { id: images, unit: count, quota: 20, match: [{ event: image }, { event: turn, measure: { steps: 2 } }] }
      - { id: spend, unit: cents, quota: 1, match: [{ event: chat, measure: { prompt: 0.5, answer: 200000 } }] }
      - { id: audio, unit: seconds, quota: 60, match: [{ event: audio, measure: { seconds: 1 } }] }
      - { id: heavy, unit: tokens, quota: 2, match: [{ event: heavy, measure: { quantity: 1000000 } }] }
      - { id: fixed, unit: tokens, quota: 20, match: [{ event: fixed, measure: [{ name: n, default: 7 }, { name: m }] }] }
      - id: parts
        unit: tokens
        quota: 100
        match:
          - event: whole
            measure:
              - { name: whole }
              - { name: part, weight: 10, part_of: whole, default: 3 }
              - { name: other, weight: 1, part_of: whole }
";

#[tokio::test]
async fn can_use_without_a_quantity_asks_for_the_smallest_charge() {
    check(
        SMALLEST,
        "
        can u chat => allowed groups=tokens,chats,spend tokens.requested=1 chats.requested=1 spend.requested=0.200001
        can u image => allowed images.requested=1
        can u turn => allowed images.requested=1
        can u audio => allowed audio.requested=0.001
        can u heavy => allowed heavy.requested=1
        can u fixed => allowed fixed.requested=8
        can u whole => allowed parts.requested=31 # the whole counts as much as its parts
        can u other => denied UNMATCHED_EVENT
        usage u => tokens.used=0 tokens.held=0
        # Only CanUse asks so.
        reserve u chat => code=InvalidArgument QUANTITY_MISSING limit_group_id=tokens quantity=prompt
        track u chat => QUANTITY_MISSING
        track u chat enforce => QUANTITY_MISSING
        track u chat.refund => QUANTITY_MISSING
        # With some quantity, but not the one that is measured.
        can u chat 1 => code=InvalidArgument QUANTITY_MISSING limit_group_id=tokens quantity=prompt
        can u chat typo=1 => QUANTITY_MISSING
        can u chat answer=1 => QUANTITY_MISSING
        can u chat @answer=1 => QUANTITY_MISSING quantity=prompt
        can u chat @prompt=2 => QUANTITY_MISSING limit_group_id=spend quantity=answer # a rule of `tokens` applies
        can u chat @prompt=many => code=InvalidArgument INVALID_FIELD
        can u chat @answer=1,000 => INVALID_FIELD
        can u chat @prompt=2 @answer=0 => allowed tokens.requested=2
        can u audio @prompt=5 => allowed audio.requested=0.001 # no number that this group measures
        # Full to the last token, and beyond.
        track u chat prompt=9 answer=0.5 => tokens.used=10
        can u chat => denied LIMIT_REACHED tokens.shortfall=1 spend.shortfall=100003.700001 chats.shortfall=0
        track v chat prompt=9 answer=0
        can v chat => denied tokens.shortfall=0 spend.shortfall=3.700001
        can v audio => allowed
    ",
    )
    .await;
}
