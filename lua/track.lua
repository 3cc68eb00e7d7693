#!lua
-- track: counts what has happened, whatever the limits say; with `enforce`, only if it fits.
--
-- KEYS: subscription, ledger, memory, agenda
-- ARGV: call { revision, ended, request id, digest, event id, enforce, replay window ms, metadata, event name, quantity, quantities,
--       numeric metadata }; compiled plan, 'none' or 'unknown'
-- Answers: stale { now, redis time, subscription }; fault { reason, group, name };
--          tracked { outcome, event id, rows, replayed }
-- uses: base price match ledger record agenda report subscription once decide tracking

local function track(k, a)
  local keys = { subscription = KEYS[k + 1], ledger = KEYS[k + 2], memory = KEYS[k + 3], agenda = KEYS[k + 4] }
  local at, revision, ended, request_id, digest, event_id, enforce, replay_ms = unpack_some(ARGV[a + 1], 7, 1)
  local _, metadata, name, quantity, quantities, numeric = unpack_some(ARGV[a + 1], 5, at)
  local plan = plan_of(ARGV[a + 2])

  local stored = call('MGET', keys.subscription, keys.ledger)
  local led, redis_time = open_ledger(keys.ledger, stored[2])
  local lapsed = give_back_due(led, keys.agenda, keys.memory)

  local known, remembered = recall(led, keys.memory, request_id, 'track', digest)
  if known == 'reused' then return fault('REQUEST_ID_REUSED') end
  if known then return tracked(led, known, read_claims(remembered, 1), true) end

  local current, changed_subscription = check_subscription(led, stored[1], revision, ended, plan)
  if not current then return stale(led, redis_time, stored[1]) end
  if ARGV[a + 2] == 'unknown' then return fault('PLAN_UNKNOWN') end
  if not plan then return TRACKED .. pack('no_subscription', '', '', false) end

  local matched, failed = assess(led, plan, name, metadata, { quantity, quantities, numeric })
  if not matched then return failed or stale(led, redis_time, stored[1]) end
  if #matched == 0 then return TRACKED .. pack('unmatched', '', '', false) end

  local blocked = enforce and not all_fit(matched)
  if not blocked then
    local group = overflow(matched)
    if group then return fault('OUT_OF_RANGE', group) end
  end

  -- All checks are done: from here on, writes.
  write_subscription(keys.subscription, changed_subscription)
  if blocked then
    local rows = denied_rows(matched)
    if lapsed or changed_subscription then
      undo_windows(led)
      write_lapsed(led, keys.agenda, keys.memory, lapsed)
      save_ledger(led)
    end
    return TRACKED .. pack('blocked', '', rows, false)
  end

  local claims = {}
  for i = 1, #matched do
    local group, w, charge = unpack(matched[i])
    w[USED] = w[USED] + charge
    claims[i] = tracked_claim(group, w, charge, 0)
  end
  write_tracked(keys, led, lapsed, request_id, digest, event_id, led.time + replay_ms, claims)
  return TRACKED .. pack('matched', event_id, matched_rows(matched), false)
end

return each(track, 4, 2)
