//! What no answer shows, asked of the scripts directly: calls that were compiled for another time, what is stored, keys that people look
//! at, and what is forgotten.

mod again;
mod calls;
mod crossed;
mod edges;
mod expiry;
mod forms;
mod life;
mod listing;
mod measures;
mod memory;
mod pages;
mod plans;
mod rare;
mod raw;
mod stored;
mod together;
mod user;
mod windows;

use std::pin::Pin;

use tollgate::ledger::Ledger;

/// A check: it says whether everything is as it should be.
type Check<'a> = Pin<Box<dyn Future<Output = bool> + Send + 'a>>;

/// The first thing that is not as it should be.
pub async fn wrong(ledger: &Ledger) -> Option<&'static str> {
    for (what, right) in checks(ledger) {
        if !right.await {
            return Some(what);
        }
    }
    None
}

/// The names of the checks, in their order.
pub fn names(ledger: &Ledger) -> Vec<&'static str> {
    checks(ledger).into_iter().map(|(what, _)| what).collect()
}

/// Whether the check of this name fails. Without one of this name, none does.
pub async fn fails(ledger: &Ledger, name: &str) -> bool {
    match checks(ledger).into_iter().find(|(what, _)| *what == name) {
        Some((_, right)) => !right.await,
        None => false,
    }
}

fn checks(ledger: &Ledger) -> Vec<(&'static str, Check<'_>)> {
    vec![
        ("a moved anchor says where its windows start", Box::pin(windows::moved_back(ledger))),
        ("a plan that is entered again goes on in its window", Box::pin(windows::entered_again(ledger))),
        ("a window that was left stays so when its successor is pushed out", Box::pin(windows::pushed_out(ledger))),
        ("a window that was left stays so when its successor is forgotten", Box::pin(windows::outlived(ledger))),
        ("the last window in use is the last that an anchor leaves", Box::pin(windows::last_left(ledger))),
        ("a window ends with its last millisecond", Box::pin(windows::window_end(ledger))),
        ("a denied call leaves nothing behind", Box::pin(windows::unopened(ledger))),
        ("a window of another anchor is kept as long as that says", Box::pin(windows::realigned(ledger))),
        ("windows of the same time share a schedule", Box::pin(windows::shared(ledger))),
        ("a subscription is replaced only by who has read it", Box::pin(calls::replaced(ledger))),
        ("a plan that has left a reservation is known, and of nothing else", Box::pin(calls::left(ledger))),
        ("the id of a forgotten request is free", Box::pin(calls::forgotten(ledger))),
        ("a reservation has field, suffix and plan", Box::pin(calls::named(ledger))),
        ("the time is Redis's own, to the millisecond", Box::pin(calls::own_time(ledger))),
        ("a stored time may be ahead by 5 minutes", Box::pin(calls::ahead(ledger))),
        ("a price that no counter holds is out of range, whatever its last term", Box::pin(calls::overpriced(ledger))),
        ("what is missing is told as far as a counter goes", Box::pin(calls::far_too_much(ledger))),
        ("a prefix is not enough for a name that ends with it", Box::pin(calls::prefix(ledger))),
        ("a refund of a reservation asks what its groups measure", Box::pin(calls::refunded(ledger))),
        ("a commit that measures nothing is told the names", Box::pin(calls::unmeasured(ledger))),
        ("a plan that is entered stays entered", Box::pin(calls::entered(ledger))),
        ("who has fallen to a plan enters no other", Box::pin(plans::fallen(ledger))),
        ("a denied call leaves a plan entered", Box::pin(plans::blocked(ledger))),
        ("a plan that fills its groups opens their windows", Box::pin(plans::block_opens(ledger))),
        ("a plan that is entered has its counters arranged", Box::pin(plans::arranged(ledger))),
        ("quotas of one's own are told", Box::pin(plans::own_quotas(ledger))),
        ("what was committed otherwise is told", Box::pin(plans::otherwise(ledger))),
        ("a request id is of one kind of call", Box::pin(plans::reused(ledger))),
        ("a refund is remembered beside a group without one", Box::pin(plans::refunded_twice(ledger))),
        ("a live hold is visible, until it is settled or expires", Box::pin(expiry::visible(ledger))),
        ("an Extend is denied as it has no room", Box::pin(life::denied(ledger))),
        ("late totals are counted once", Box::pin(life::late_totals(ledger))),
        ("the call that writes it tells what deadlines have crossed", Box::pin(crossed::by_deadlines(ledger))),
        ("a stream stops where nothing more fits", Box::pin(life::growth(ledger))),
        ("a reset is the end of refunds", Box::pin(life::refunded_after_a_reset(ledger))),
        ("a refund leaves what the deadline has counted", Box::pin(life::refunded_after_a_deadline(ledger))),
        ("an Extend is measured by what was reserved", Box::pin(life::extended_by_another_rule(ledger))),
        ("an Extend adds to a default", Box::pin(life::extended_beyond_a_default(ledger))),
        ("a deadline counts before a reset at the same time", Box::pin(life::reset_at_the_deadline(ledger))),
        ("a state with a hold that counts has another format", Box::pin(life::told_apart(ledger))),
        ("10,000 holds are the most, and a settled one makes room", Box::pin(expiry::most_holds(ledger))),
        ("deadlines are whole tenths of a second", Box::pin(expiry::rounded(ledger))),
        ("a track is remembered for the replay window, to the millisecond", Box::pin(expiry::remembered(ledger))),
        ("a long reservation is remembered beyond shorter ones", Box::pin(expiry::outlives(ledger))),
        ("what was held comes back although the memory is gone", Box::pin(expiry::returns(ledger))),
        ("everything expires by itself, and not before it is needed", Box::pin(expiry::expires(ledger))),
        ("the state expires after the last window that it keeps", Box::pin(expiry::outlived(ledger))),
        ("a state with a subscription or a lifetime group never expires", Box::pin(expiry::outlasts(ledger))),
        ("what is settled is not given back at its deadline", Box::pin(expiry::settled(ledger))),
        ("a deleted user leaves nothing", Box::pin(expiry::deleted(ledger))),
        ("what a later version has written is left alone", Box::pin(forms::later_formats(ledger))),
        ("what a later version has added is kept", Box::pin(forms::added_later(ledger))),
        ("a plan that is nowhere gives no price", Box::pin(forms::not_archived(ledger))),
        ("a write that did not happen is undone", Box::pin(forms::undone(ledger))),
        ("memories without a state count for nothing", Box::pin(forms::orphaned(ledger))),
        ("a reservation is looked up by all of its id", Box::pin(listing::looked_up(ledger))),
        ("a listing reads both memories, and what goes before in them", Box::pin(listing::both_memories(ledger))),
        ("a listing leaves out what did not happen", Box::pin(listing::undone(ledger))),
        ("a listing does not pass over what a later version has written", Box::pin(listing::later_format(ledger))),
        ("the memories change places", Box::pin(memory::rotation(ledger))),
        ("an expired memory begins anew", Box::pin(memory::begun_anew(ledger))),
        ("a wrong clock makes holds lapse, and no memory live too long", Box::pin(memory::wrong_clock(ledger))),
        ("lapsed holds are told", Box::pin(memory::lapsed(ledger))),
        ("a refund is remembered with its reservation", Box::pin(memory::refunded(ledger))),
        ("two deadlines of a page are due at once", Box::pin(pages::two_due(ledger))),
        ("a hold in a page that did not happen", Box::pin(pages::undone(ledger))),
        ("a page that is emptied before its end", Box::pin(pages::emptied(ledger))),
        ("a page without its deadlines", Box::pin(pages::without_buckets(ledger))),
        ("an earlier window is of the same kind", Box::pin(edges::earlier_windows(ledger))),
        ("a refund of a reservation leaves what it does not name", Box::pin(edges::refunded_by_name(ledger))),
        ("a commit is told what it lacks", Box::pin(edges::committed_without(ledger))),
        ("no counter passes its maximum", Box::pin(edges::nearly_full(ledger))),
        ("a window that has not begun is not opened", Box::pin(edges::not_begun(ledger))),
        ("eight windows of a group are kept", Box::pin(edges::most_windows(ledger))),
        ("a window that is set aside waits for its time", Box::pin(edges::set_aside(ledger))),
        ("a window of another anchor is no other's", Box::pin(edges::of_another_anchor(ledger))),
        ("windows that are nearly alike have schedules of their own", Box::pin(edges::alike(ledger))),
        ("a window is kept until the end of the next one", Box::pin(edges::kept_until(ledger))),
        ("a denied call corrects a clock", Box::pin(edges::denied_under_a_wrong_clock(ledger))),
        ("who matches nothing is told the plan", Box::pin(edges::unmatched(ledger))),
        ("an anchor moves with the window", Box::pin(edges::moved_to_the_same_start(ledger))),
        ("nothing comes back that was lost", Box::pin(edges::lost_holds(ledger))),
        ("what one user has in the old memory", Box::pin(again::from_the_old_memory(ledger))),
        ("when one user's state expires", Box::pin(again::of_an_expiry(ledger))),
        ("what one user has to undo", Box::pin(again::of_an_undo(ledger))),
        ("a denied call waits for the end of a window", Box::pin(rare::waits_for_the_window(ledger))),
        ("a commit counts what was named last", Box::pin(rare::named_last(ledger))),
        ("a commit tells what a reset has taken back", Box::pin(rare::short_after_a_reset(ledger))),
        ("a stream goes on while something is held", Box::pin(rare::goes_on(ledger))),
        ("what happened earlier counts once, in a window of its own", Box::pin(rare::happened_earlier(ledger))),
        ("what time it is for one user", Box::pin(again::of_the_time(ledger))),
        ("what one user's event is called", Box::pin(again::of_an_event(ledger))),
        ("a whole counts what is in none of its parts", Box::pin(measures::nested_parts(ledger))),
        ("a commit that names a whole says what its parts are", Box::pin(measures::committed_parts(ledger))),
        ("a refund leaves no more of the parts than of the whole", Box::pin(measures::refunded_parts(ledger))),
        ("only CanUse asks for the smallest charge", Box::pin(measures::smallest_charges(ledger))),
        ("pieces of a pattern have places of their own", Box::pin(measures::stars(ledger))),
        // These take longest.
        ("deadlines say what is live", Box::pin(pages::at_random(ledger))),
        ("as many groups as a plan may have", Box::pin(windows::many(ledger))),
        ("calls that travel together are answered as each would be alone", Box::pin(together::right(ledger))),
        ("deadlines at the edges of pages", Box::pin(pages::at_edges(ledger))),
        ("a large part of the old memory is read whole", Box::pin(listing::large(ledger))),
        ("ids of Extends are known as long as their reservation", Box::pin(life::ids_move(ledger))),
        ("a hold moves from page to page", Box::pin(life::moved_in_pages(ledger))),
        ("a reservation lasts a day at most", Box::pin(life::a_day_at_most(ledger))),
    ]
}
