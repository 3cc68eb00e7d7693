#!lua flags=no-writes
-- can_use: what reserve would answer now, as if everything due had been written.
--
-- KEYS: subscription, ledger, memory, agenda
-- ARGV: call { revision, ended, metadata, event name, quantity, quantities, numeric metadata }; compiled plan, 'none' or 'unknown'
-- Answers: as reserve; the decision has no nonce, state and deadline
-- uses: base price match ledger record agenda report subscription decide

local function can_use(k, a)
  local subscription_key, ledger_key, memory_key, agenda_key = unpack(KEYS, k + 1, k + 4)
  local _, revision, ended, metadata, name, quantity, quantities, numeric = unpack_some(ARGV[a + 1], 7, 1)
  local plan = plan_of(ARGV[a + 2])

  local stored = call('MGET', subscription_key, ledger_key)
  local led, redis_time = open_ledger(ledger_key, stored[2])
  give_back_due(led, agenda_key, memory_key)

  if not check_subscription(led, stored[1], revision, ended, plan) then return stale(led, redis_time, stored[1]) end
  if ARGV[a + 2] == 'unknown' then return fault('PLAN_UNKNOWN') end
  if not plan then return DECISION .. pack('no_subscription', '', '', 0, '', -1, false) end

  local matched, failed = assess(led, plan, name, metadata, { quantity, quantities, numeric })
  if not matched then return failed or stale(led, redis_time, stored[1]) end
  if #matched == 0 then return DECISION .. pack('unmatched_event', '', '', 0, '', -1, false) end

  if all_fit(matched) then
    local group = overflow(matched)
    if group then return fault('OUT_OF_RANGE', group) end
    if led.live >= 10000 then return fault('TOO_MANY_HOLDS') end
    return DECISION .. pack('allowed', '', '', 0, matched_rows(matched), -1, false)
  end
  return DECISION .. pack('limit_reached', '', '', 0, denied_rows(matched), retry_after(led, agenda_key, matched), false)
end

return each(can_use, 4, 2)
