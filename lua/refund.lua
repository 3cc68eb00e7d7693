#!lua
-- refund: gives back what an event would have cost, routed by the rules of that event, in the current windows.
--
-- KEYS: subscription, ledger, memory, agenda
-- ARGV: call { revision, ended, event, refunded event's name, request id, digest, event id, replay window ms }; compiled
--       plan, 'none' or 'unknown'
-- Answers: as track
-- uses: base price match ledger record agenda report subscription once decide tracking

local function refund(k, a)
  local keys = { subscription = KEYS[k + 1], ledger = KEYS[k + 2], memory = KEYS[k + 3], agenda = KEYS[k + 4] }
  local revision, ended, event, refunded, request_id, digest, event_id, replay_ms = unpack(unpack_message(ARGV[a + 1]))
  local plan = plan_of(ARGV[a + 2])

  local stored = call('MGET', keys.subscription, keys.ledger)
  local led, redis_time = open_ledger(stored[2])
  local lapsed = give_back_due(led, keys.agenda, keys.memory)

  local memory = recall(led, keys.memory, request_id, 'track', digest)
  if memory == 'reused' then return fault('REQUEST_ID_REUSED') end
  if memory then return replay_tracked(led, memory) end

  local current, changed_subscription = check_subscription(led, stored[1], revision, ended, plan)
  if not current then return stale(led, redis_time, stored[1]) end
  if ARGV[a + 2] == 'unknown' then return fault('PLAN_UNKNOWN') end
  if not plan then return pack({ tracked = { 'no_subscription', '', {}, false } }) end

  local matched, failed = assess(led, plan, refunded, event, true)
  if not matched then return failed or stale(led, redis_time, stored[1]) end
  if #matched == 0 then return pack({ tracked = { 'unmatched', '', {}, false } }) end

  -- All checks are done: from here on, writes.
  local claims = {}
  for i = 1, #matched do
    local group, w, charge, _, measure = unpack(matched[i])
    -- What happened is not undone: a group that counts events keeps its count.
    if measure == 1 then charge = 0 end
    local applied = math.min(charge, w[USED])
    w[USED] = w[USED] - applied
    claims[i] = claim_of(group, w, charge, charge - applied)
  end
  write_subscription(keys.subscription, changed_subscription)
  write_tracked(keys, led, lapsed, request_id, digest, event_id, led.time + replay_ms, claims)

  local rows = {}
  for i = 1, #claims do rows[i] = claim_row(led, claims[i], claims[i][C_CHARGE], claims[i][C_UNAPPLIED]) end
  return pack({ tracked = { 'matched', event_id, rows, false } })
end

return each(refund, 4, 2)
