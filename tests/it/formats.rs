//! How stored values grow: what an earlier version has stored is read by this one, what a later one has stored is left alone.
//!
//! `tests/fixtures/v1` has values as the first version stores them. They stay as they are: a version that writes another form reads these
//! all the same. Beside each stands what it means, as Rust shows it.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::path::{Path, PathBuf};

use redis::aio::MultiplexedConnection;
use tollgate::domain::id::ReservationId;
use tollgate::grpc::v1;
use tollgate::ledger::packed::{Misfit, Reader};
use tollgate::ledger::{CompiledPlan, digest_of, formats};
use tollgate::meter::MeterOptions;
use tollgate::verify;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::support::redis_server::RedisServer;
use crate::support::{Replica, fresh_user, keys, owner, redis_options, scratch};

/// What `build.rs` makes of `lua/formats.toml`.
const LIBRARY: &str = include_str!(concat!(env!("OUT_DIR"), "/formats_library.lua"));

/// The formats that each value consists of, one after the other.
const VALUES: [(&str, &[&str]); 8] = [
    ("state", &STATE),
    (
        "state-idle",
        &[
            "head",
            "memory",
            "terms",
            "schedule",
            "schedule",
            "idle_counter",
            "idle_counter",
            "idle_counter",
            "windows",
            "window",
            "window",
            "window",
            "counter",
            "window",
            "counter",
            "subscription",
        ],
    ),
    ("record-held", &["record", "span", "claim", "claim"]),
    ("record-paged", &["record", "span", "claim", "claim", "quota", "quota"]),
    (
        "record-committed",
        &["record", "span", "claim", "claim", "amount", "amount", "amount", "amount", "quota", "quota"],
    ),
    ("record-tracked", &["record", "span", "claim", "claim", "amount", "amount"]),
    ("bucket", &["bucket", "part", "part"]),
    ("undo", &["undo", "undo_field", "undo_field", "undo_field"]),
];

const STATE: [&str; 24] = [
    "head",
    "memory",
    "terms",
    "schedule",
    "schedule",
    "counter",
    "counter",
    "counter",
    "deadline",
    "part",
    "part",
    "deadline_end",
    "deadline",
    "part",
    "part",
    "deadline_end",
    "windows",
    "window",
    "window",
    "window",
    "counter",
    "window",
    "counter",
    "subscription",
];

/// Those that are one value of MessagePack.
const MESSAGES: [&str; 2] = ["plan", "subscription"];

/// Writes what a value is, as Rust's `Debug` does, and then the value as it is read and written again.
const SHOW: &str = r"
local function shown(value)
  if type(value) == 'number' then return string.format('%.0f', value) end
  local bytes = {}
  for i = 1, #value do bytes[i] = string.byte(value, i) end
  return '[' .. table.concat(bytes, ', ') .. ']'
end
local lines, written, at = {}, {}, 1
for i = 2, #ARGV do
  local name, struct_name, fields = unpack(cmsgpack.unpack(ARGV[i]))
  local value
  value, at = read[name](ARGV[1], at)
  local parts = {}
  for j, field in ipairs(fields) do parts[j] = field .. ': ' .. shown(value[field]) end
  lines[#lines + 1] = struct_name .. ' { ' .. table.concat(parts, ', ') .. ' }'
  written[#written + 1] = write[name](value)
end
return { table.concat(lines, '\n'), table.concat(written) }";

/// Writes a value of MessagePack as JSON.
const SHOW_MESSAGE: &str = r#"
local function shown(value)
  if type(value) == 'number' then return string.format('%.0f', value) end
  if type(value) == 'string' then return '"' .. value .. '"' end
  if type(value) ~= 'table' then return tostring(value) end
  local parts = {}
  for i = 1, #value do parts[i] = shown(value[i]) end
  if parts[1] or not next(value) then return '[' .. table.concat(parts, ',') .. ']' end
  for key, of_key in pairs(value) do parts[#parts + 1] = shown(key) .. ':' .. shown(of_key) end
  return '{' .. table.concat(parts, ',') .. '}'
end
return shown(cmsgpack.unpack(ARGV[1]))"#;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1").join(name)
}

fn value(name: &str) -> Vec<u8> {
    std::fs::read(fixture(&format!("{name}.bin"))).unwrap()
}

fn meaning(name: &str) -> String {
    std::fs::read_to_string(fixture(&format!("{name}.txt"))).unwrap().trim_end().to_owned()
}

fn read_shown<T: Debug>(
    read: impl Fn(&mut Reader<'_>) -> Result<T, Misfit>,
    reader: &mut Reader<'_>,
) -> Result<String, Misfit> {
    read(reader).map(|value| format!("{value:?}"))
}

/// What Rust reads under the name of a format.
fn read_by_rust(format: &str, reader: &mut Reader<'_>) -> String {
    use formats::*;
    let read = match format {
        "head" => read_shown(Head::read, reader),
        "memory" => read_shown(Memory::read, reader),
        "terms" => read_shown(Terms::read, reader),
        "schedule" => read_shown(Schedule::read, reader),
        "counter" => read_shown(Counter::read, reader),
        "idle_counter" => read_shown(IdleCounter::read, reader),
        "deadline" => read_shown(Deadline::read, reader),
        "part" => read_shown(Part::read, reader),
        "deadline_end" => read_shown(DeadlineEnd::read, reader),
        "windows" => read_shown(Windows::read, reader),
        "window" => read_shown(Window::read, reader),
        "subscription" => read_shown(Subscription::read, reader),
        "record" => read_shown(Record::read, reader),
        "span" => read_shown(Span::read, reader),
        "claim" => read_shown(Claim::read, reader),
        "amount" => read_shown(Amount::read, reader),
        "quota" => read_shown(Quota::read, reader),
        "bucket" => read_shown(Bucket::read, reader),
        "undo" => read_shown(Undo::read, reader),
        "undo_field" => read_shown(UndoField::read, reader),
        other => panic!("{other} is no stored format"),
    };
    read.unwrap_or_else(|misfit| panic!("{format}: {misfit}"))
}

/// Name, name in Rust, and fields of a format.
fn declared(format: &str) -> (String, String, Vec<String>) {
    let table: toml::Table = include_str!("../../lua/formats.toml").parse().unwrap();
    let fields = table[format]["fields"].as_array().unwrap().iter();
    let fields = fields.map(|field| field["name"].as_str().unwrap().to_owned()).collect();
    let capital = |word: &str| word[..1].to_uppercase() + &word[1..];
    (format.to_owned(), format.split('_').map(capital).collect(), fields)
}

async fn eval<T: redis::FromRedisValue>(connection: &mut MultiplexedConnection, script: &str, args: &[Vec<u8>]) -> T {
    let mut eval = redis::cmd("EVAL");
    eval.arg(script).arg(0).arg(args);
    eval.query_async(connection).await.unwrap_or_else(|error| panic!("{error}"))
}

/// What the code needs of the library: Lua allows 200 local variables.
fn needed(code: &str) -> String {
    let words = |text: &str| -> BTreeSet<String> {
        text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_').map(ToOwned::to_owned).collect()
    };
    let pieces: Vec<&str> = LIBRARY.split_inclusive("\nlocal ").collect();
    let mut used = words(code);
    loop {
        let name = |piece: &&str| {
            let (_, declared) = piece.split_at(if piece.starts_with("local ") { 6 } else { 0 });
            let declared = declared.strip_prefix("function ").unwrap_or(declared);
            declared
                .split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
                .next()
                .map(ToOwned::to_owned)
        };
        let kept: Vec<&str> =
            pieces.iter().filter(|piece| name(piece).is_some_and(|name| used.contains(&name))).copied().collect();
        let more: BTreeSet<String> = kept.iter().flat_map(|piece| words(piece)).chain(used.iter().cloned()).collect();
        if more == used {
            let text =
                |piece: &&str| format!("local {}", piece.trim_start_matches("local ").trim_end_matches("local "));
            return kept.iter().map(text).collect();
        }
        used = more;
    }
}

#[tokio::test]
async fn what_the_first_version_stores_means_the_same_in_rust_and_lua() {
    let mut connection = crate::support::redis().await;
    for (name, sequence) in VALUES {
        let (packed, expected) = (value(name), meaning(name));
        let mut reader = Reader(&packed);
        let lines: Vec<_> = sequence.iter().map(|format| read_by_rust(format, &mut reader)).collect();
        assert_eq!(lines.join("\n"), expected, "{name}, in Rust");
        let known = packed.len() - reader.0.len();
        let is_longer = ["state", "state-idle", "record-held"].contains(&name);
        assert_eq!(reader.0, if is_longer { &b"added later"[..] } else { b"" }, "{name}");

        let mut used: Vec<_> = sequence.to_vec();
        used.sort_unstable();
        used.dedup();
        let of = |what: &str| used.iter().map(|name| format!("{name} = {what}_{name}")).collect::<Vec<_>>().join(", ");
        let code = format!("local read, write = {{ {} }}, {{ {} }}\n{SHOW}", of("read"), of("write"));
        let library = needed(&code);
        let script = format!("local pack_struct, unpack_struct = struct.pack, struct.unpack\n{library}\n{code}");
        let mut args = vec![packed.clone()];
        args.extend(sequence.iter().map(|format| rmp_serde::to_vec(&declared(format)).unwrap()));
        let (shown, written): (String, Vec<u8>) = eval(&mut connection, &script, &args).await;
        assert_eq!(shown, expected, "{name}, in Lua");
        assert_eq!(written, packed[..known], "{name}, written by Lua");
    }
    for name in MESSAGES {
        let (packed, expected) = (value(name), meaning(name));
        let read: serde_json::Value = rmp_serde::from_slice(&packed).unwrap();
        assert_eq!(read.to_string(), expected, "{name}, in Rust");
        let shown: String = eval(&mut connection, SHOW_MESSAGE, &[packed]).await;
        assert_eq!(shown, expected, "{name}, in Lua");
    }
}

#[test]
fn a_plan_of_the_first_version_can_be_read() {
    let plan = CompiledPlan::read(value("plan").into()).unwrap();
    assert_eq!((plan.id.as_str(), plan.digest), ("p", digest_of(&value("plan"))));
    assert_eq!(plan.names, ["completion", "prompt", "quantity"]);
    assert_eq!(plan.asked, ["tier"]);
    let groups: Vec<_> =
        plan.groups.iter().map(|group| (group.id.as_str(), group.label.as_str(), group.hard)).collect();
    assert_eq!(groups, [("tokens", "Tokens", true), ("calls", "Calls", false), ("spend", "spend", true)]);
}

/// The plan of the fixtures.
const CATALOG: &str = "
plans:
  p:
    period: lifetime
    limit_groups:
      - id: tokens
        label: Tokens
        unit: tokens
        quota: 1000
        match:
          - { event: t, metadata: { tier: [gold, team-*] }, measure: { prompt: 1, completion: 0.25 } }
          - { event: t.*, measure: [ { name: prompt, weight: 0.000000000001, default: 2 } ] }
      - { id: calls, label: Calls, unit: count, quota: unlimited, hard: false, match: [ { event: '*', measure: events } ] }
      - { id: spend, unit: cents, quota: 5, period: monthly, anchor: subscription_start, match: [ { event: s } ] }
";

/// What is in the fixtures.
const FIELDS: [([u8; 16], &str); 4] =
    [([1; 16], "record-held"), ([2; 16], "record-paged"), ([3; 16], "record-committed"), ([4; 16], "record-tracked")];
const SUFFIX: [u8; 6] = [10, 11, 12, 13, 14, 15];

/// Puts the fixtures into a Redis, as those of a user.
async fn put(connection: &mut MultiplexedConnection, user: &str) {
    let keys = keys(user);
    let state = value("state");
    let mut reader = Reader(&state);
    formats::Head::read(&mut reader).unwrap();
    let memory = formats::Memory::read(&mut reader).unwrap();
    let mut deadlines = Vec::new();
    let mut pipe = redis::pipe();
    pipe.set(keys.state(), &state);
    let [young, _] = keys.memories();
    for (field, name) in FIELDS {
        let record = value(name);
        let read = formats::Record::read(&mut Reader(&record)).unwrap();
        pipe.hset(&young, &field, record);
        if read.state == 1 {
            deadlines.push(read.deadline);
            pipe.cmd("SET").arg(keys.hold(&field)).arg("t").arg("PXAT").arg(read.deadline);
        }
    }
    let bucket = [&b"d"[..], &deadlines[1].to_le_bytes()[..6]].concat();
    pipe.hset(&young, &bucket, value("bucket")).hset(&young, b"u", value("undo"));
    pipe.cmd("PEXPIREAT").arg(&young).arg(memory.young_expires);
    let () = pipe.query_async(connection).await.unwrap();
}

fn reservation_id(user: &str, field: [u8; 16]) -> String {
    ReservationId { field, suffix: SUFFIX, plan: digest_of(&value("plan")), owner: owner(user) }.to_string()
}

async fn usage(replica: &mut Replica, user: &str) -> Vec<(String, f64, f64)> {
    let request = v1::GetUsageRequest { user_id: user.to_owned(), ..v1::GetUsageRequest::default() };
    let answer = replica.metering.get_usage(request).await.unwrap().into_inner();
    answer.limits.into_iter().map(|limit| (limit.limit_group_id, limit.used, limit.held)).collect()
}

fn actual(prompt: f64) -> v1::Actual {
    v1::Actual { quantities: [("prompt".to_owned(), prompt)].into(), ..v1::Actual::default() }
}

#[tokio::test]
async fn what_the_first_version_stores_is_used_and_written_again() {
    let redis = RedisServer::start(scratch("formats-v1"), "");
    redis.ready().await;
    let mut connection = redis.connection().await;
    let options = tollgate::ledger::RedisOptions { urls: vec![redis.url()], ..redis_options() };
    let mut replica = Replica::start_with(CATALOG, jiff::tz::db(), MeterOptions::default(), options).await;
    let user = fresh_user("v1");
    put(&mut connection, &user).await;
    let digest = digest_of(&value("plan"));
    let mut archive = redis::cmd("SET");
    archive.arg(tollgate::ledger::keys::plan(&digest)).arg(value("plan")).arg("PX").arg(1_000_000);
    let () = archive.query_async(&mut connection).await.unwrap();
    let urls = [redis.url()];
    let (report, findings) = verify::run(&urls).await.unwrap();
    assert_eq!(findings, [], "{report}");

    let request = v1::GetSubscriptionRequest { user_id: user.clone() };
    let subscription =
        replica.subscriptions.get_subscription(request).await.unwrap().into_inner().subscription.unwrap();
    assert_eq!(subscription.plan_id, "p");
    let quota = |id: &str| subscription.overrides.as_ref().unwrap().quotas[id].limit;
    assert_eq!(quota("tokens"), Some(v1::quota::Limit::Amount(7.5)));
    assert_eq!(quota("calls"), Some(v1::quota::Limit::Unlimited(true)));
    let of = |tokens: (f64, f64), calls: (f64, f64)| {
        let group = |id: &str, (used, held)| (id.to_owned(), used, held);
        vec![group("tokens", tokens), group("calls", calls), group("spend", (0.0, 0.0))]
    };
    assert_eq!(usage(&mut replica, &user).await, of((20.0, 12.0), (7.0, 2.0)));

    let commit = |field, actual| v1::CommitRequest {
        reservation_id: reservation_id(&user, field),
        actual,
        ..v1::CommitRequest::default()
    };
    let answer = replica.metering.commit(commit(FIELDS[0].0, Some(actual(4.0)))).await.unwrap().into_inner();
    assert_eq!((answer.state(), answer.late, answer.replayed), (v1::ReservationState::Committed, false, false));
    assert_eq!(usage(&mut replica, &user).await, of((24.0, 7.0), (8.0, 1.0)));
    let request =
        v1::ReleaseRequest { reservation_id: reservation_id(&user, FIELDS[1].0), ..v1::ReleaseRequest::default() };
    let answer = replica.metering.release(request).await.unwrap().into_inner();
    assert_eq!(answer.state(), v1::ReservationState::Released);
    assert_eq!(usage(&mut replica, &user).await, of((24.0, 0.0), (8.0, 0.0)));
    // It was committed late, with these quantities.
    let answer = replica.metering.commit(commit(FIELDS[2].0, Some(actual(4.0)))).await.unwrap().into_inner();
    assert_eq!((answer.state(), answer.late, answer.replayed), (v1::ReservationState::Committed, true, true));
    let status = replica.metering.commit(commit(FIELDS[3].0, None)).await.unwrap_err();
    assert_eq!(reason(&status), "RESERVATION_NOT_FOUND", "what was tracked is no reservation");

    // What a later version has added stays.
    let state: Vec<u8> = redis::cmd("GET").arg(keys(&user).state()).query_async(&mut connection).await.unwrap();
    assert!(state.ends_with(b"added later"));
    let mut record = redis::cmd("HGET");
    record.arg(&keys(&user).memories()[0]).arg(&FIELDS[0].0);
    let record: Vec<u8> = record.query_async(&mut connection).await.unwrap();
    assert!(record.ends_with(b"added later"));
    let (report, findings) = verify::run(&urls).await.unwrap();
    assert_eq!(findings, [], "{report}");
}

fn reason(status: &Status) -> String {
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}

fn event(prompt: f64) -> v1::Event {
    v1::Event {
        name: "t".to_owned(),
        quantities: [("prompt".to_owned(), prompt), ("completion".to_owned(), 0.0)].into(),
        metadata: [("tier".to_owned(), "gold".to_owned())].into(),
        ..v1::Event::default()
    }
}

fn reserve(user: &str) -> v1::ReserveRequest {
    v1::ReserveRequest { user_id: user.to_owned(), event: Some(event(3.0)), ..v1::ReserveRequest::default() }
}

async fn subscribe(replica: &mut Replica, user: &str) {
    let request = v1::UpsertSubscriptionRequest {
        user_id: user.to_owned(),
        plan_id: "p".to_owned(),
        ..v1::UpsertSubscriptionRequest::default()
    };
    replica.subscriptions.upsert_subscription(request).await.unwrap();
}

#[tokio::test]
async fn what_a_later_version_has_added_survives_every_decision() {
    let mut replica = Replica::start(CATALOG).await;
    let mut connection = crate::support::redis().await;
    let user = fresh_user("grown");
    subscribe(&mut replica, &user).await;
    let state = keys(&user).state().to_owned();
    let () = redis::cmd("APPEND").arg(&state).arg("more").query_async(&mut connection).await.unwrap();
    let id = replica.metering.reserve(reserve(&user)).await.unwrap().into_inner().reservation_id;
    let is_kept = async |connection: &mut MultiplexedConnection| {
        let state: Vec<u8> = redis::cmd("GET").arg(&state).query_async(connection).await.unwrap();
        state.ends_with(b"more")
    };
    assert!(is_kept(&mut connection).await, "by a Reserve");
    let request = v1::CommitRequest { reservation_id: id, ..v1::CommitRequest::default() };
    replica.metering.commit(request).await.unwrap();
    assert!(is_kept(&mut connection).await, "by a Commit");
    let request = v1::TrackRequest { user_id: user.clone(), event: Some(event(1.0)), ..v1::TrackRequest::default() };
    replica.metering.track(request).await.unwrap();
    assert!(is_kept(&mut connection).await, "by a Track");
    let request = v1::UpsertSubscriptionRequest {
        user_id: user.clone(),
        plan_id: "p".to_owned(),
        overrides: Some(v1::QuotaOverrides {
            quotas: [("calls".to_owned(), v1::Quota { limit: Some(v1::quota::Limit::Amount(7.0)) })].into(),
        }),
        ..v1::UpsertSubscriptionRequest::default()
    };
    replica.subscriptions.upsert_subscription(request).await.unwrap();
    assert!(is_kept(&mut connection).await, "by another subscription");
    assert_eq!(usage(&mut replica, &user).await[0], ("tokens".to_owned(), 4.0, 0.0));
}

/// The reasons that calls about a user are refused with, by the names of their RPCs.
async fn refusals(replica: &mut Replica, user: &str, reservation_id: &str) -> Vec<(&'static str, Code, String)> {
    let mut refused = Vec::new();
    let mut note = |rpc: &'static str, answer: Result<(), Status>| match answer {
        Ok(()) => refused.push((rpc, Code::Ok, String::new())),
        Err(status) => refused.push((rpc, status.code(), reason(&status))),
    };
    let metering = &mut replica.metering;
    note("Reserve", metering.reserve(reserve(user)).await.map(drop));
    let request = v1::CanUseRequest { user_id: user.to_owned(), event: Some(event(1.0)) };
    note("CanUse", metering.can_use(request).await.map(drop));
    let request = v1::TrackRequest { user_id: user.to_owned(), event: Some(event(1.0)), ..v1::TrackRequest::default() };
    note("Track", metering.track(request.clone()).await.map(drop));
    let refund = v1::Event { name: "t.refund".to_owned(), ..event(1.0) };
    note("Track of a refund", metering.track(v1::TrackRequest { event: Some(refund), ..request }).await.map(drop));
    let request = v1::GetUsageRequest { user_id: user.to_owned(), ..v1::GetUsageRequest::default() };
    note("GetUsage", metering.get_usage(request).await.map(drop));
    let request = v1::CommitRequest { reservation_id: reservation_id.to_owned(), ..v1::CommitRequest::default() };
    note("Commit", metering.commit(request).await.map(drop));
    let request = v1::ReleaseRequest { reservation_id: reservation_id.to_owned(), ..v1::ReleaseRequest::default() };
    note("Release", metering.release(request).await.map(drop));
    let request = v1::TrackRequest {
        user_id: user.to_owned(),
        event: Some(event(1.0)),
        time: Some(prost_types::Timestamp { seconds: 1, nanos: 0 }),
        ..v1::TrackRequest::default()
    };
    note("Track with a time", metering.track(request).await.map(drop));
    let request = v1::ResetUsageRequest { user_id: user.to_owned(), ..v1::ResetUsageRequest::default() };
    note("ResetUsage", metering.reset_usage(request).await.map(drop));
    let request = v1::GetReservationRequest { reservation_id: reservation_id.to_owned() };
    note("GetReservation", metering.get_reservation(request).await.map(drop));
    let request = v1::ListReservationsRequest { user_id: user.to_owned(), ..v1::ListReservationsRequest::default() };
    note("ListReservations", metering.list_reservations(request).await.map(drop));
    let subscriptions = &mut replica.subscriptions;
    let request = v1::GetSubscriptionRequest { user_id: user.to_owned() };
    note("GetSubscription", subscriptions.get_subscription(request).await.map(drop));
    let request = v1::CancelSubscriptionRequest { user_id: user.to_owned(), end_time: None };
    note("CancelSubscription", subscriptions.cancel_subscription(request).await.map(drop));
    refused
}

#[tokio::test]
async fn a_state_of_a_later_format_is_left_alone() {
    let mut replica = Replica::start(CATALOG).await;
    let mut connection = crate::support::redis().await;
    let user = fresh_user("later-state");
    subscribe(&mut replica, &user).await;
    let id = replica.metering.reserve(reserve(&user)).await.unwrap().into_inner().reservation_id;
    let mut later = redis::cmd("SETRANGE");
    let _: i64 = later.arg(keys(&user).state()).arg(0).arg(b"\x03").query_async(&mut connection).await.unwrap();
    let before = crate::support::dump(&user).await;
    for (rpc, code, reason) in refusals(&mut replica, &user, &id).await {
        assert_eq!((code, reason.as_str()), (Code::Unavailable, "FORMAT_UNKNOWN"), "{rpc}");
    }
    assert_eq!(crate::support::dump(&user).await, before);
}

#[tokio::test]
async fn a_record_of_a_later_format_is_left_alone() {
    let mut replica = Replica::start(CATALOG).await;
    let mut connection = crate::support::redis().await;
    let user = fresh_user("later-record");
    subscribe(&mut replica, &user).await;
    let id = replica.metering.reserve(reserve(&user)).await.unwrap().into_inner().reservation_id;
    let field = id.parse::<ReservationId>().unwrap().field;
    let [young, _] = keys(&user).memories();
    let mut read = redis::cmd("HGET");
    let mut record: Vec<u8> = read.arg(&young).arg(&field).query_async(&mut connection).await.unwrap();
    record[0] = 3;
    let () = redis::cmd("HSET").arg(&young).arg(&field).arg(record).query_async(&mut connection).await.unwrap();
    let before = crate::support::dump(&user).await;
    let all = refusals(&mut replica, &user, &id).await;
    for (rpc, code, reason) in
        all.iter().filter(|(rpc, ..)| ["Commit", "Release", "GetReservation", "ListReservations"].contains(rpc))
    {
        assert_eq!((*code, reason.as_str()), (Code::Unavailable, "FORMAT_UNKNOWN"), "{rpc}");
    }
    let after = crate::support::dump(&user).await;
    assert!(before.keys().all(|key| after.contains_key(key)));
}

#[tokio::test]
async fn only_a_state_whose_windows_need_it_has_the_wide_format() {
    let catalog = "
plans:
  plain: { limit_groups: [{ id: g, unit: tokens, quota: 10, period: monthly, match: [{ event: t }] }] }
  lengths: { limit_groups: [{ id: g, unit: tokens, quota: 10, period: 90m, anchor: subscription_start, match: [{ event: t }] }] }
  sessions: { limit_groups: [{ id: g, unit: tokens, quota: 10, period: 5h, anchor: first_use, match: [{ event: t }] }] }
";
    let mut replica = Replica::start(catalog).await;
    let mut connection = crate::support::redis().await;
    let mut format_of = async |user: &str| {
        let state: Vec<u8> = redis::cmd("GET").arg(keys(user).state()).query_async(&mut connection).await.unwrap();
        state[0]
    };
    for (plan_id, format) in [("plain", 1), ("lengths", 2), ("sessions", 2)] {
        let (user_id, plan_id) = (fresh_user(plan_id), plan_id.to_owned());
        let request = v1::UpsertSubscriptionRequest {
            user_id: user_id.clone(),
            plan_id: plan_id.clone(),
            ..v1::UpsertSubscriptionRequest::default()
        };
        replica.subscriptions.upsert_subscription(request).await.unwrap();
        let event = v1::Event { quantity: Some(3.0), ..event(3.0) };
        let request = v1::TrackRequest {
            user_id: user_id.clone(),
            event: Some(event),
            // What is remembered could be refunded after the reset.
            request_id: "r".to_owned(),
            ..v1::TrackRequest::default()
        };
        replica.metering.track(request).await.unwrap();
        assert_eq!(format_of(&user_id).await, format, "{plan_id}");
        let request = v1::ResetUsageRequest { user_id: user_id.clone(), ..v1::ResetUsageRequest::default() };
        replica.metering.reset_usage(request).await.unwrap();
        assert_eq!(format_of(&user_id).await, 2, "{plan_id}, after a reset");
    }
}
