-- settle: what a commit charges, and how it ends. Needs base, formats, plan, match, price, ledger, memory, deadlines, save, record, answer, begin,
-- life.

-- The values that partial commits have named, and those of this call in their place.
local function named_with(record, actual)
  if record.format ~= LIVING_FORMAT then return actual end
  local named = values_of(record.named)
  replace_values(named, actual)
  return named
end

-- The charges of the event `what` by the rules of the reservation's plan, one for each group that it matches, and the measures that apply. Else nil
-- and a fault. What neither partial commits nor the actual values name stays as reserved, in a second commit as in the first: the record keeps what
-- was reserved. Only parts of what they name do not. With `may_name_nothing`, `actual` need not name a quantity.
local function price_anew(record, plan, what, actual, may_name_nothing)
  local reserved, named = values_of(record.quantities), named_with(record, actual)
  local added = record.format == LIVING_FORMAT and record.added ~= '' and values_of(record.added)
  if not added then replace_values(reserved, named) end
  local charges, applied, by_quantities, names_one = {}, {}, nil, false
  local matches = matches_of(plan, what)
  for i = 1, #matches do
    local match = matches[i]
    local group = match.group
    local charge, measure
    if added then
      charge, measure = first_price_of_life(match.measures, reserved, added, named)
    else
      charge, measure = first_price(match.measures, reserved, nil, named)
    end
    if not charge then return nil, unpriced(plan, group, measure) end
    if measure ~= EVENTS then
      by_quantities = by_quantities or { group = group, measure = measure }
      names_one = names_one or measures_any(measure, actual)
    end
    charges[i], applied[i] = charge, measure
  end
  -- TRUTH: what measures nothing says nothing of what was used.
  if by_quantities and not names_one and not may_name_nothing then
    return nil, fault('NOTHING_MEASURED', by_quantities.group.place, names_of(by_quantities.measure, plan), plan.digest)
  end
  return charges, applied
end

-- The charges by the places of the groups that the event matches.
local function charges_by_place(plan, what, charges)
  local of_places = {}
  for i, match in ipairs(matches_of(plan, what)) do of_places[match.group.place] = charges[i] end
  return of_places
end

-- The charge of each claim: 0 where the event does not match its group.
local function by_claims(record, of_places)
  local charges = {}
  for i, claim in ipairs(record.claims) do charges[i] = of_places[claim.place] or 0 end
  return charges
end

-- Whether some group is charged more than was reserved in it.
local function exceeds(record, charges)
  local claims = record.claims
  for i = 1, #claims do
    if charges[i] > claims[i].charge then return true end
  end
  return false
end

-- ONCE: the answer to a commit of what was committed before.
local function committed_before(led, record, charges)
  local claims = record.claims
  for i = 1, #claims do
    if claims[i].committed ~= charges[i] then return committed_otherwise(record) end
  end
  local named = {
    state = STATE_COMMITTED, replayed = true, overage = exceeds(record, charges), late = record.state == COMMITTED_LATE, plan = record.plan,
  }
  return answer_remembered(led, named, claims, charges)
end

-- Writes that the reservation is committed, and all else of the script.
local function end_committed(led, k, settle, record, late, bucket_field, bucket)
  record.state = late and COMMITTED_LATE or COMMITTED
  record.forget = max(record.forget, led.time + settle.replay_ms)
  note_settlement(led, record)
  write_fields(led, record.forget, settle.field, record_bytes(record), bucket_field, bucket)
  call('DEL', KEYS[k + HOLD_KEY])
  write_corrected(led)
  save_ledger(led)
end
