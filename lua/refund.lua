#!lua
-- refund: gives back what an event would have cost, routed by the rules of that event, in the current windows.
--
-- KEYS: subscription, ledger, memory, agenda
-- ARGV: call { revision, ended, request id, digest, event id, refunded event's name, replay window ms, metadata, event name, quantity,
--       quantities, numeric metadata }; compiled plan, 'none' or 'unknown'
-- Answers: as track
-- uses: base price match ledger record agenda report subscription once decide tracking

local function refund(k, a)
  local keys = { subscription = KEYS[k + 1], ledger = KEYS[k + 2], memory = KEYS[k + 3], agenda = KEYS[k + 4] }
  local at, revision, ended, request_id, digest, event_id, refunded, replay_ms = unpack_some(ARGV[a + 1], 7, 1)
  local _, metadata, _, quantity, quantities, numeric = unpack_some(ARGV[a + 1], 5, at)
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

  local matched, failed = assess(led, plan, refunded, metadata, { quantity, quantities, numeric }, true)
  if not matched then return failed or stale(led, redis_time, stored[1]) end
  if #matched == 0 then return TRACKED .. pack('unmatched', '', '', false) end

  -- All checks are done: from here on, writes.
  local claims = {}
  for i = 1, #matched do
    local group, w, charge, _, measure = unpack(matched[i])
    -- What happened is not undone: a group that counts events keeps its count.
    if measure == EVENTS then charge = 0 end
    local applied = min(charge, w[USED])
    w[USED] = w[USED] - applied
    claims[i] = tracked_claim(group, w, charge, charge - applied)
  end
  write_subscription(keys.subscription, changed_subscription)
  write_tracked(keys, led, lapsed, request_id, digest, event_id, led.time + replay_ms, claims)
  return tracked(led, event_id, claims, false)
end

return each(refund, 4, 2)
