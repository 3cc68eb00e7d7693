//! What no answer of the model's cases shows of windows: those of a moved anchor, and of a plan that is entered again.

use tollgate::ledger::Ledger;
use tollgate::ledger::codec;

use crate::direct::{DAY, MINUTE, START, User, plan_at, subscription};
use crate::support::{Step, step_clock};

/// Whoever has started on a 28th of February has years that end like those of a 29th, but for the leap years.
pub async fn realigned(ledger: &Ledger) -> bool {
    let mut user = User::new(ledger).await;
    // 2034-05-18, 2028-02-29, 2029-02-28 and 2036-02-29.
    let (now, leap_day, day_before) = (START + 365 * DAY, 1_835_395_200_000, 1_866_931_200_000);
    let kept: i64 = 2_087_856_000_000;
    step_clock(&user.name, Step::To(now)).await;
    let group = "period: yearly, anchor: subscription_start, id: g, unit: count, quota: 9, match: [{ event: e }]";
    user.plan = plan_at(group, Some(day_before), now);
    let mut right = user.track("").await.is_ok();
    let is_kept = |packed: &[u8], until: i64| packed.windows(7).any(|bytes| bytes == &until.to_le_bytes()[..7]);
    right &= is_kept(&user.look::<Vec<u8>>("GET", user.keys.ledger()).await, kept - DAY);
    let call = codec::encode(&("", "p", vec!["realign"]));
    let args: [&[u8]; 3] = [&call, &subscription("1"), &plan_at(group, Some(leap_day), now).message];
    let answer = ledger.run(&ledger.scripts().subscription_put, &user.keys.all(), &user.owner, &args).await;
    right &= answer.is_ok_and(|reply| reply.current().is_ok());
    right &= is_kept(&user.look::<Vec<u8>>("GET", user.keys.ledger()).await, kept);
    user.delete().await;
    right
}

/// The windows of a moved anchor are counted as it says, also over the end of the last one before.
pub async fn moved_back(ledger: &Ledger) -> bool {
    let mut user = User::new(ledger).await;
    let group = "period: daily, anchor: subscription_start, id: g, unit: count, quota: 9, match: [{ event: e }]";
    user.plan = plan_at(group, Some(START), START);
    let mut right = user.track("").await.is_ok();
    let (now, anchor) = (START + DAY + 60 * MINUTE, START + DAY - 60 * MINUTE);
    user.step(now - START).await;
    let plan = plan_at(group, Some(anchor), now);
    let call = codec::encode(&("", "p", vec!["realign"]));
    let args: [&[u8]; 3] = [&call, &subscription("1"), &plan.message];
    let answer = ledger.run(&ledger.scripts().subscription_put, &user.keys.all(), &user.owner, &args).await;
    right &= answer.is_ok_and(|reply| reply.current().is_ok());
    let args: [&[u8]; 2] = [&codec::encode(&("1", false, -1)), &plan.message];
    let answer = ledger.run(&ledger.scripts().usage, &user.keys.all(), &user.owner, &args).await;
    let standings = answer.ok().and_then(|reply| reply.usage().ok());
    right &= standings.is_some_and(|standings| standings[0].window_ms == Some((anchor, anchor + DAY)));
    user.delete().await;
    right
}

/// Whoever enters a plan again is back in its window, which then also waits for a catalog edit of the anchor.
pub async fn entered_again(ledger: &Ledger) -> bool {
    let mut user = User::new(ledger).await;
    let group =
        |anchor| format!("period: monthly, anchor: {anchor}, id: g, unit: count, quota: 9, match: [{{ event: e }}]");
    let (calendar, anchored) = (group("calendar"), group("subscription_start"));
    // Of May; and from the 28th of April to that of May.
    let anchor = START - 20 * DAY;
    user.plan = plan_at(&calendar, None, START);
    let mut right = user.track("").await.is_ok();
    for (before, revision, group) in [("", "1", &anchored), ("1", "2", &calendar)] {
        let call = codec::encode(&(before, "p", vec!["enter"]));
        let args: [&[u8]; 3] = [&call, &subscription(revision), &plan_at(group, Some(anchor), START).message];
        let answer = ledger.run(&ledger.scripts().subscription_put, &user.keys.all(), &user.owner, &args).await;
        right &= answer.is_ok_and(|reply| reply.current().is_ok());
    }
    user.step(11 * DAY).await;
    let plan = plan_at(&anchored, Some(anchor), START + 11 * DAY);
    let args: [&[u8]; 2] = [&codec::encode(&("2", false, -1)), &plan.message];
    let answer = ledger.run(&ledger.scripts().usage, &user.keys.all(), &user.owner, &args).await;
    right &= answer.ok().and_then(|reply| reply.usage().ok()).is_some_and(|standings| standings[0].used == 1);
    user.delete().await;
    right
}
