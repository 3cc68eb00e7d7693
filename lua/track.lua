#!lua
-- track: counts what has happened, whatever the limits say; with `enforce`, only if it fits.
--
-- KEYS: state, memory 1, memory 2
-- ARGV: track_call
--       the plan's message
-- Answers: answer, stale, fault
-- uses: base formats each plan match price ledger windows memory deadlines save record answer begin subscription in_force decide tracking crossed

local function track(k, a)
  local asked = read_track_call(ARGV[a + 1])
  local led, failed = begin(k)
  if not led then return failed end

  local record, reason = recall(led, asked, TRACKED)
  if record == false then return fault(reason) end
  if record then return tracked(led, record, true) end

  local plan, other, has_changed = plan_in_force(led, asked, ARGV[a + 2])
  if not plan then return other end

  local claims
  claims, other = assess(led, plan, asked)
  if not claims then return other end
  local is_blocked = asked.enforce == 1 and not claims.all_fit
  if not is_blocked then
    if claims.overflow then return fault('OUT_OF_RANGE', claims.overflow, '', plan.digest) end
  end

  -- All checks are done: from here on, writes.
  if is_blocked then
    local denial = answer_denied({ outcome = LIMIT_REACHED, plan = plan.digest }, claims)
    save_due(led, has_changed)
    return led.used_before and with_befores(led, denial, claims, plan) or denial
  end
  for i = 1, #claims do
    local claim = claims[i]
    claim.window.used = claim.window.used + claim.charge
  end
  write_tracked(led, asked, plan.digest, claims, asked.replay_ms)
  local done = answer_assessed({ suffix = asked.suffix, plan = plan.digest }, claims)
  return led.used_before and with_befores(led, done, claims, plan, charges_of(claims)) or done
end

return each(track, 3, 2)
