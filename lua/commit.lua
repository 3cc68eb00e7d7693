#!lua flags=allow-oom
-- commit: counts what was really used, in the reservation's groups and windows.
--
-- KEYS: state, memory 1, memory 2, hold
-- ARGV: commit_call
--       the message of the reservation's plan, or empty
-- Answers: answer, fault, committed_otherwise
-- uses: base formats each plan match price ledger windows memory deadlines save record answer begin

-- The charges by the rules of the reservation's plan. What the actual values do not name stays as reserved, in a second commit as in the
-- first: the record keeps what was reserved. Only parts of what they name do not. Else nil and a fault.
local function price_anew(record, plan, quantities)
  local actual, values = values_of(quantities), values_of(record.quantities)
  replace_values(values, actual)
  local charges, by_quantities, names_one = {}, nil, false
  local matches = matches_of(plan, record.what)
  for i = 1, #matches do
    local match = matches[i]
    local group = match.group
    local charge, measure = first_price(match.measures, values, nil, actual)
    if not charge then return nil, unpriced(plan, group, measure) end
    if measure ~= EVENTS then
      by_quantities = by_quantities or { group = group, measure = measure }
      names_one = names_one or measures_any(measure, actual)
    end
    charges[i] = charge
  end
  -- TRUTH: what measures nothing says nothing of what was used.
  if by_quantities and not names_one then
    return nil, fault('NOTHING_MEASURED', by_quantities.group.place, names_of(by_quantities.measure, plan), plan.digest)
  end
  return charges
end

local function charges_as_reserved(record)
  local charges = {}
  for i = 1, #record.claims do charges[i] = record.claims[i].charge end
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
    charges, failed = price_anew(record, plan, settle.quantities)
    if not charges then return failed end
  else
    return fault('PLAN_NOT_ARCHIVED')
  end
  local overage = false
  for i = 1, #claims do overage = overage or charges[i] > claims[i].charge end

  local state = state_of(record, now)
  if state == STATE_COMMITTED then
    for i = 1, #claims do
      if claims[i].committed ~= charges[i] then return committed_otherwise(record) end
    end
    local was_late = record.state == COMMITTED_LATE
    local named = { state = state, replayed = true, overage = overage, late = was_late, plan = record.plan }
    return answer_remembered(led, named, claims, charges)
  end
  -- TRUTH: at the deadline, and after it, the hold is gone; what was used counts all the same.
  local late = state ~= STATE_HELD
  failed = beyond_maximum(led, record, plan and plan.groups, charges, late)
  if failed then return failed end

  -- All checks are done: from here on, writes.
  local bucket_field, bucket
  if not late then bucket_field, bucket = end_hold(led, record) end
  for i = 1, #claims do
    local claim = claims[i]
    local window = window_of(led, claim)
    if window then window.used = window.used + charges[i] end
    claim.committed = charges[i]
  end
  record.state = late and COMMITTED_LATE or COMMITTED
  record.settled = settle.actual == 1 and settle.quantities or ''
  record.forget = max(record.forget, now + settle.replay_ms)
  note_settlement(led, record)
  write_fields(led, record.forget, settle.field, record_bytes(record), bucket_field, bucket)
  call('DEL', KEYS[k + HOLD_KEY])
  write_corrected(led)
  save_ledger(led)
  return answer_remembered(led, { state = STATE_COMMITTED, overage = overage, late = late, plan = record.plan }, claims, charges)
end

return each(commit, 4, 2)
