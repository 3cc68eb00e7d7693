#!lua
-- subscription_put: replaces the stored subscription, if it is still the one that the caller read.
--
-- KEYS: state, memory 1, memory 2
-- ARGV: [the revision that the caller read or '', the plan that subscription_get answered, the new revision, its end or 0, the plan that is in
--       force from now on or '', whether the subscription has ended and that is the default plan, for each plan that the owner comes to what
--       to apply: 'enter' (its on_plan_change) or 'realign' (windows by another anchor)]
--       the new subscription
--       of each of these plans: step
--                               its message
-- Answers: stale, fault; put [how many clocks were corrected]
-- uses: base formats each plan price ledger windows memory deadlines save record answer begin subscription

local read_revision, plan_before, revision, ends, plan_after, has_fallen, steps = unpack(unpack_message(ARGV[1]))
local led, failed = begin(0)
if not led then return failed end
local stored_revision = led.terms and led.terms.revision or ''
local plan_now = led.subscribed > 0 and led.plan or last_plan(led)
if stored_revision ~= read_revision or plan_now ~= plan_before then return stale(led, plan_now) end

unfold(led)
for i = 1, #steps do
  local step, message = ARGV[1 + 2 * i], ARGV[2 + 2 * i]
  -- Plans of which nobody has asked for the digest.
  local plan = plan_of('step ' .. i, message)
  local change = steps[i] == 'enter' and plan.change or 'carry'
  if not enter_plan(led, plan, read_step(step), change) then return stale(led, plan_now) end
end

-- All checks are done: from here on, writes.
local _, after = unpack_struct(SUBSCRIPTION_FORMAT, led.rest)
led.rest = write_subscription({ blob = ARGV[2] }) .. sub(led.rest, after)
led.subscribed, led.terms, led.plan = has_fallen and FALLEN or SUBSCRIBED, { revision = revision, ends = ends }, plan_after
write_corrected(led)
save_ledger(led)
return pack({ put = { corrected_clocks or 0 } })
