//! Track and refunds.

use crate::scenario::check;

const CATALOG: &str = r"
default_plan: free
plans:
  free:
    period: monthly
    limit_groups:
      - id: tokens
        unit: tokens
        quota: 10000
        match:
          - { event: llm.tokens, measure: { prompt_tokens: 1, completion_tokens: 1 } }
          - { event: llm.tokens }
      - id: chats
        unit: count
        period: daily
        quota: 10
        match: [{ event: llm.tokens, measure: events }]
      - id: spend
        unit: cents
        quota: 500
        match:
          - { event: llm.tokens, metadata: { model: gpt-4o }, measure: { prompt_tokens: 0.00025, completion_tokens: 0.001 } }
          - { event: agent.run }
          - { event: agent.step }
      - id: images
        unit: count
        quota: 20
        match: [{ event: image.render }]
      - id: images_flux
        unit: count
        quota: 3
        match: [{ event: image.render, metadata: { model: flux* } }]
      - id: audio
        unit: seconds
        quota: 60
        match: [{ event: audio.transcribe, measure: { seconds: 1 } }]
";

#[tokio::test]
async fn track_counts_whatever_the_limits_say() {
    check(
        CATALOG,
        "
        track u llm.tokens 9999 as=E => MATCHED groups=tokens,chats tokens.used=9999 !tokens.exceeded !no-id
        track u llm.tokens 500 => MATCHED tokens.used=10499 tokens.exceeded tokens.remaining=0 tokens.requested=500
        reserve u llm.tokens 1 => denied
        track u llm.tokns 1 => UNMATCHED no-id UNMATCHED_EVENT
        usage u => tokens.used=10499 chats.used=2
    ",
    )
    .await;
}

#[tokio::test]
async fn track_with_enforce_checks_and_counts_in_one_step() {
    check(
        CATALOG,
        "
        reserve u llm.tokens 4000 as=A => allowed
        track u llm.tokens 6001 enforce id=t1 => BLOCKED LIMIT_REACHED no-id tokens.shortfall=1 tokens.used=0 chats.used=0
        track u llm.tokens 6000 enforce => MATCHED tokens.used=6000 tokens.held=4000
        release A
        track u llm.tokens 6001 enforce id=t1 => BLOCKED !replayed tokens.shortfall=2001
        track u llm.tokens 4000 enforce id=t2 => MATCHED tokens.used=10000
        usage u => tokens.used=10000 chats.used=2
    ",
    )
    .await;
}

#[tokio::test]
async fn once_a_retried_track_counts_once() {
    check(
        CATALOG,
        "
        clock u 2031-01-15T12:00:00Z
        track u llm.tokens 100 id=t1 as=E => MATCHED !replayed tokens.used=100
        track u llm.tokens 50 => tokens.used=150
        track u llm.tokens 100 id=t1 => MATCHED replayed same-as=E tokens.requested=100 tokens.used=150 groups=tokens,chats
        track u llm.tokens 101 id=t1 => code=InvalidArgument REQUEST_ID_REUSED
        track u llm.tokens 100 id=t1 enforce => code=InvalidArgument REQUEST_ID_REUSED
        reserve u llm.tokens 100 id=t1 => code=InvalidArgument REQUEST_ID_REUSED
        clock u +14m
        track u llm.tokens 100 id=t1 => replayed tokens.used=150
        clock u +1m
        track u llm.tokens 100 id=t1 => !replayed !same-as=E tokens.used=250
        track u unknown.event id=t2 => UNMATCHED
        reserve u llm.tokens 1 id=t2 => allowed !replayed # what counted nowhere is not remembered
    ",
    )
    .await;
}

#[tokio::test]
async fn all_four_units_keep_their_resolution_and_round_up_once() {
    check(
        CATALOG,
        "
        track u audio.transcribe seconds=1.0004 => audio.used=1.001 audio.unit=seconds
        track u audio.transcribe seconds=58.999 enforce => audio.used=60 audio.remaining=0
        track u audio.transcribe seconds=0.000001 enforce => BLOCKED audio.shortfall=0.001 audio.requested=0.001
        track u llm.tokens prompt_tokens=1 completion_tokens=0 @model=gpt-4o => spend.used=0.00025 spend.unit=cents tokens.used=1 chats.used=1
        track u llm.tokens prompt_tokens=0.001 completion_tokens=0.001 @model=gpt-4o => spend.used=0.000252 spend.requested=0.000002
        track u agent.run 0.000001 => spend.used=0.000253
        track u image.render 2 @model=flux-pro => images.used=2 images_flux.used=2 images.unit=count
        track u image.render 0.5 => images.used=3 groups=images
        usage u => tokens.used=2 # 0.002 tokens, rounded up once
    ",
    )
    .await;
}

#[tokio::test]
async fn images_are_counted_in_total_and_per_model() {
    check(
        CATALOG,
        "
        reserve u image.render 2 @model=flux-pro as=A => allowed groups=images,images_flux
        reserve u image.render 2 @model=flux-pro => denied images_flux.shortfall=1 images.shortfall=0 images.held=2
        reserve u image.render 18 @model=dalle => allowed groups=images images.held=20
        reserve u image.render @model=dalle => denied images.shortfall=1
        commit A => images.used=2 images_flux.used=2
    ",
    )
    .await;
}

#[tokio::test]
async fn ten_chats_a_day_whatever_their_length() {
    let mut table = "clock u 2031-01-15T12:00:00Z\n".to_owned();
    for index in 1..=10 {
        table += &format!("reserve u llm.tokens {} as=A => allowed\ncommit A => chats.used={index}\n", index * 10);
    }
    table += "reserve u llm.tokens 1 => denied chats.shortfall=1 retry=43200s\n";
    table +=
        "clock u 2031-01-16T00:00:00Z\nreserve u llm.tokens 1 => allowed chats.held=1 chats.used=0 tokens.used=550\n";
    check(CATALOG, &table).await;
}

#[tokio::test]
async fn quantities_may_come_as_metadata() {
    check(
        CATALOG,
        "
        track u llm.tokens @prompt_tokens=120 @completion_tokens=30.5 => tokens.used=151
        track u llm.tokens prompt_tokens=1 @prompt_tokens=1000 @completion_tokens=2 => tokens.used=154 # quantities come first
        track u audio.transcribe @seconds=007.50 => audio.used=7.5
    ",
    )
    .await;
}

#[tokio::test]
async fn a_measured_name_whose_metadata_is_no_decimal_number_is_an_error_and_no_other_rule_stands_in() {
    let mut table = String::new();
    // The second rule of `tokens` could count the quantity of these; the wrong number would then pass unseen.
    for value in ["1,000", "1e3", "-5", "soon", "+1", ".5", "5.", "0x10", "1_000", "NaN"] {
        for (call, key) in [
            ("track u llm.tokens 7 @prompt_tokens=V @completion_tokens=20", "prompt_tokens"),
            ("track u llm.tokens 7 @prompt_tokens=20 @completion_tokens=V", "completion_tokens"),
            // The other one is missing altogether.
            ("track u llm.tokens 7 @completion_tokens=V", "completion_tokens"),
            ("track u llm.tokens 7 @completion_tokens=V enforce", "completion_tokens"),
            ("reserve u llm.tokens 7 @prompt_tokens=V", "prompt_tokens"),
            ("can u llm.tokens 7 @prompt_tokens=V", "prompt_tokens"),
            ("track u llm.tokens.refund 7 @prompt_tokens=V", "prompt_tokens"),
            ("track u llm.tokens.refund 7 of=A @prompt_tokens=V", "prompt_tokens"),
            ("track u audio.transcribe @seconds=V", "seconds"),
            // A default stands in for what is absent, not for what is wrong.
            ("track u speech.make 3 @extra=V", "extra"),
            ("track u image.render @quantity=V", "quantity"),
        ] {
            let call = call.replace('V', value);
            table += &format!("{call} => code=InvalidArgument INVALID_FIELD field:event.metadata[\"{key}\"]\n");
        }
    }
    check(
        NUMBERS,
        &format!(
            "
        reserve u llm.tokens 9 as=A => allowed
        commit A => tokens.used=9
        {table}
        track u audio.transcribe @seconds=9007199254740992 => code=OutOfRange field:event.metadata[\"seconds\"]
        track u audio.transcribe @seconds=0.0000001 => code=InvalidArgument field:event.metadata[\"seconds\"]
        usage u => tokens.used=9 tokens.held=0 audio.used=0 images.used=0 speech.used=0
        # What is named in the quantities is not looked up, nor what only other events are measured by.
        track u llm.tokens prompt_tokens=1 completion_tokens=1 @prompt_tokens=1,000 => tokens.used=11
        track u llm.tokens 1 @seconds=soon @quantity=many => tokens.used=12
        reserve u llm.tokens prompt_tokens=1 completion_tokens=1 @seconds=soon @model=x as=B => allowed
        commit B completion_tokens=2 => COMMITTED tokens.used=15
        track u llm.tokens.refund prompt_tokens=1 completion_tokens=0 of=B @seconds=soon => tokens.used=14
    "
        ),
    )
    .await;
}

const NUMBERS: &str = r"
default_plan: free
plans:
  free:
    period: monthly
    limit_groups:
      - id: tokens
        unit: tokens
        quota: 10000
        match:
          - { event: llm.tokens, measure: { prompt_tokens: 1, completion_tokens: 1 } }
          - { event: llm.tokens }
      - { id: images, unit: count, quota: 20, match: [{ event: image.render }] }
      - { id: audio, unit: seconds, quota: 60, match: [{ event: audio.transcribe, measure: { seconds: 1 } }] }
      - id: speech
        unit: seconds
        quota: 60
        match: [{ event: speech.make, measure: [{ name: quantity }, { name: extra, default: 0 }] }]
      - { id: spend, unit: cents, quota: 60, match: [{ event: agent.run }] }
";

#[tokio::test]
async fn an_event_without_numbers_is_one_thing_and_no_token_second_or_cent() {
    let mut table = String::new();
    for (event, group) in [("llm.tokens", "tokens"), ("speech.make", "speech"), ("agent.run", "spend")] {
        for call in ["track u E", "track u E enforce", "reserve u E", "track u E.refund"] {
            let call = call.replace('E', event);
            table += &format!("{call} => code=InvalidArgument QUANTITY_MISSING limit_group_id={group}\n");
        }
    }
    check(
        NUMBERS,
        &format!(
            "
        {table}
        usage u => tokens.used=0 tokens.held=0 speech.used=0 spend.used=0
        track u image.render => images.used=1
        track u image.render pixels=4000000 => images.used=2 # other quantities do not say how many
        track u image.render @quantity=3 => images.used=5 # neither silently 1
        track u image.render 0 => images.used=5
        reserve u image.render as=A => allowed images.held=1
        commit A => images.used=6
        track u image.render.refund => images.used=5
        track u image.render.refund of=A => images.used=4 images.unapplied=0
        reserve u image.render id=r1 as=B => allowed
        reserve u image.render id=r1 => allowed replayed
    "
        ),
    )
    .await;
}

#[tokio::test]
async fn a_quantity_that_is_missing_is_never_a_silent_zero() {
    check(
        CATALOG,
        "
        reserve u llm.tokens prompt_tokens=10 @model=gpt-4o => code=InvalidArgument QUANTITY_MISSING limit_group_id=tokens quantity=completion_tokens
        reserve u llm.tokens 10 @model=gpt-4o => code=InvalidArgument QUANTITY_MISSING limit_group_id=spend quantity=prompt_tokens
        track u llm.tokens 10 @model=gpt-4o => code=InvalidArgument QUANTITY_MISSING
        can u llm.tokens 10 @model=gpt-4o => code=InvalidArgument QUANTITY_MISSING
        reserve u audio.transcribe 3 => code=InvalidArgument QUANTITY_MISSING quantity=seconds
        usage u => tokens.used=0 tokens.held=0 chats.held=0
    ",
    )
    .await;
}

#[tokio::test]
async fn seed_reserve_commit_and_refund_the_rest_by_reservation() {
    check(
        CATALOG,
        "
        reserve u llm.tokens 4000 @model=gpt-x as=A => allowed tokens.held=4000
        commit A => COMMITTED tokens.used=4000 chats.used=1
        track u llm.tokens.refund 2500 @reservationId=$A => MATCHED groups=tokens,chats tokens.used=1500 tokens.requested=2500 tokens.unapplied=0 chats.used=1 chats.unapplied=0
        track u llm.tokens.refund 2000 of=A => tokens.used=0 tokens.unapplied=500 # at most what it committed
        track u llm.tokens.refund 1 of=A => tokens.used=0 tokens.unapplied=1
        commit A => replayed # what was committed is not changed by a refund
        reserve v llm.tokens 400 as=B => allowed
        commit B
        track v llm.tokens 1000 => tokens.used=1400
        track v llm.tokens.refund 300 of=B => tokens.used=1100 tokens.unapplied=0
        track v llm.tokens.refund 300 of=B => tokens.used=1000 tokens.unapplied=200 # the rest is not the reservation's
    ",
    )
    .await;
}

#[tokio::test]
async fn a_refund_by_reservation_needs_a_commit_and_the_same_event() {
    check(
        CATALOG,
        "
        clock u 2031-01-15T12:00:00Z
        reserve u llm.tokens 400 as=A => allowed
        track u llm.tokens.refund 100 of=A => code=FailedPrecondition NOT_COMMITTED state=held
        release A
        track u llm.tokens.refund 100 of=A => code=FailedPrecondition NOT_COMMITTED state=released
        reserve u llm.tokens 400 as=B => allowed
        commit B
        track u image.render.refund 1 of=B => code=InvalidArgument REFUND_OF_ANOTHER_EVENT field:event.name
        track v llm.tokens.refund 100 of=B => code=NotFound RESERVATION_NOT_FOUND
        track u llm.tokens 100 of=B => code=InvalidArgument field:reservation_id
        track u llm.tokens.refund 100 of=B @reservationId=other => code=InvalidArgument field:reservation_id
        track u llm.tokens.refund 100 @reservationId=other => code=NotFound RESERVATION_NOT_FOUND
        track u llm.tokens.refund 100 of=B id=f1 as=F => tokens.used=300
        track u llm.tokens.refund 100 of=B id=f1 => replayed same-as=F tokens.used=300 tokens.requested=100
        usage u => tokens.used=300
        clock u 2031-02-01T00:00:00Z
        track u llm.tokens.refund 100 of=B => code=NotFound
    ",
    )
    .await;
}

#[tokio::test]
async fn a_refund_goes_to_the_windows_of_its_reservation() {
    let catalog = "
default_plan: p
plans:
  p:
    period: minute
    limit_groups:
      - { id: minute, unit: tokens, quota: 10, match: [{ event: x }] }
      - { id: month, unit: tokens, period: monthly, quota: 100, match: [{ event: x }] }
";
    check(
        catalog,
        "
        clock u 2031-01-15T12:00:30Z
        reserve u x 8 as=A => allowed
        commit A
        clock u 2031-01-15T12:01:30Z
        track u x 5
        track u x.refund 1 of=A => minute.used=7 minute.start=2031-01-15T12:00:00Z month.used=12
        usage u => minute.used=5
        clock u 2031-01-15T12:02:30Z
        track u x 1
        track u x.refund 2 of=A => minute.closed minute.unapplied=2 month.used=11 month.unapplied=0
        usage u => minute.used=1 month.used=11
    ",
    )
    .await;
}

#[tokio::test]
async fn a_refund_without_reservation_is_routed_by_the_rules_and_never_below_zero() {
    check(
        CATALOG,
        "
        track u llm.tokens prompt_tokens=100 completion_tokens=50 @model=gpt-4o => tokens.used=150 spend.used=0.075 chats.used=1
        track u llm.tokens.refund prompt_tokens=100 completion_tokens=0 @model=gpt-4o => MATCHED tokens.used=50 spend.used=0.05 chats.used=1 chats.requested=0
        track u llm.tokens.refund 60 => tokens.used=0 tokens.unapplied=10 groups=tokens,chats
        track u other.refund 1 => UNMATCHED
        track u audio.transcribe seconds=2
        track u audio.transcribe.refund seconds=0.0019 => audio.used=1.999 audio.requested=0.001 # rounded down
        reserve u llm.tokens.refund 1 => code=InvalidArgument field:event.name
        can u llm.tokens.refund 1 => code=InvalidArgument
        track u audio.transcribe.refund 1 => code=InvalidArgument QUANTITY_MISSING
    ",
    )
    .await;
}

#[tokio::test]
async fn an_agent_run_reserves_up_front_and_is_reconciled_at_the_end() {
    // The run holds its budget; its steps are tracked as they happen, with the run's id; the end commits what is left over.
    check(
        CATALOG,
        "
        reserve u agent.run 300 @runId=run-1 ttl=1h as=RUN => allowed spend.held=300
        track u agent.step 12.5 @runId=run-1 id=run-1/1 => MATCHED spend.used=12.5 spend.held=300
        track u llm.tokens prompt_tokens=4000 completion_tokens=1000 @model=gpt-4o @runId=run-1 id=run-1/2 => spend.used=14.5 tokens.used=5000
        track u agent.step 12.5 @runId=run-1 id=run-1/1 => replayed spend.used=14.5
        reserve u agent.run 200 => denied spend.shortfall=14.5
        commit RUN 0 => COMMITTED spend.used=14.5 spend.held=0 # the steps were counted as they came
        reserve u agent.run 200 => allowed
    ",
    )
    .await;
}

#[tokio::test]
async fn what_no_counter_can_hold_is_out_of_range_before_any_write() {
    let catalog = "
default_plan: p
plans:
  p:
    period: monthly
    limit_groups:
      - { id: tokens, unit: tokens, quota: unlimited, match: [{ event: t }] }
      - { id: spend, unit: cents, quota: unlimited, match: [{ event: c }, { event: heavy, measure: { quantity: 1000000 } }] }
      - { id: soft, unit: tokens, hard: false, quota: 1, match: [{ event: t }] }
      - { id: small, unit: tokens, quota: 1, match: [{ event: small, measure: { quantity: 1000000 } }] }
";
    check(
        catalog,
        "
        track u t 9007199254740990 => tokens.used=9007199254740990 soft.exceeded
        track u t 1 => tokens.used=9007199254740991
        track u t 1 => code=OutOfRange OUT_OF_RANGE
        reserve u t 1 => code=OutOfRange
        can u t 1 => code=OutOfRange
        reserve u t 0 as=A => allowed
        commit A 1 => code=OutOfRange
        commit A 0 => COMMITTED tokens.used=9007199254740991 !overage
        usage u => tokens.used=9007199254740991 tokens.held=0
        track u c 8000000000 => spend.used=8000000000
        track u c 0.000001 => code=OutOfRange
        track u c 9000000000 => code=OutOfRange
        track u heavy 9007199254740991 => code=OutOfRange
        track v heavy 8000 => spend.used=8000000000
        track w heavy 8000.000001 => code=OutOfRange
        usage w => spend.used=0
        reserve z t 9007199254740991 as=Z => allowed
        commit Z => COMMITTED tokens.used=9007199254740991 tokens.held=0 # its own hold makes room for it
        reserve w small 9007199255 => code=OutOfRange # no charge is that large, even where it would be denied
        can w small 9007199255 => code=OutOfRange
        reserve w small 9007199254 => denied small.requested=9007199254000000
        track u t 9007199254740992 => code=OutOfRange field:event.quantity
        track u t 8000000000.5 => code=OutOfRange field:event.quantity
    ",
    )
    .await;
}
