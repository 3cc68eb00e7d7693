#!lua
-- track: counts what has happened, whatever the limits say; with `enforce`, only if it fits.
--
-- KEYS: state, memory 1, memory 2
-- ARGV: basis, once, event, track_call
--       the plan's message
-- Answers: answer, stale, fault
-- uses: base formats each plan match price ledger windows memory deadlines save record answer begin subscription decide tracking

-- Nothing is counted. Only what has lapsed or ended meanwhile is written.
local function block(led, claims, plan, has_changed)
  local rows = denied_rows(claims)
  if led.lapsed > 0 or has_changed then
    undo_windows(led)
    write_corrected(led)
    save_ledger(led)
  end
  return answer({ outcome = LIMIT_REACHED, plan = plan.digest }, rows)
end

local function track(k, a)
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
  local is_current, has_changed = check_subscription(led, basis, plan, frames)
  if not is_current then return stale(led) end
  if basis.in_force == UNKNOWN_PLAN then return fault('PLAN_UNKNOWN') end
  if not plan then return answer({ outcome = NO_SUBSCRIPTION }, {}) end

  local claims
  claims, failed = assess(led, plan, frames, event)
  if not claims then return failed or stale(led) end
  if #claims == 0 then return answer({ outcome = UNMATCHED, plan = plan.digest }, {}) end
  local is_blocked = terms.enforce == 1 and not all_fit(claims)
  if not is_blocked then
    failed = overflow(claims, plan)
    if failed then return failed end
  end

  -- All checks are done: from here on, writes.
  if is_blocked then return block(led, claims, plan, has_changed) end
  for i = 1, #claims do
    local claim = claims[i]
    claim.window.used = claim.window.used + claim.charge
    claim.unapplied = 0
  end
  write_tracked(led, once, plan.digest, recorded(claims, frames), terms.replay_ms, {}, 0)
  return answer({ suffix = once.suffix, plan = plan.digest }, rows_of(claims))
end

return each(track, 3, 2)
