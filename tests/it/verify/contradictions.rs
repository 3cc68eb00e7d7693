//! What is planted in a real Redis is found, each contradiction by itself, and what is odd but possible is not taken for one.

use redis::AsyncCommands as _;
use tollgate::domain::id::{RequestId, base64url, field_of};
use tollgate::ledger::packed::Reader;
use tollgate::ledger::{formats, scripts};
use tollgate::verify;

use super::{CATALOG, WORKLOAD, redis, replica, run, text};
use crate::scenario::Scenario;
use crate::support::keys;

/// Reads what a user has, for the lines that break it.
const PRELUDE: &str = include_str!("prelude.lua");

/// What the prelude reads and writes with.
const FORMATS: &str = include_str!(concat!(env!("OUT_DIR"), "/formats_library.lua"));

/// These lines after the prelude, without the formats that they do not use: a script has no room for all of them.
fn script(lua: &str) -> String {
    // What is only a comment may have a quote in it.
    let prelude: String =
        PRELUDE.lines().filter(|line| !line.trim_start().starts_with("--")).flat_map(|line| [line, "\n"]).collect();
    let source = format!("local pack_struct, unpack_struct = struct.pack, struct.unpack\n{FORMATS}\n{prelude}\n{lua}");
    let changed = scripts().changed(|script| match script.name {
        "inspect" => source.clone(),
        _ => script.source.to_string(),
    });
    changed.inspect.body
}

/// Runs the lines in a Redis, for each user of a case, and holds the output against what is expected of it: every expected finding is
/// there, and nothing else of that user. A finding is expected by what its key has after that of the state, and a part of its text.
async fn check(name: &str, plan: &str, cases: &[(&str, &[&str])]) {
    let redis = redis(name).await;
    let mut scenario = Scenario::new(vec![("", replica(&redis, CATALOG).await)]);
    let mut connection = redis.connection().await;
    let mut users = Vec::new();
    for (index, (lua, _)) in cases.iter().enumerate() {
        let user = format!("case{index}");
        scenario.run(&WORKLOAD.replace('U', &user)).await;
        if !plan.is_empty() {
            scenario.run(&format!("subscribe {user} {plan}\ntrack {user} t 1")).await;
        }
        let user = scenario.user(&user);
        let keys = keys(&user);
        let fields = ["r1", "r2", "t1", "t2"].map(|id| field_of(RequestId::parse(id).unwrap().as_ref()));
        let mut eval = redis::cmd("EVAL");
        eval.arg(script(lua));
        eval.arg(3).arg(&keys.all()).arg(format!("{}:h:", keys.state()));
        eval.arg(fields.map(|field| base64url(&field)).as_slice());
        for field in &fields {
            eval.arg(field);
        }
        let _: redis::Value = eval.query_async(&mut connection).await.unwrap_or_else(|error| panic!("{lua}: {error}"));
        users.push(user);
    }
    let output = run(&["--redis-url", &redis.url()]).await;
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let output = text(&output.stdout);
    for (user, (lua, expected)) in users.iter().zip(cases) {
        let lines: Vec<_> = output.lines().filter_map(|line| line.strip_prefix(keys(user).state())).collect();
        let says = |line: &str, expected: &str| {
            let (key, text) = expected.split_once(": ").unwrap();
            let key = if key == "state" { ": ".to_owned() } else { format!(":{key}") };
            line.starts_with(&key) && line.split_once(": ").unwrap().1.contains(text)
        };
        for expected in *expected {
            assert!(lines.iter().any(|line| says(line, expected)), "{lua}\n  expected {expected}\n  found {lines:#?}");
        }
        for line in &lines {
            assert!(expected.iter().any(|expected| says(line, expected)), "{lua}\n  found also {line}");
        }
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_state_is_found() {
    let other_window = "1: is at another time in the state";
    let cases: &[(&str, &[&str])] = &[
        ("", &[]),
        ("led.head.live = 2 save()", &["state: the number of live holds is 2, but its deadlines have 1"]),
        (
            "led.head.live = 65535 save()",
            &["state: holds is 65535, and not in 0 to 10000", "state: but its deadlines have 1"],
        ),
        ("led.head.time = now + 1800000 save()", &["state: the next call follows Redis's again"]),
        ("led.head.time = now + 120000 save()", &["state: and stands until then"]),
        (
            "led.deadlines[1].at = math.ceil(now / 100) * 100 + 7200000 save()",
            &["state: has more: ", "state: is missing, with 1 live in the records"],
        ),
        (
            "led.deadlines = {} save()",
            &["state: but its deadlines have 0", "state: held is", "state: is missing, with 1 live in the records"],
        ),
        (
            "led.deadlines[1].list[1].amount = 6 save()",
            &["state: held is 5, but its deadlines hold 6", "state: has more: 6 in window "],
        ),
        (
            "led.deadlines[1].list[1].amount = 4 save()",
            &["state: held is 5, but its deadlines hold 4", "state: has less: 4 in window "],
        ),
        ("led.head.pages = 1 save()", &["state: the number of pages is 1, but its deadlines have 0"]),
        (
            "local it = led.deadlines[1] it.kind, it.at, led.head.pages = 1, it.at - it.at % 6400 + 100, 1 save()",
            &["state: is no multiple of 6400 ms", "state: is missing, with 1 live", "state: note: page"],
        ),
        ("led.memory.young_expires = NEVER save()", &["1: but its state has noted 281474976710655"]),
        (
            "led.memory.sequence = led.memory.sequence - 2 save()",
            &["1: the undo has sequence ", "1: note: a script failed"],
        ),
        ("led.memory.since = now + 60000 save()", &["state: the young memory began at "]),
        ("led.head.expires = now save()", &["state: has the expiry -1, but its state has noted "]),
        ("redis.call('SET', state, 'x', 'KEEPTTL')", &["state: the state has format 120, and this version"]),
        ("redis.call('SETRANGE', state, 1, '\\9')", &["state: `subscribed` is 9, and not 0, 1 or 2"]),
        ("redis.call('SET', state, '\\1\\1\\1')", &["state: it ends after too few bytes"]),
        ("redis.call('APPEND', state, 'what a later version adds')", &[]),
        ("led.head.plan = '\\255' save()", &["state: it has text that is not UTF-8"]),
        (
            "counter('tokens').used = 9007199254740992 save()",
            &["state: group \"tokens\", current window 3: used is 9007199254740992, and not in 0 to 9007199254740991"],
        ),
        (
            "counter('tokens').held = 6 save()",
            &["state: group \"tokens\", current window 3: held is 6, but its deadlines hold 5"],
        ),
        (
            "counter('calls').held = 0 save()",
            &["state: group \"calls\", current window 4: held is 0, but its deadlines hold 1"],
        ),
        (
            "counter('cycle', 2).held = 1 save()",
            &["state: group \"cycle\", earlier window 1: held is 1, but its deadlines hold 0"],
        ),
        (
            "local it, window = counter('cycle') window.unit, it.used = 4, 8000000000000001 save()",
            &["state: used is 8000000000000001, and not in 0 to 8000000000000000"],
        ),
        ("local _, window = counter('cycle') window.unit = 5 save()", &["state: the unit is 5, and not in 1 to 4"]),
        (
            "local _, window = counter('cycle') window.period = 8 save()",
            &["state: the period is 8, and neither in 1 to 7 nor a length"],
        ),
        ("local _, window = counter('cycle') window.period = 7 save()", &["state: is of a lifetime, but starts at "]),
        (
            "local it = own_schedule('cycle') it.ends = it.start save()",
            &["state: which are not in order", "state: its counter is current from"],
        ),
        (
            "local _, window = counter('tokens') window.unit = 3 save()",
            &["state: a record has window 3 for group \"tokens\" of plan ", "state: or of another unit or period"],
        ),
        ("local it = own_schedule('cycle') it.kept = it.ends save()", &["state: which are not in order"]),
        ("local it = own_schedule('tokens') it.start = it.start - 9 save()", &[other_window]),
        (
            "counter('cycle').number = 4 save()",
            &[
                "state: has the same number as",
                "state: held is 0, but its deadlines hold 1",
                "state: for group \"calls\" of plan",
            ],
        ),
        (
            "led.head.opened = 3 save()",
            &[
                "state: its number is not in 1 to 3",
                "state: in window 4, which cannot be",
                "1: number 4, and not in 1 to 3",
            ],
        ),
        (
            "own_schedule('cycle', 2).anchor = schedule('cycle').anchor save()",
            &["state: group \"cycle\": windows 1 and 2 overlap"],
        ),
        (
            "local second = counter('cycle', 2)
            local of_second = second.schedule
            for i = 5, 11 do
              own_schedule('cycle', 2).anchor = i
              local it = { number = i, schedule = #led.schedules, used = 0, held = 0 }
              table.insert(led.windows, { group = 'cycle', unit = 2, period = 5, place = 0, counter = it })
            end
            table.sort(led.windows, function(a, b) return a.group < b.group end)
            second.schedule = of_second
            led.head.opened = 11 save()",
            &["state: group \"cycle\" has 9 windows, and not at most 8"],
        ),
        (
            "local it, window = counter('calls') table.insert(led.windows, 1, window) table.insert(led.windows, window) save()",
            &["state: group \"calls\" is in two places, and not in one"],
        ),
        (
            "redis.call('PEXPIRE', state, 7200000)",
            &["state: but has a subscription", "state: but its state has noted -1"],
        ),
        (
            "redis.call('DEL', state)",
            &[
                "1: note: belongs to a user whose state knows of no memory",
                "h: note: shows a reservation that nothing is known of",
            ],
        ),
        (
            "redis.call('DEL', state) redis.call('HSET', state, 'a', 'b')",
            &[
                "state: is a hash, and not a string",
                "1: note: belongs to a user whose state knows of no memory",
                "h: note: shows a reservation that nothing is known of",
            ],
        ),
    ];
    check("verify-state", "", cases).await;
    check(
        "verify-lifetime",
        "life",
        &[
            ("", &[]),
            ("redis.call('PEXPIRE', state, 7200000)", &["state: but has a subscription", "state: but its state has noted"]),
            (
                "led.head.subscribed, led.terms, led.subscription.blob = 0, nil, '' save() redis.call('PEXPIRE', state, 7200000)",
                &["state: but has a lifetime group", "state: but its state has noted"],
            ),
            (
                "local it = own_schedule('all') it.ends = NEVER - 1 save()",
                &["state: is of a lifetime, but", "state: its counter is current"],
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn what_is_wrong_with_a_memory_is_found() {
    let cases: &[(&str, &[&str])] = &[
        ("redis.call('PERSIST', memory)", &["1: never expires"]),
        ("redis.call('PEXPIREAT', memory, led.memory.young_expires + 2000)", &["1: but its state has noted"]),
        (
            "redis.call('PEXPIRE', memory, 600000)",
            &["1: but its memory expires before, at ", "1: but its state has noted"],
        ),
        ("redis.call('HSET', memory, 'x', '1')", &["1: field \"x\": is neither a record nor a bucket nor the undo"]),
        ("redis.call('HDEL', memory, 'u')", &["1: has no undo"]),
        ("redis.call('HSET', memory, 'u', '\\1')", &["1: the undo does not fit its format: it ends after"]),
        (
            "redis.call('DEL', memory) redis.call('SET', memory, 'x')",
            &[
                "1: is a string, and not a hash",
                "1: never expires",
                "state: has more: ",
                "h: note: shows a reservation that nothing is known of",
            ],
        ),
        (
            "redis.call('DEL', memory)",
            &[
                "1: note: is gone, but the state says that it expires at ",
                "state: has more: ",
                "h: note: shows a reservation that nothing is known of",
            ],
        ),
        (
            "redis.call('HDEL', memory, live)",
            &["state: has more: ", "h: note: shows a reservation that nothing is known of"],
        ),
        (
            "redis.call('HSET', KEYS[3], live, redis.call('HGET', memory, live))",
            &["2: never expires", "2: has no undo"],
        ),
        ("redis.call('HSET', memory, committed, '\\1')", &["1: the record does not fit its format: it ends after"]),
        ("redis.call('HSET', memory, committed, '\\3')", &["1: the record has format 3, and this version"]),
        ("redis.call('HSET', memory, committed, redis.call('HGET', memory, committed) .. 'more')", &[]),
        (
            "redis.call('HSET', memory, pack_struct('<c1I6', 'd', now + 50000 - now % 100), pack_struct('<HH', 1, 0))",
            &[
                "state: has more: 1 holds, and not 0, as its records say",
                "state: has less: 0 holds, and not 1, as its buckets",
            ],
        ),
        ("edit(committed, function(it) it.state = 7 end)", &["1: the state is 7, and not in 1 to 6"]),
        ("edit(live, function(it) it.paged = 1 end)", &["state: has more: ", "state: has less: 0"]),
        ("edit(live, function(it) it.deadline = now - now % 100 - 1000 end)", &["state: has more: ", "h: expires at "]),
        (
            "edit(live, function(it) it.deadline = it.deadline + 1 end)",
            &["1: is no multiple of", "state: has more: ", "state: is missing"],
        ),
        (
            "edit(released, function(it) it.what = cmsgpack.pack('t') end)",
            &["1: the event is one of 1 value, and not one of 2"],
        ),
        ("edit(released, function(it) it.what = '\\217' end)", &["1: the event is no MessagePack"]),
        ("edit(released, function(it) it.forget = it.deadline - 1 end)", &["1: are not in order"]),
        (
            "edit(released, function(it) it.claim = {} end)",
            &["1: the list of claims is empty, and not one of at least 1"],
        ),
        ("edit(released, function(it) it.as_is, it.columns = true, 3 end)", &["1: the code of the columns is 3"]),
        (
            "edit(committed, function(it) it.committed = units(0, 1) end)",
            &["1: committed 0 and refunded 1, which cannot be"],
        ),
        (
            "edit(committed, function(it) it.refunded = units(7, 0) end)",
            &["1: committed 6 and refunded 7, which cannot be"],
        ),
        ("edit(committed, function(it) it.committed = units(2 ^ 53, 1) end)", &["1: which cannot be"]),
        (
            "edit(live, function(it) it.committed = units(3, 0) end)",
            &["1: is held, but group 1 committed 3", "1: is held, but group 2"],
        ),
        (
            "edit(released, function(it) it.committed, it.refunded = units(0, 0), units(1, 0) end)",
            &["1: is released, but group 1 committed 0 and refunded 1", "1: is released, but group 2"],
        ),
        ("edit(released, function(it) it.claim[1].charge = 2 ^ 53 end)", &["1: the charge is 9007199254740992"]),
        ("edit(tracked, function(it) it.claim[1].charge = 2 ^ 53 end)", &["1: the charge is 9007199254740992"]),
        ("edit(tracked, function(it) it.committed = units(3, 0) end)", &["1: group 1 did not apply 3 of 2"]),
        (
            "edit(tracked, function(it) it.deadline = now - now % 100 + 1 end)",
            &["1: are not in order", "1: is no multiple of"],
        ),
        ("edit(released, function(it) it.quota = units(-2, 1) end)", &["1: the quota is -2"]),
        (
            "edit(released, function(it) it.claim[1].group = it.claim[2].group end)",
            &["1: is charged twice", "state: for group \"calls\""],
        ),
        ("edit(released, function(it) it.claim[1].group = 9 end)", &["state: a record has group 9 of plan "]),
        (
            "edit(released, function(it) it.span[1].start = NEVER end)",
            &["1: starts at", "1: is at another time in the state"],
        ),
        ("edit(released, function(it) it.claim[1].span = 9 end)", &["1: its span is number 9, and there are 2"]),
        ("edit(released, function(it) it.claim[1].balance = 5 end)", &["1: its window is number 5, and not in 1 to 4"]),
        (
            "edit(released, function(it) it.claim[1].balance = 4 end)",
            &[
                "1: its window 4 is at another time in the state, of group \"calls\"",
                "state: for group \"tokens\" of plan",
            ],
        ),
        (
            "edit(live, function(it) it.claim[1].charge = 6 end)",
            &["state: has less: 5 in window 3, and not 6, as its records say"],
        ),
        ("edit(live, function(it) it.plan = 'unknown!' end)", &["state: note: plan "]),
    ];
    check("verify-memory", "", cases).await;
}

/// NO-LEAK: more deadlines than stand in the state by themselves.
#[tokio::test]
async fn pages_of_deadlines_are_held_against_their_records() {
    let redis = redis("verify-pages").await;
    let mut scenario = Scenario::new(vec![("", replica(&redis, CATALOG).await)]);
    let reserve = |number: u32| format!("reserve u t 1 ttl={}ms as=M{number} => allowed\n", 60_000 + number * 300);
    scenario.run(&format!("subscribe u p\n{}", (0..100).map(reserve).collect::<String>())).await;
    let urls = [redis.url()];
    let verified = async || {
        let (report, findings) = verify::run(&urls).await.unwrap();
        (report.live_holds, findings.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    assert_eq!(verified().await, (100, Vec::new()));
    scenario.run("commit M99 1\nrelease M98\ncommit M0 1").await;
    assert_eq!(verified().await, (97, Vec::new()));

    let mut connection = redis.connection().await;
    let keys = keys(&scenario.user("u"));
    let state: Vec<u8> = connection.get(keys.state()).await.unwrap();
    assert!(formats::Head::read(&mut Reader(&state)).unwrap().pages > 0, "there are pages");
    let [young, _] = keys.memories();
    let fields: Vec<Vec<u8>> = connection.hkeys(&young).await.unwrap();
    let buckets: Vec<_> = fields.into_iter().filter(|field| field.len() == 7).collect();
    assert!(buckets.len() > 20);
    // The bucket of a hold that is still live.
    let mut lost = None;
    for bucket in buckets {
        let value: Vec<u8> = connection.hget(&young, &bucket).await.unwrap();
        if formats::Bucket::read(&mut Reader(&value)).unwrap().holds == 1 {
            lost = Some(bucket);
        }
    }
    let () = connection.hdel(&young, lost).await.unwrap();
    let (_, found) = verified().await;
    let is = |part: &str| found.iter().filter(|line| line.contains(part)).count();
    assert_eq!((is(": the bucket of deadline "), is(": note: page "), found.len()), (3, 3, 6), "{found:#?}");
}

#[tokio::test]
async fn what_is_wrong_with_other_keys_is_found() {
    let cases: &[(&str, &[&str])] = &[
        ("redis.call('DEL', hold)", &["h: is missing, but its reservation is live until "]),
        ("redis.call('PERSIST', hold)", &["h: never expires, but its reservation is live until "]),
        ("redis.call('PEXPIRE', hold, 7200000)", &["h: expires at "]),
        ("redis.call('SET', hold, 'x', 'KEEPTTL')", &["h: shows \"x\", but its reservation is of event \"t\""]),
        ("redis.call('DEL', hold) redis.call('RPUSH', hold, 'x')", &["h: is a list, and not a string"]),
        ("redis.call('SET', hold_prefix .. ARGV[3], 't', 'PX', 900000)", &["h: shows a reservation that is committed"]),
        (
            "redis.call('SET', hold_prefix .. ARGV[4], 't', 'PX', 900000)",
            &["h: shows a reservation that is a tracked event"],
        ),
        (
            "redis.call('SET', hold_prefix .. 'AAAAAAAAAAAAAAAAAAAAAA', 'x')",
            &["h: shows a reservation that nothing is known of, and never expires"],
        ),
        ("redis.call('SET', hold_prefix .. 'nobody', 'x')", &["h:nobody: belongs to nothing"]),
        ("redis.call('SET', state .. ':3', 'x')", &["3: belongs to nothing"]),
        ("led.subscription.blob = 'x' save()", &["state: the subscription is 120, and not a list of 5"]),
        ("led.terms.revision = string.rep('\\0', 8) save()", &["state: the revision of the subscription is empty"]),
        ("led.terms.ends = now save()", &["state: the subscription ends at 0, but the scripts go by "]),
        ("led.head.subscribed = 2 save()", &["state: has fallen to the default plan, but its subscription ends at 0"]),
        (
            "led.head.subscribed, led.terms = 0, nil save()",
            &["state: has a subscription, and says that there is none", "state: never expires, but has neither"],
        ),
        (
            "led.subscription.blob = cmsgpack.pack({ '', 0, 0, 0, {} }) save()",
            &["state: the plan of the subscription is empty"],
        ),
        (
            "led.subscription.blob = cmsgpack.pack({ 'p', -1, 0, 0, {} }) save()",
            &["state: the start of the subscription is -1"],
        ),
        (
            "led.subscription.blob = cmsgpack.pack({ 'p', 0, -1, 0, {} }) save()",
            &["state: the end of the subscription is -1", "state: but the scripts go by"],
        ),
        (
            "led.subscription.blob = cmsgpack.pack({ 'p', 0, 0, 1.5, {} }) save()",
            &["state: the cycle anchor is 1.5, and not an integer"],
        ),
        (
            "led.subscription.blob = cmsgpack.pack({ 'p', 0, 0, 0, { { 'tokens', 'some' } } }) save()",
            &["state: the quota of \"tokens\" is \"some\", and not a number"],
        ),
    ];
    check("verify-others", "", cases).await;
}

#[tokio::test]
async fn what_is_odd_but_possible_is_no_contradiction() {
    let failed = "1: note: a script failed after it wrote this memory and before it wrote the state";
    let half_done = "
        local undo = write_undo({ sequence = led.memory.sequence + 1, count = 2 })
          .. write_undo_field({ field = live, was = 1, before = redis.call('HGET', memory, live) })
          .. write_undo_field({ field = string.rep('x', 16), was = 0, before = '' })
        redis.call('HSET', memory, 'u', undo, string.rep('x', 16), redis.call('HGET', memory, live))
        edit(live, function(it) it.state = 2 end) redis.call('DEL', hold)";
    let cases: &[(&str, &[&str])] = &[
        // A script that commits has failed, and what it wrote does not count.
        (half_done, &[failed]),
        (
            "redis.call('SET', hold_prefix .. 'AAAAAAAAAAAAAAAAAAAAAA', 'x', 'PX', 900000)",
            &["h: note: shows a reservation that nothing is known of, and expires at "],
        ),
        // Nobody gives back what a window holds that is kept no longer.
        (
            "local it = own_schedule('cycle', 2) it.start, it.ends, it.kept = 1, 2, 3 counter('cycle', 2).held = 9
            for _, field in ipairs(redis.call('HKEYS', memory)) do
              if #field == 16 and get(field).claim[1].balance == 1 then redis.call('HDEL', memory, field) end
            end
            save()",
            &[],
        ),
        // The key ends by Redis's clock, the reservation by the user's, which is ahead.
        ("redis.call('DEL', hold) led.head.time = now + 60000 save()", &["state: note: the user's clock is "]),
        // The clock is ahead, and what was due has been given back.
        (
            "led.head.time, led.head.live, led.deadlines = now + 7200000, 0, {}
            counter('tokens').held, counter('calls').held = 0, 0 save()",
            &["state: note: the user's clock is "],
        ),
        // All live holds lapsed when a wrong clock was set right; the keys that it wrote stay.
        (
            "led.head.live, led.deadlines, led.memory.epoch, led.memory.corrected = 0, {}, 1, led.head.time
            counter('tokens').held, counter('calls').held = 0, 0 save()",
            &["h: note: shows a reservation that lapsed when Redis's clock, which had been ahead, was set right"],
        ),
        // DeleteUser was cut short: these keys expire alone, if they do.
        ("redis.call('DEL', unpack(KEYS))", &["h: note: shows a reservation that nothing is known of, and expires at"]),
        (
            "redis.call('DEL', unpack(KEYS)) redis.call('PERSIST', hold)",
            &["h: shows a reservation that nothing is known of, and never expires"],
        ),
    ];
    check("verify-odd", "", cases).await;
}
