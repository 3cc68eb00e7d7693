#!lua flags=no-writes
-- can_use: what reserve would answer now, as if everything due had been written.
--
-- KEYS: state, memory 1, memory 2
-- ARGV: can_use_call
--       the plan's message
-- Answers: answer, stale, fault; the answer has no reservation
-- uses: base formats each plan match price ledger windows memory deadlines record answer begin subscription in_force decide

-- The charge of the smallest event that the first of the measures takes: what is missing is the smallest number on the wire. Nil where the event
-- has a number for some measure, or something else is wrong than a name that is missing.
local function smallest_price(measures, values, wrong)
  if type_of(wrong) ~= 'number' then return nil end
  -- A measured name whose metadata value is no number counts as one that the event has.
  for i = 1, #measures do
    if measures_any(measures[i], values) then return nil end
  end
  local measure, smallest = measures[1], {}
  for i = 1, #measure, 4 do smallest[measure[i]] = measure[i + 3] or { 0, 1 } end
  local wholes = measure.parts or {}
  -- The parts of a whole may have parts of their own: these come first here.
  for i = #wholes, 1, -1 do
    local terms, sum = wholes[i], 0
    for j = 2, #terms do sum = plus(sum, smallest[measure[terms[j]]]) end
    local whole = measure[terms[1]]
    if not minus(smallest[whole], sum) then smallest[whole] = sum end
  end
  return (price(measure, smallest))
end

local function can_use(k, a)
  local asked = read_can_use_call(ARGV[a + 1])
  local led, failed = begin(k)
  if not led then return failed end

  local plan, other = plan_in_force(led, asked, ARGV[a + 2])
  if not plan then return other end

  local claims
  claims, other = assess(led, plan, asked, nil, asked.smallest == 1 and smallest_price)
  if not claims then return other end
  if claims.all_fit then
    if claims.overflow then return fault('OUT_OF_RANGE', claims.overflow, '', plan.digest) end
    if led.live >= MOST_HOLDS then return fault('TOO_MANY_HOLDS') end
    return answer_assessed({ plan = plan.digest }, claims)
  end
  return answer_denied({ outcome = LIMIT_REACHED, plan = plan.digest, retry_after_ms = retry_after(led, claims) }, claims)
end

return each(can_use, 3, 2)
