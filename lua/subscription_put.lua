#!lua
-- subscription_put: replaces the stored subscription, if it is still the one that the caller read.
--
-- KEYS: subscription, ledger, memory, agenda
-- ARGV: call { the revision that the caller read or '', the plan that the ledger was last used with or '', what to apply:
--       'enter' (the plan's on_plan_change), 'realign' (windows by another anchor) or 'nothing' }; the new subscription;
--       its compiled plan or 'none'
-- Answers: stale { now, redis time, subscription }; put { whether it was written }
-- uses: base ledger record agenda subscription

local keys = { subscription = KEYS[1], ledger = KEYS[2], memory = KEYS[3], agenda = KEYS[4] }
local revision, plan_before, apply = unpack(unpack_message(ARGV[1]))

local stored = call('MGET', keys.subscription, keys.ledger)
local led, redis_time = open_ledger(stored[2])
local stored_revision = stored[1] and unpack_message(stored[1])[S_REVISION] or ''
if stored_revision ~= revision or led.plan ~= plan_before then return stale(led, redis_time, stored[1]) end

local lapsed
if apply ~= 'nothing' then
  lapsed = give_back_due(led, keys.agenda, keys.memory)
  local plan = unpack_message(ARGV[3])
  local change = apply == 'enter' and plan[P_CHANGE] or 'carry'
  if not enter_plan(led, plan, change) then return stale(led, redis_time, stored[1]) end
end

-- All checks are done: from here on, writes.
call('SET', keys.subscription, ARGV[2])
if apply ~= 'nothing' then
  write_lapsed(keys.agenda, lapsed)
  tidy_memory(led, keys.agenda, keys.memory, 0)
  save_ledger(keys.ledger, led)
end
return pack({ put = { true } })
