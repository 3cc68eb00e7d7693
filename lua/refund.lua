#!lua
-- refund: gives back what an event would have cost, routed by the rules of that event, in the current windows.
--
-- KEYS: state, memory 1, memory 2
-- ARGV: basis, once, event (by the name of the refunded event), track_call
--       the plan's message
-- Answers: as track
-- uses: base formats each plan match price ledger windows memory deadlines save record answer begin subscription decide tracking

local function refund(k, a)
  local packed = ARGV[a + 1]
  local basis, at = read_basis(packed)
  local once, event, terms
  once, at = read_once(packed, at)
  event, at = read_event(packed, at)
  terms = read_track_call(packed, at)
  local led, failed = begin(k)
  if not led then return failed end

  local record = recall(led, once, true)
  if record == false then return fault('REQUEST_ID_REUSED') end
  if record then return tracked(led, record, true) end

  local plan = basis.in_force == IN_FORCE and plan_of(basis.digest, ARGV[a + 2]) or nil
  local frames = plan and open_frames(basis.frames)
  if not check_subscription(led, basis, plan, frames) then return stale(led) end
  if basis.in_force == UNKNOWN_PLAN then return fault('PLAN_UNKNOWN') end
  if not plan then return answer({ outcome = NO_SUBSCRIPTION }, {}) end

  local claims
  claims, failed = assess(led, plan, frames, event, true)
  if not claims then return failed or stale(led) end
  if #claims == 0 then return answer({ outcome = UNMATCHED, plan = plan.digest }, {}) end

  -- All checks are done: from here on, writes.
  for i = 1, #claims do
    local claim = claims[i]
    -- What happened is not undone: a group that counts events keeps its count.
    if claim.measure == EVENTS then claim.charge = 0 end
    local applied = min(claim.charge, claim.window.used)
    claim.window.used = claim.window.used - applied
    claim.unapplied = claim.charge - applied
  end
  return tracked(led, write_tracked(led, once, plan.digest, recorded(claims, frames), terms.replay_ms, {}, 0), false)
end

return each(refund, 3, 2)
