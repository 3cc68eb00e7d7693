#!lua
-- refund: gives back what an event would have cost, routed by the rules of that event, in the current windows.
--
-- KEYS: state, memory 1, memory 2
-- ARGV: track_call, whose event has the name of the refunded one
--       the plan's message
-- Answers: as track
-- uses: base formats each plan match price ledger windows memory deadlines save record answer begin subscription in_force decide tracking crossed

local function refund(k, a)
  local asked = read_track_call(ARGV[a + 1])
  local led, failed = begin(k)
  if not led then return failed end

  local record, reason = recall(led, asked, TRACKED)
  if record == false then return fault(reason) end
  if record then return tracked(led, record, true) end

  local plan, other = plan_in_force(led, asked, ARGV[a + 2])
  if not plan then return other end

  local claims
  claims, other = assess(led, plan, asked, true)
  if not claims then return other end

  -- All checks are done: from here on, writes.
  for i = 1, #claims do
    local claim = claims[i]
    local applied = min(claim.charge, claim.window.used)
    claim.window.used = claim.window.used - applied
    -- What could not be applied.
    claim.committed = claim.charge - applied
  end
  local done = tracked(led, write_tracked(led, asked, plan.digest, claims, asked.replay_ms), false)
  return led.used_before and with_befores(led, done, claims, plan) or done
end

return each(refund, 3, 2)
