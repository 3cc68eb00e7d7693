//! The archive of plans: whoever settles a reservation finds the plan by which it was made, whatever catalog it has itself.

use std::sync::Arc;
use std::time::Duration;

use tollgate::catalog;
use tollgate::ledger::{CompiledPlan, keys};

use crate::scenario::Scenario;
use crate::support::{Replica, fresh_user, redis};

/// A catalog whose only plan no other test has.
fn catalog_of(plan: &str, label: &str, weight: u32) -> String {
    format!(
        "
default_plan: {plan}
plans:
  {plan}:
    limit_groups:
      - id: spend
        label: {label}
        unit: tokens
        quota: 1000
        period: yearly
        match: [{{ event: chat, measure: {{ words: {weight} }} }}]
"
    )
}

fn key_of(catalog: &str) -> String {
    let catalog = catalog::parse(catalog, jiff::tz::db()).unwrap();
    keys::plan(&CompiledPlan::of(&catalog.plans()[0]).digest)
}

async fn pttl(key: &str) -> i64 {
    redis::cmd("PTTL").arg(key).query_async(&mut redis().await).await.unwrap()
}

#[tokio::test]
async fn a_replica_with_another_catalog_settles_by_the_plan_of_the_reservation() {
    let plan = fresh_user("archived");
    let (before, after) = (catalog_of(&plan, "Before", 2), catalog_of(&plan, "After", 5));
    let replicas = vec![("before", Replica::start(&before).await), ("after", Replica::start(&after).await)];
    let mut scenario = Scenario::new(replicas);
    scenario
        .run(
            "
            on before
            reserve u chat words=10 id=r1 as=A => allowed spend.held=20 spend.label=Before
            reserve u chat words=10 as=B => allowed
            reserve u chat words=10 as=C => allowed
            on after
            reserve u chat words=10 id=r1 => replayed same-as=A spend.requested=20 spend.label=Before
            commit A words=30 => overage spend.used=60 spend.label=Before
            commit B => spend.used=80 spend.label=Before
            commit B words=11 => code=FailedPrecondition
            release C => spend.held=0 spend.label=Before
            track u chat.refund words=5 of=A => spend.used=70 spend.label=Before
            track u chat words=1 => spend.used=75 spend.label=After
            ",
        )
        .await;
}

#[tokio::test]
async fn without_the_plan_only_what_needs_it_is_refused() {
    let plan = fresh_user("lost");
    let (before, after) = (catalog_of(&plan, "Before", 2), catalog_of(&plan, "After", 5));
    let replicas = vec![("before", Replica::start(&before).await), ("after", Replica::start(&after).await)];
    let mut scenario = Scenario::new(replicas);
    scenario
        .run(
            "
            on before
            reserve u chat words=10 as=A => allowed
            reserve u chat words=10 as=B => allowed
            reserve u chat words=10 as=C => allowed
            ",
        )
        .await;
    let _: u64 = redis::cmd("DEL").arg(key_of(&before)).query_async(&mut redis().await).await.unwrap();
    scenario
        .run(
            "
            on after
            commit A words=9 => code=Unavailable PLAN_NOT_ARCHIVED
            commit B => COMMITTED !overage groups=
            commit B => replayed groups=
            release B => code=FailedPrecondition ALREADY_COMMITTED
            release C => RELEASED groups=
            track u chat.refund words=5 of=B => code=Unavailable PLAN_NOT_ARCHIVED
            usage u => spend.used=20 spend.held=20
            # Whoever has the plan goes on as before.
            on before
            commit A words=9 => spend.used=38 spend.held=0
            ",
        )
        .await;
}

#[tokio::test]
async fn plans_are_archived_when_a_catalog_is_loaded_and_for_as_long_as_they_may_be_asked_for() {
    let catalog = catalog_of(&fresh_user("loaded"), "Loaded", 1);
    let key = key_of(&catalog);
    assert_eq!(pttl(&key).await, -2);
    let _replica = Replica::start(&catalog).await;
    for _ in 0..500 {
        if pttl(&key).await > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // A day, two hours, and both windows of a quarter of an hour.
    let longest = 26 * 3_600_000 + 2 * 900_000;
    let left = pttl(&key).await;
    assert!((longest - 60_000..=longest).contains(&left), "{left} ms");
    let message: Vec<u8> = redis::cmd("GET").arg(&key).query_async(&mut redis().await).await.unwrap();
    let plan = Arc::new(CompiledPlan::read(message.into()).unwrap());
    assert_eq!(keys::plan(&plan.digest), key);
}
