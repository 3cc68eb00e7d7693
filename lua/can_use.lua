#!lua flags=no-writes
-- can_use: what reserve would answer now, as if everything due had been written.
--
-- KEYS: state, memory 1, memory 2
-- ARGV: basis, event
--       the plan's message
-- Answers: answer, stale, fault; the answer has no reservation
-- uses: base formats each plan match price ledger windows memory deadlines record answer begin subscription decide

local function can_use(k, a)
  local packed = ARGV[a + 1]
  local basis, at = read_basis(packed)
  local event = read_event(packed, at)
  local led, failed = begin(k)
  if not led then return failed end

  local plan = basis.in_force == IN_FORCE and plan_of(basis.digest, ARGV[a + 2]) or nil
  local frames = plan and open_frames(basis.frames)
  if not check_subscription(led, basis, plan, frames) then return stale(led) end
  if basis.in_force == UNKNOWN_PLAN then return fault('PLAN_UNKNOWN') end
  if not plan then return answer({ outcome = NO_SUBSCRIPTION }, {}) end

  local claims
  claims, failed = assess(led, plan, frames, event)
  if not claims then return failed or stale(led) end
  if #claims == 0 then return answer({ outcome = UNMATCHED, plan = plan.digest }, {}) end
  if all_fit(claims) then
    failed = overflow(claims, plan)
    if failed then return failed end
    if led.live >= MOST_HOLDS then return fault('TOO_MANY_HOLDS') end
    return answer({ plan = plan.digest }, rows_of(claims))
  end
  local wait_ms = retry_after(led, claims)
  return answer({ outcome = LIMIT_REACHED, plan = plan.digest, retry_after_ms = wait_ms }, denied_rows(claims))
end

return each(can_use, 3, 2)
