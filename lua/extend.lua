#!lua
-- extend: moves the deadline of a live reservation, and holds more for it if that fits.
--
-- KEYS: state, memory 1, memory 2, hold
-- ARGV: settle_call, once, extend_call
--       the message of the reservation's plan, or empty
-- Answers: answer, fault, committed_otherwise
-- uses: base formats each plan match price ledger windows memory deadlines save record answer begin life decide

-- Stands for a window that is kept no longer: it sets no limit.
local GONE = { number = 0, used = 0, held = 0, start = 0, ends = 0 }

-- Whether a quantity would be larger than a caller can send one, with `added` on top of what is there.
local function is_too_much(there, added)
  local room = minus(MAX, type_of(there) ~= 'boolean' and there or 0)
  return not (room and minus(room, added))
end

-- What was added to the quantities, with more. Nil if some quantity would pass what a number can be.
local function added_with(record, add)
  local reserved, added = values_of(record.quantities), record.format == LIVING_FORMAT and values_of(record.added) or {}
  for place = 1, table.maxn(add) do
    if add[place] then
      if is_too_much(added[place], add[place]) then return nil end
      added[place] = added[place] and plus(added[place], add[place]) or add[place]
      if is_too_much(reserved[place], added[place]) then return nil end
    end
  end
  return added
end

-- Whether the default of a quantity that the event does not name would pass that.
local function passes_by_default(measure, reserved, added)
  for i = 1, measure == EVENTS and 0 or #measure, 4 do
    local place = measure[i]
    -- TRUTH: `plus` stops there, and the price with it.
    if added[place] and not reserved[place] and is_too_much(measure[i + 3], added[place]) then return true end
  end
  return false
end

-- What the reservation costs with `added` on top of what was reserved, by the rules of its plan, and what a final commit would then count that
-- names nothing. Else nil and a fault.
local function price_with(record, plan, added, add)
  local reserved, named = values_of(record.quantities), record.format == LIVING_FORMAT and values_of(record.named) or {}
  local charges, dues, by_quantities, adds_any = {}, {}, nil, false
  for i, match in ipairs(matches_of(plan, record.what)) do
    local charge, measure = first_price_of_life(match.measures, reserved, added, {})
    if not charge then return nil, unpriced(plan, match.group, measure) end
    if charge > match.group.max_units then return nil, fault('OUT_OF_RANGE', match.group.place, '', plan.digest) end
    if passes_by_default(measure, reserved, added) then return nil, fault('ADDED_TOO_MUCH') end
    charges[i], dues[i] = charge, charge
    if next(named) then
      -- Not the measure by which the Extend is priced: what was named may need another one.
      local due, wrong = first_price_of_life(match.measures, reserved, added, named)
      if not due then return nil, unpriced(plan, match.group, wrong) end
      dues[i] = due
    end
    if measure ~= EVENTS then
      by_quantities = by_quantities or { group = match.group, measure = measure }
      adds_any = adds_any or measures_any(measure, add)
    end
  end
  -- TRUTH: what measures nothing holds nothing more.
  if by_quantities and not adds_any then
    return nil, fault('NOTHING_ADDED', by_quantities.group.place, names_of(by_quantities.measure, plan), plan.digest)
  end
  return charges, dues
end

-- What the Extend asks of each claim, as claims for the answer, and whether all have room. Else nil and a fault.
local function asked_of(led, record, plan, charges)
  local asks, all_fit = {}, true
  for i, claim in ipairs(record.claims) do
    local group, window = plan.groups[claim.place], window_of(led, claim)
    local quota, cost = claim.own_quota or group.quota, charges[i] - claim.charge
    local used, held = window and window.used or 0, window and window.held or 0
    local has_room = not window or cost < 0 or fits(group, quota, cost, used, held)
    if cost > group.max_units - used - held then return nil, fault('OUT_OF_RANGE', claim.place, '', plan.digest) end
    all_fit = all_fit and has_room
    asks[i] = {
      place = claim.place, number = claim.number, span = claim.span, window = window or GONE, charge = max(cost, 0), quota = quota,
      own_quota = claim.own_quota, fits = has_room,
    }
  end
  return asks, all_fit
end

-- In how many milliseconds to ask again, or -1 if waiting does not help. The reservation stays in its windows, so that only holds of others give
-- room.
local function retry_in(led, asks)
  for _, ask in ipairs(asks) do
    if not ask.fits and (ask.quota == 0 or ask.charge > ask.quota - ask.window.used) then return -1 end
  end
  local deadline = earliest_deadline(led)
  return deadline and deadline - led.time or -1
end

-- The column of closings, or nil if all windows are kept.
local function closings_of_asks(asks)
  local closings, is_closed = {}, false
  for i, ask in ipairs(asks) do
    closings[2 * i - 1], closings[2 * i] = 0, ask.window == GONE and 1 or 0
    is_closed = is_closed or ask.window == GONE
  end
  return is_closed and write_flat(CLOSING_FORMAT, CLOSING_WIDTH, #asks, closings) or nil
end

-- What each claim costs, as charges of the answer.
local function costs_of(asks)
  local costs = {}
  for i = 1, #asks do costs[i] = asks[i].charge end
  return costs
end

-- The record by which a retry is known. It says what was asked, and which reservation is meant.
local function extension_bytes(led, once, settle, record, costs)
  local claims = {}
  for i, claim in ipairs(record.claims) do
    claims[i] = { place = claim.place, number = claim.number, span = claim.span, charge = costs[i] }
  end
  return record_bytes({
    format = FORMAT, state = EXTENDED, paged = 0, epoch = led.memory.epoch, deadline = 0, forget = NEVER, digest = once.digest,
    suffix = record.suffix, plan = record.plan, what = settle.field, quantities = '', settled = '', claims = claims, rest = '',
  })
end

local function extend(k, a)
  local packed = ARGV[a + 1]
  local settle, at = read_settle_call(packed)
  local once
  once, at = read_once(packed, at)
  local asked = read_extend_call(packed, at)
  local led, failed = begin(k)
  if not led then return failed end

  local known_one, costs = recall(led, once, EXTENDED)
  if known_one == false then return fault(costs) end
  if known_one then
    local named = { state = STATE_HELD, replayed = true, plan = known_one.plan, deadline = known_one.deadline }
    return answer_remembered(led, named, known_one.claims, costs)
  end

  local record, reason = load_reservation(led, settle)
  if not record then return fault(reason) end
  local state = state_of(record, led.time)
  if state == STATE_COMMITTED then return committed_otherwise(record) end
  if state == STATE_RELEASED then return fault('RESERVATION_RELEASED') end
  if state == STATE_EXPIRED then return fault('RESERVATION_EXPIRED') end

  local claims, added, charges, dues = record.claims, nil, nil, nil
  if asked.adds == 1 then
    local plan = plan_of(settle.plan, ARGV[a + 2])
    if not plan then return fault('PLAN_NOT_ARCHIVED') end
    local add, asks, all_fit = values_of(asked.quantities), nil, nil
    added = added_with(record, add)
    if not added then return fault('ADDED_TOO_MUCH') end
    charges, dues = price_with(record, plan, added, add)
    if not charges then return dues end
    asks, all_fit = asked_of(led, record, plan, charges)
    if not asks then return all_fit end
    if not all_fit then
      local named = { outcome = LIMIT_REACHED, plan = record.plan, deadline = record.deadline, retry_after_ms = retry_in(led, asks) }
      return answer_denied(named, asks, closings_of_asks(asks))
    end
    costs = costs_of(asks)
  else
    costs = {}
    for i = 1, #claims do costs[i] = 0 end
  end

  -- All checks are done: from here on, writes.
  local deadline, has_id = later_deadline(led, record, asked.ttl_ms), once.has_id == 1
  if added or has_id then begin_life(record) end
  if record.format == LIVING_FORMAT then lock_counted(led, record, state) end
  local before = parts_now(record)
  if added then
    record.added, record.claim_bytes = quantities_of(added), nil
    for i, claim in ipairs(claims) do claim.charge, claim.due = charges[i], dues[i] end
  end
  hold_anew(led, record, before, deadline)
  local extension
  if has_id then
    record.extensions = record.extensions .. once.field
    led.extensions, led.extended = record.extensions, settle.field
    extension = extension_bytes(led, once, settle, record, costs)
  end
  write_living(led, settle, record, KEYS[k + HOLD_KEY], true, has_id and once.field, extension)
  return answer_remembered(led, { state = STATE_HELD, plan = record.plan, deadline = deadline }, claims, costs)
end

return each(extend, 4, 2)
