#!lua flags=no-writes
-- subscription_get: reads a subscription.
--
-- KEYS: state, memory 1, memory 2
-- Answers: stale, whatever the subscription is; fault
-- uses: base formats each price ledger windows memory deadlines record answer begin subscription

local led, failed = begin(0)
if not led then return failed end
return stale(led, led.subscribed > 0 and led.plan or last_plan(led))
