#!lua flags=allow-oom
-- commit: counts what was really used, in the reservation's groups and windows.
--
-- KEYS: state, memory 1, memory 2, hold
-- ARGV: commit_call
--       the message of the reservation's plan, or empty
-- Answers: answer, fault, committed_otherwise
-- uses: base formats each plan match price ledger windows memory deadlines save record answer begin life settle subscription crossed

local function charges_as_reserved(record)
  local charges, has_life = {}, record.format == LIVING_FORMAT
  for i = 1, #record.claims do charges[i] = has_life and record.claims[i].due or record.claims[i].charge end
  return charges
end

-- The fault of a group whose counter would pass its maximum, or nil.
local function beyond_maximum(led, record, groups, charges, late)
  local claims = record.claims
  for i = 1, #claims do
    local claim = claims[i]
    local most = groups and groups[claim.place].max_units or MAX
    local window = window_of(led, claim)
    if window then most = most - window.used - (window.held - (late and 0 or claim.charge)) end
    if charges[i] > most then return fault('OUT_OF_RANGE', claim.place, '', record.plan) end
  end
end

-- The smallest charge that the measure can add: that of the smallest number on the wire. Nil if it cannot grow.
local function smallest_growth(measure)
  if measure == EVENTS then return nil end
  local smallest
  for i = 1, #measure, 4 do
    -- A weight of 0 has no limbs.
    local limbs = measure[i + 2]
    if measure[i + 1] > 0 or limbs and limbs[1] then
      local charge = price({ 1, measure[i + 1], limbs, false }, { { 0, 1 } })
      if not smallest or charge < smallest then smallest = charge end
    end
  end
  return smallest
end

-- Whether some hard group has no room for more, neither in what the reservation holds nor in its window.
local function is_exhausted(led, record, plan, measures, state)
  for i, claim in ipairs(record.claims) do
    local group, window = plan.groups[claim.place], window_of(led, claim)
    local quota = claim.own_quota or group.quota
    local more = smallest_growth(measures[i])
    if more and window and group.hard and quota >= 0 then
      if more > held_so_far(record, claim, state) and more > quota - window.used - window.held then return true end
    end
  end
  return false
end

-- Counts by how much the total has grown. The reservation goes on.
local function commit_part(led, k, settle, record, plan, charges, measures)
  local state, claims = state_of(record, led.time), record.claims
  if state == STATE_COMMITTED then return committed_otherwise(record) end
  local late, overage, has_grown, totals = state ~= STATE_HELD, false, false, {}
  for i, claim in ipairs(claims) do
    local so_far = record.format == LIVING_FORMAT and claim.committed or 0
    overage = overage or charges[i] > claim.charge
    has_grown = has_grown or charges[i] > so_far
    totals[i] = max(charges[i], so_far)
  end
  local counted = {}
  for i, claim in ipairs(claims) do counted[i] = max(totals[i], counted_so_far(record, claim, state)) end
  local failed = has_grown and beyond_most(led, record, plan.groups, counted, state, not late)
  if failed then return failed end

  -- All checks are done: from here on, writes.
  local deadline = record.deadline
  if not late and settle.ttl_ms > 0 then deadline = later_deadline(led, record, settle.ttl_ms) end
  local writes = has_grown or deadline > record.deadline
  if writes then
    if has_grown then begin_life(record) end
    if record.format == LIVING_FORMAT then lock_counted(led, record, state) end
    local before = not late and parts_now(record)
    if has_grown then
      for i, claim in ipairs(claims) do
        recount(led, claim, counted_so_far(record, claim, state), counted[i])
        claim.committed, claim.due = totals[i], charges[i]
      end
      -- What was refunded so far is known by its charges.
      record.settled = ''
      record.named = quantities_of(named_with(record, values_of(settle.quantities)))
    end
    if late then
      record.forget = max(record.forget, led.time + settle.replay_ms)
    else
      hold_anew(led, record, before, deadline)
    end
    write_living(led, settle, record, KEYS[k + HOLD_KEY], not late)
  end
  local named = {
    state = state, overage = overage, late = late, plan = record.plan, deadline = record.deadline,
    exhausted = is_exhausted(led, record, plan, measures, state),
  }
  local answered = answer_remembered(led, named, claims, charges)
  if writes and led.used_before then return with_befores(led, answered, claims, plan) end
  return answered
end

local function commit(k, a)
  local settle = read_commit_call(ARGV[a + 1])
  local led, failed = begin(k)
  if not led then return failed end
  local now = led.time
  local record, reason = load_reservation(led, settle)
  if not record then return fault(reason) end
  local claims, plan = record.claims, plan_of(settle.plan, ARGV[a + 2])

  local charges
  if settle.actual == 0 then
    charges = charges_as_reserved(record)
  elseif plan then
    local measures
    charges, measures = price_anew(record, plan, record.what, values_of(settle.quantities))
    if not charges then return measures end
    if settle.partial == 1 then return commit_part(led, k, settle, record, plan, charges, measures) end
    if was_changed(record) then charges = by_claims(record, charges_by_place(plan, record.what, charges)) end
  else
    return fault('PLAN_NOT_ARCHIVED')
  end

  local state = state_of(record, now)
  if state == STATE_COMMITTED then return committed_before(led, record, charges) end
  -- TRUTH: at the deadline, and after it, the hold is gone; what was used counts all the same.
  local late, has_life = state ~= STATE_HELD, record.format == LIVING_FORMAT
  if has_life then
    failed = beyond_most(led, record, plan and plan.groups, charges, state, false)
  else
    failed = beyond_maximum(led, record, plan and plan.groups, charges, late)
  end
  if failed then return failed end

  -- All checks are done: from here on, writes.
  local bucket_field, bucket, is_short
  if not late then bucket_field, bucket = end_hold(led, record) end
  if has_life then is_short = count_finally(led, record, charges, state) end
  for i = 1, #claims do
    local claim = claims[i]
    if not has_life then
      local window = window_of(led, claim)
      if window then window.used = window.used + charges[i] end
    end
    claim.committed = charges[i]
  end
  record.settled = settle.actual == 1 and settle.quantities or ''
  end_committed(led, k, settle, record, late, bucket_field, bucket)
  local named = { state = STATE_COMMITTED, overage = exceeds(record, charges), late = late, plan = record.plan }
  local answered = answer_remembered(led, named, claims, charges, is_short and 'unapplied')
  if led.used_before then return with_befores(led, answered, claims, plan, charges) end
  return answered
end

return each(commit, 4, 2)
