//! Reservations that are looked up: one by its id, and all live holds of a user.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use tollgate::catalog;
use tollgate::grpc::v1;
use tollgate::ledger::{CompiledPlan, keys};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::scenario::{Scenario, check};
use crate::support::{Replica, Step, fresh_user, live_holds, redis, step_clock};

/// How many calls a test has in flight, on a machine that may be busy.
const AT_ONCE: usize = 50;

const CATALOG: &str = r"
default_plan: free
plans:
  free:
    period: monthly
    limit_groups:
      - id: tokens
        unit: tokens
        quota: 100000
        match: [{ event: llm.tokens, measure: { prompt_tokens: 1, completion_tokens: 1 } }]
      - id: spend
        unit: cents
        quota: 1000
        match:
          - { event: llm.tokens, metadata: { model: gpt-4o }, measure: { prompt_tokens: 0.25, seconds: 0.000001 } }
          - { event: image, measure: { quantity: 4 } }
      - { id: calls, unit: count, quota: 100000, period: lifetime, match: [{ event: '*', measure: events }] }
";

#[tokio::test]
async fn a_reservation_is_looked_up_in_every_state() {
    check(
        CATALOG,
        "
        clock u 2031-01-15T12:00:00Z
        reserve u llm.tokens prompt_tokens=1200 completion_tokens=800.5 @model=gpt-4o @provider=openai @seconds=2.5 ttl=30s as=A => allowed
        reservation A => HELD event=llm.tokens prompt_tokens=1200 completion_tokens=800.5 seconds=2.5 @model=gpt-4o !@provider=openai !late expires-in=30s groups=tokens,spend,calls
        reservation A => tokens.unit=tokens tokens.reserved=2001 tokens.committed=0 tokens.refunded=0 tokens.start=2031-01-01T00:00:00Z tokens.reset=2031-02-01T00:00:00Z
        reservation A => spend.unit=cents spend.reserved=300.000003 calls.reserved=1 calls.start=none calls.reset=none
        commit A completion_tokens=350 => COMMITTED
        reservation A => COMMITTED completion_tokens=800.5 tokens.reserved=2001 tokens.committed=1550 spend.committed=300.000003 calls.committed=1 !late
        track u llm.tokens.refund prompt_tokens=200 of=A
        reservation A => COMMITTED tokens.committed=1550 tokens.refunded=200 spend.refunded=50 calls.refunded=0

        reserve u image as=B => code=InvalidArgument
        reserve u image 3 as=B => allowed
        reservation B => HELD quantity=3 groups=spend,calls spend.reserved=12
        release B
        reservation B => RELEASED spend.reserved=12 spend.committed=0
        commit B => late
        reservation B => COMMITTED late spend.committed=12

        reserve u other ttl=10s as=C => allowed groups=calls
        clock u +10s
        reservation C => EXPIRED !quantity=1 calls.reserved=1 calls.committed=0 expires-in=0s
        commit C
        reservation C => COMMITTED late calls.committed=1
        # Forgotten.
        clock u +40m
        reservation C => code=NotFound RESERVATION_NOT_FOUND
        reservation \"\" => code=InvalidArgument field:reservation_id
        reservation \"nonsense\" => code=NotFound RESERVATION_NOT_FOUND
    ",
    )
    .await;
}

#[tokio::test]
async fn live_holds_are_listed_and_nothing_else() {
    check(
        CATALOG,
        "
        holds u => holds=
        clock u 2031-01-15T12:00:00Z
        track u llm.tokens prompt_tokens=1 completion_tokens=1 id=t1
        holds u => holds=
        reserve u image 1 ttl=30s as=A => allowed
        reserve u image 1 ttl=60s id=b as=B => allowed
        reserve u image 1 ttl=60s as=C => allowed
        reserve u image 1 ttl=60s as=D => allowed
        reserve v image 1 as=V => allowed
        holds u => holds=A,B,C,D
        holds v => holds=V
        commit C
        release D
        holds u => holds=A,B
        clock u +30s
        holds u size=1 => holds=B
        holds u size=1001 => code=InvalidArgument field:page_size
        holds u size=-1 => code=InvalidArgument field:page_size
        delete u
        holds u => holds=
    ",
    )
    .await;
}

#[tokio::test]
async fn holds_are_found_in_both_memories() {
    check(
        CATALOG,
        "
        clock u 2031-01-15T12:00:00Z
        reserve u image 1 ttl=1h as=A => allowed
        reserve u image 1 ttl=1h as=B => allowed
        reserve u image 1 ttl=1m as=C => allowed
        clock u +16m
        # The memories change places with this.
        reserve u image 1 ttl=1h as=D => allowed
        holds u => holds=A,B,D
        # What is settled is written to the young one, and goes before what the old one says.
        commit A
        release D
        holds u => holds=B
        holds u size=1 => holds=B
        reservation A => COMMITTED
        reservation B => HELD
    ",
    )
    .await;
}

#[tokio::test]
async fn what_lapsed_by_a_wrong_clock_is_not_live() {
    check(
        CATALOG,
        "
        clock u 2031-01-15T12:00:00Z
        reserve u image 1 ttl=1h as=A => allowed
        clock u 2031-01-16T12:00:00Z
        reserve u image 1 ttl=1h as=B => allowed
        holds u => holds=B
        clock u 2031-01-15T12:10:00Z
        # Not written yet.
        holds u => holds=
        reservation B => EXPIRED expires-in=0s
        track u image 1
        clock u +1s
        reserve u image 1 as=C => allowed
        holds u => holds=C
        reservation B => EXPIRED expires-in=-1s
    ",
    )
    .await;
}

/// A user with this many holds of an hour.
async fn held(replica: &Replica, user: &str, count: usize) -> BTreeSet<String> {
    let reserve = |number: usize| {
        let (mut metering, user_id) = (replica.metering.clone(), user.to_owned());
        async move {
            let request = v1::ReserveRequest {
                user_id,
                event: Some(v1::Event { name: format!("e{number}"), ..Default::default() }),
                ttl: Some(prost_types::Duration { seconds: 3600, nanos: 0 }),
                ..Default::default()
            };
            metering.reserve(request).await.unwrap().into_inner().reservation_id
        }
    };
    stream::iter((0..count).map(reserve)).buffer_unordered(AT_ONCE).collect().await
}

async fn page(replica: &Replica, user: &str, page_size: i32, token: &str) -> v1::ListReservationsResponse {
    let (user_id, page_token) = (user.to_owned(), token.to_owned());
    let request = v1::ListReservationsRequest { user_id, page_size, page_token };
    let page = replica.metering.clone().list_reservations(request).await.unwrap().into_inner();
    let ids: BTreeSet<_> = page.reservations.iter().map(|hold| &hold.reservation_id).collect();
    assert_eq!(ids.len(), page.reservations.len(), "none comes twice on a page");
    let most = if page_size == 0 { 100 } else { usize::try_from(page_size).unwrap() };
    assert!(ids.len() <= most, "{} on a page of {page_size}", ids.len());
    page
}

fn ids(page: &v1::ListReservationsResponse) -> impl Iterator<Item = String> {
    page.reservations.iter().map(|hold| hold.reservation_id.clone())
}

/// All pages, and how many they are.
async fn listed(replica: &Replica, user: &str, page_size: i32) -> (BTreeSet<String>, usize) {
    let (mut found, mut token, mut pages) = (BTreeSet::new(), String::new(), 0);
    loop {
        let page = page(replica, user, page_size, &token).await;
        found.extend(ids(&page));
        pages += 1;
        assert!(pages < 2000, "it does not end");
        token = page.next_page_token;
        if token.is_empty() {
            return (found, pages);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_any_size_have_every_hold() {
    let replica = Replica::start(CATALOG).await;
    let user = fresh_user("pages");
    let expected = held(&replica, &user, 350).await;
    assert_eq!(expected.len(), 350);
    for size in [1000, 0, 97, 10, 1] {
        let (found, pages) = listed(&replica, &user, size).await;
        assert_eq!(found, expected, "pages of {size}");
        let most = if size == 1000 { 1 } else { 1 + 350 };
        assert!(pages <= most, "{pages} pages of {size}");
    }
    let whole = page(&replica, &user, 1000, "").await;
    let names: BTreeSet<_> = whole.reservations.iter().map(|hold| hold.event.as_ref().unwrap().name.clone()).collect();
    assert_eq!(names.len(), 350);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_live_all_the_while_is_listed_whatever_comes_and_goes() {
    let replica = Replica::start(CATALOG).await;
    let user = fresh_user("busy");
    let staying = held(&replica, &user, 60).await;
    let mut going = held(&replica, &user, 60).await.into_iter();
    let (mut found, mut token) = (BTreeSet::new(), String::new());
    loop {
        let page = page(&replica, &user, 7, &token).await;
        found.extend(ids(&page));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
        // The memory grows by more than its size, and half of the others are settled.
        held(&replica, &user, 20).await;
        for id in going.by_ref().take(3) {
            let request = v1::ReleaseRequest { reservation_id: id, ..Default::default() };
            replica.metering.clone().release(request).await.unwrap();
        }
    }
    assert!(staying.is_subset(&found), "{} of 60 are missing", staying.difference(&found).count());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_goes_on_when_the_memories_change_places() {
    let replica = Replica::start(CATALOG).await;
    let user = fresh_user("turned");
    step_clock(&user, Step::By(Duration::ZERO)).await;
    let mut staying = held(&replica, &user, 40).await;
    let turn = async || {
        step_clock(&user, Step::By(Duration::from_secs(16 * 60))).await;
        held(&replica, &user, 1).await
    };
    for before in [0, 1] {
        if before == 1 {
            staying.extend(turn().await);
            staying.extend(held(&replica, &user, 40).await);
        }
        let first = page(&replica, &user, 9, "").await;
        let (mut found, mut token): (BTreeSet<_>, _) = (ids(&first).collect(), first.next_page_token);
        turn().await;
        while !token.is_empty() {
            let next = page(&replica, &user, 9, &token).await;
            found.extend(ids(&next));
            token = next.next_page_token;
        }
        assert!(staying.is_subset(&found), "{before}: {} are missing", staying.difference(&found).count());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn few_holds_among_much_that_is_settled_are_found() {
    let replica = Replica::start(CATALOG).await;
    let user = fresh_user("settled");
    let settled = held(&replica, &user, 3000).await;
    let commit = |reservation_id| {
        let mut metering = replica.metering.clone();
        async move {
            metering
                .commit(v1::CommitRequest { reservation_id, actual: None, ..v1::CommitRequest::default() })
                .await
                .unwrap()
        }
    };
    stream::iter(settled.into_iter().map(commit)).buffer_unordered(AT_ONCE).for_each(async |_| ()).await;
    assert_eq!(listed(&replica, &user, 10).await, (BTreeSet::new(), 1), "nothing is held: nothing is looked for");
    let expected = held(&replica, &user, 3).await;
    assert_eq!(live_holds(&user).await, 3);
    for size in [1, 10, 1000] {
        let (found, pages) = listed(&replica, &user, size).await;
        assert_eq!(found, expected, "pages of {size}");
        assert!(pages <= 6, "{pages} pages of {size}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_token_is_for_its_user_and_cannot_be_made_up() {
    let replica = Replica::start(CATALOG).await;
    let (user, other) = (fresh_user("token"), fresh_user("token"));
    held(&replica, &user, 30).await;
    held(&replica, &other, 30).await;
    let token = page(&replica, &user, 5, "").await.next_page_token;
    assert!(!token.is_empty() && token.len() < 2000, "{token}");
    let mut odd = token.clone();
    odd.replace_range(20..21, if &token[20..21] == "A" { "B" } else { "A" });
    for (user, token) in [(&other, token.as_str()), (&user, &odd), (&user, "x"), (&user, &token[1..]), (&user, "====")]
    {
        let request = v1::ListReservationsRequest { user_id: user.clone(), page_size: 5, page_token: token.to_owned() };
        let refused = replica.metering.clone().list_reservations(request).await.unwrap_err();
        let details = refused.get_error_details();
        assert_eq!(refused.code(), Code::InvalidArgument, "{token}");
        assert_eq!(details.error_info().unwrap().reason, "PAGE_TOKEN_INVALID");
        assert_eq!(details.bad_request().unwrap().field_violations[0].field, "page_token");
    }
    // It may be used again, and with another size.
    let again: BTreeSet<_> = ids(&page(&replica, &user, 5, &token).await).collect();
    let more: BTreeSet<_> = ids(&page(&replica, &user, 1000, &token).await).collect();
    assert!(again.is_subset(&more) && more.len() >= 25);
}

#[tokio::test]
async fn without_the_plan_a_reservation_cannot_be_told() {
    let plan = fresh_user("nowhere");
    let of = |quota: u32| {
        let group = format!("{{ id: g, unit: count, quota: {quota}, period: daily, match: [{{ event: e }}] }}");
        format!("default_plan: {plan}\nplans: {{ {plan}: {{ limit_groups: [{group}] }} }}")
    };
    let (before, after) = (of(7), of(8));
    let replicas = vec![("before", Replica::start(&before).await), ("after", Replica::start(&after).await)];
    let mut scenario = Scenario::new(replicas);
    scenario
        .run(
            "
            on before
            reserve u e as=A => allowed
            reservation A => HELD g.reserved=1
            holds u => holds=A
            ",
        )
        .await;
    let catalog = catalog::parse(&before, jiff::tz::db()).unwrap();
    let key = keys::plan(&CompiledPlan::of(&catalog.plans()[0]).digest);
    let _: () = redis::cmd("DEL").arg(key).query_async(&mut redis().await).await.unwrap();
    scenario
        .run(
            "
            on after
            reservation A => code=Unavailable PLAN_NOT_ARCHIVED
            holds u => code=Unavailable PLAN_NOT_ARCHIVED
            on before
            reservation A => HELD
            holds u => holds=A
            ",
        )
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn to_look_changes_nothing() {
    let replica = Replica::start(CATALOG).await;
    let user = fresh_user("looked");
    let held = held(&replica, &user, 5).await;
    step_clock(&user, Step::By(Duration::from_secs(1800))).await;
    let clean =
        |dump: BTreeMap<String, Vec<u8>>| dump.into_iter().filter(|(key, _)| !key.contains(":h:")).collect::<Vec<_>>();
    let before = clean(crate::support::dump(&user).await);
    assert_eq!(listed(&replica, &user, 2).await.0, held);
    step_clock(&user, Step::By(Duration::from_secs(1801))).await;
    assert_eq!(listed(&replica, &user, 2).await.0, BTreeSet::new());
    for reservation_id in held {
        let request = v1::GetReservationRequest { reservation_id };
        let found = replica.metering.clone().get_reservation(request).await.unwrap().into_inner().reservation.unwrap();
        assert_eq!(found.state(), v1::ReservationState::Expired);
    }
    assert_eq!(clean(crate::support::dump(&user).await), before);
}
