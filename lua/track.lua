#!lua
-- track: counts what has happened, whatever the limits say; with `enforce`, only if it fits.
--
-- KEYS: state, memory 1, memory 2
-- ARGV: track_call
--       the plan's message
-- Answers: answer, stale, fault
-- uses: base formats each plan match price ledger windows memory deadlines save record answer begin subscription decide tracking

-- Nothing is counted. Only what has lapsed or ended meanwhile is written.
local function block(led, claims, plan, has_changed)
  local denial = answer_denied({ outcome = LIMIT_REACHED, plan = plan.digest }, claims)
  if led.lapsed > 0 or has_changed then
    undo_windows(led)
    write_corrected(led)
    save_ledger(led)
  end
  return denial
end

local function track(k, a)
  local asked = read_track_call(ARGV[a + 1])
  local led, failed = begin(k)
  if not led then return failed end

  local record, reason = recall(led, asked, true)
  if record == false then return fault(reason) end
  if record then return tracked(led, record, true) end

  local plan = asked.in_force == IN_FORCE and plan_of(asked.plan, ARGV[a + 2]) or nil
  local is_current, has_changed = check_subscription(led, asked, plan)
  if not is_current then return stale(led) end
  if asked.in_force == UNKNOWN_PLAN then return fault('PLAN_UNKNOWN') end
  if not plan then return answer({ outcome = NO_SUBSCRIPTION }, 0) end

  local claims
  claims, failed = assess(led, plan, asked)
  if not claims then return failed or stale(led) end
  if #claims == 0 then return answer({ outcome = UNMATCHED, plan = plan.digest }, 0) end
  local is_blocked = asked.enforce == 1 and not claims.all_fit
  if not is_blocked then
    if claims.overflow then return fault('OUT_OF_RANGE', claims.overflow, '', plan.digest) end
  end

  -- All checks are done: from here on, writes.
  if is_blocked then return block(led, claims, plan, has_changed) end
  for i = 1, #claims do
    local claim = claims[i]
    claim.window.used = claim.window.used + claim.charge
  end
  write_tracked(led, asked, plan.digest, claims, asked.replay_ms)
  return answer_assessed({ suffix = asked.suffix, plan = plan.digest }, claims)
end

return each(track, 3, 2)
