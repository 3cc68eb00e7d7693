#!lua
-- subscription_put: replaces the stored subscription, if it is still the one that the caller read.
--
-- KEYS: subscription, ledger, memory, agenda
-- ARGV: call { the revision that the caller read or '', the plan that the ledger was last used with or '', for each plan that the
--       user comes to what to apply: 'enter' (its on_plan_change) or 'realign' (windows by another anchor) }; the new subscription;
--       these plans, compiled
-- Answers: stale { now, redis time, subscription }; put { how many clocks were corrected }
-- uses: base ledger record agenda subscription

local keys = { subscription = KEYS[1], ledger = KEYS[2], memory = KEYS[3], agenda = KEYS[4] }
local revision, plan_before, steps = unpack(unpack_message(ARGV[1]))

local stored = call('MGET', keys.subscription, keys.ledger)
local led, redis_time = open_ledger(keys.ledger, stored[2])
local stored_revision = stored[1] and unpack_message(stored[1])[S_REVISION] or ''
local plan_now = stored[1] and led.plan or last_plan(led, keys.memory, keys.agenda)
if stored_revision ~= revision or plan_now ~= plan_before then return stale(led, redis_time, stored[1]) end

local lapsed
if #steps > 0 then lapsed = give_back_due(led, keys.agenda, keys.memory) end
for i = 1, #steps do
  local plan = unpack_message(ARGV[2 + i])
  local change = steps[i] == 'enter' and plan[P_CHANGE] or 'carry'
  if not enter_plan(led, plan, change) then return stale(led, redis_time, stored[1]) end
end

-- All checks are done: from here on, writes.
call('SET', keys.subscription, ARGV[2])
if #steps > 0 then
  write_lapsed(led, keys.agenda, keys.memory, lapsed)
  tidy_memory(led, keys.agenda, keys.memory, 0)
  save_ledger(led)
end
return pack({ put = { corrected_clocks or 0 } })
