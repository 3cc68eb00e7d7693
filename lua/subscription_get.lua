#!lua flags=no-writes
-- subscription_get: the stored subscription, the user's time, and the plan that the ledger was last used with.
--
-- KEYS: subscription, ledger
-- Answers: subscription { now, subscription or '', plan or '' }
-- uses: base ledger

local stored = call('MGET', KEYS[1], KEYS[2])
local led = open_ledger(KEYS[2], stored[2])
return pack({ subscription = { led.time, stored[1] or '', led.plan } })
