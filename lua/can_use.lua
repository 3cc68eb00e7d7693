#!lua flags=no-writes
-- can_use: what reserve would answer now, as if everything due had been written.
--
-- KEYS: state, memory 1, memory 2
-- ARGV: can_use_call
--       the plan's message
-- Answers: answer, stale, fault; the answer has no reservation
-- uses: base formats each plan match price ledger windows memory deadlines record answer begin subscription in_force decide

local function can_use(k, a)
  local asked = read_can_use_call(ARGV[a + 1])
  local led, failed = begin(k)
  if not led then return failed end

  local plan, other = plan_in_force(led, asked, ARGV[a + 2])
  if not plan then return other end

  local claims
  claims, other = assess(led, plan, asked)
  if not claims then return other end
  if claims.all_fit then
    if claims.overflow then return fault('OUT_OF_RANGE', claims.overflow, '', plan.digest) end
    if led.live >= MOST_HOLDS then return fault('TOO_MANY_HOLDS') end
    return answer_assessed({ plan = plan.digest }, claims)
  end
  return answer_denied({ outcome = LIMIT_REACHED, plan = plan.digest, retry_after_ms = retry_after(led, claims) }, claims)
end

return each(can_use, 3, 2)
