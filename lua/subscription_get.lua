#!lua flags=no-writes
-- subscription_get: reads a subscription.
--
-- KEYS: subscription, ledger, memory, agenda
-- Answers: subscription { now, subscription or '', the plan that the ledger was last used with or '' }
-- uses: base ledger record agenda subscription

local stored = call('MGET', KEYS[1], KEYS[2])
local led = open_ledger(KEYS[2], stored[2])
local plan = stored[1] and led.plan or last_plan(led, KEYS[3], KEYS[4])
return pack({ subscription = { led.time, stored[1] or '', plan } })
