#!lua
-- refund_reservation: settles a committed reservation anew at a lower amount, in its groups and windows and by its rules.
--
-- KEYS: state, memory 1, memory 2
-- ARGV: settle_call, once, event (by the name of the refunded event)
--       the message of the reservation's plan, or empty
-- Answers: as track, without stale
-- uses: base formats each plan match price ledger windows memory deadlines save record answer begin life tracking subscription crossed

-- The places of a whole and of its parts, where the refund names more of the parts than of the whole; else nil.
local function parts_exceed(measure, asked)
  local all = {}
  for i = 1, #measure, 4 do all[measure[i]] = asked[measure[i]] or 0 end
  local _, wrong = without_parts(measure, all)
  return wrong
end

-- Lowers parts that exceed their whole: what there is of it is that of its first parts.
local function lower_parts(measure, values)
  for _, terms in ipairs(measure.parts) do
    local rest = values[measure[terms[1]]] or measure[terms[1] + 3]
    for i = 2, #terms do
      local part = measure[terms[i]]
      local left = minus(rest, values[part] or measure[terms[i] + 3])
      if not left then values[part] = rest end
      rest = left or 0
    end
  end
end

-- What a reservation has counted by a measure, in an event that has measures with parts: as it was committed, by `actual` values or without, less
-- what was refunded since. Parts that were not refunded have come back as far as their whole has.
local function counted_by(measure, committed, actual, refunded)
  local values = measure.parts and with_parts_anew(measure, committed, actual) or committed
  local counted = {}
  for i = 1, #measure, 4 do
    local name = measure[i]
    local value, back = values[name], refunded[name]
    if back then value = less(value or measure[i + 3], back) end
    counted[name] = value
  end
  if measure.parts then lower_parts(measure, counted) end
  return counted
end

-- What the refund asks of a claim that is measured by a quantity which it names: the charge that falls away when the reservation is
-- settled at what stays of its quantities, and that of what was never committed. `stays` takes in what stays of each quantity.
local function by_quantities(measure, left_charge, committed, asked, stays)
  local beyond, nothing_stays = {}, true
  for i = 1, #measure, 4 do
    local name = measure[i]
    local value, refunded = committed[name], asked[name]
    -- What the refund names was committed by default, if not by name.
    if refunded and not value then value = measure[i + 3] end
    refunded = refunded or 0
    if value then
      stays[name] = less(value, refunded)
      if stays[name] ~= 0 then nothing_stays = false end
    end
    beyond[name] = less(refunded, value or 0)
  end
  if measure.parts then
    lower_parts(measure, stays)
    lower_parts(measure, beyond)
    nothing_stays = true
    for i = 1, #measure, 4 do nothing_stays = nothing_stays and (stays[measure[i]] or 0) == 0 end
  end
  -- EXACT: whoever refunds all that was committed gets all of the charge back, whatever the rounding and the defaults.
  local charge = nothing_stays and 0 or price(measure, stays)
  return max(left_charge - charge, 0), price(measure, beyond, true)
end

local NOT_ASKED = { 0, 0 }

-- What the refund asks of each claim, as { what falls away of its charge, what was never committed }; else nil and a fault. Without parts,
-- `settled` takes in what stays. With them, `refunded` is what was refunded before.
local function asked_of_claims(record, plan, matches, committed, asked, settled, refunded)
  local asks, missing, measured, of_places = {}, nil, false, {}
  for i, claim in ipairs(record.claims) do
    -- Of a group that the event did not match any more when it was committed, a refund asks nothing.
    asks[i], of_places[claim.place] = NOT_ASKED, i
  end
  for _, match in ipairs(matches) do
    local group, measures = match.group, match.measures
    local i = of_places[group.place]
    local claim = record.claims[i]
    local left_charge = claim.committed - claim.refunded
    local falls, beyond = 0, 0
    local _, measure = first_price(measures, committed, nil, refunded and settled)
    -- What happened is not undone: a group that counts events keeps its count.
    -- Also of a rule before the one that applied: whoever sends its names expects that they count.
    for _, earlier in ipairs(measures) do
      local no_number = unreadable(earlier, asked)
      if no_number then return nil, fault('QUANTITY_MISSING', group.place, plan.names[no_number], plan.digest) end
      if earlier == measure then break end
    end
    if measure ~= EVENTS then
      if measures_any(measure, asked) then
        measured = true
        local counted, stays = committed, settled
        if refunded then
          local wrong = measure.parts and parts_exceed(measure, asked)
          if wrong then return nil, unpriced(plan, group, wrong) end
          counted, stays = counted_by(measure, committed, settled, refunded), {}
        end
        falls, beyond = by_quantities(measure, left_charge, counted, asked, stays)
      else
        -- By another rule than it was committed by: so much less of the charge.
        local charge, other = first_price(measures, asked, true)
        if not charge then
          local refused = unpriced(plan, group, other)
          if type_of(other) == 'table' then return nil, refused end
          missing = missing or refused
        elseif other ~= EVENTS then
          measured = true
          falls = min(charge, left_charge)
          beyond = charge - falls
        end
      end
    end
    if beyond > MAX_UNITS[group.unit] - falls then return nil, fault('OUT_OF_RANGE', group.place, '', plan.digest) end
    asks[i] = { falls, beyond }
  end
  if missing and not measured then return nil, missing end
  return asks
end

-- What was refunded before. An event that has measures with parts keeps it apart from what was committed: `part_of` decides by what a commit has
-- named, and differently in each group.
local function refunded_before(record)
  if record.settled == '' then return {} end
  local _, refunded = unpack_message(record.settled)
  return refunded or {}
end

-- Adds what the refund names.
local function with_refund(refunded, asked)
  for place = 1, table.maxn(asked) do
    local value = asked[place]
    if value and value ~= true then refunded[place] = plus(refunded[place] or 0, value) end
  end
  return refunded
end

-- What a reservation with a `life` has committed: what was reserved, what Extend has added, and what partial commits have named in its place.
local function committed_by_life(record, values)
  local added = values_of(record.added)
  for place = 1, table.maxn(added) do
    if added[place] and values[place] ~= true then values[place] = plus(values[place] or 0, added[place]) end
  end
  replace_values(values, values_of(record.named))
  return values
end

local function refund_reservation(k, a)
  local packed = ARGV[a + 1]
  local settle, at = read_settle_call(packed)
  local once
  once, at = read_once(packed, at)
  local event = read_event(packed, at)
  local led, failed = begin(k)
  if not led then return failed end
  local now = led.time

  local known, reason = recall(led, once, TRACKED)
  if known == false then return fault(reason) end
  if known then return tracked(led, known, true) end

  local record
  record, reason = load_reservation(led, settle)
  if not record then return fault(reason) end
  local state, has_life = state_of(record, now), record.format == LIVING_FORMAT
  -- What partial commits have counted can be refunded once nothing is held any more.
  local in_part = has_life and record.named ~= '' and state ~= STATE_HELD
  if state ~= STATE_COMMITTED and not in_part then return fault('NOT_COMMITTED', 0, STATE_WORDS[state]) end
  local event_name, refunded = unpack_message(record.what), unpack_message(event.what)
  if event_name ~= refunded then return fault('REFUND_OF_ANOTHER_EVENT', 0, event_name) end
  local plan = plan_of(settle.plan, ARGV[a + 2])
  if not plan then return fault('PLAN_NOT_ARCHIVED') end

  local settled, committed, asked = values_of(record.settled), values_of(record.quantities), values_of(event.quantities)
  if has_life then committed = committed_by_life(record, committed) end
  replace_values(committed, settled)
  local before, asks
  local matches = matches_of(plan, was_changed(record) and record.settled_what or record.what)
  if matches.has_parts then before = refunded_before(record) end
  local actual = settled
  if has_life and before then
    -- What partial commits have named decides which parts take their default.
    actual = values_of(record.named)
    replace_values(actual, settled)
  end
  asks, failed = asked_of_claims(record, plan, matches, committed, asked, actual, before)
  if not asks then return failed end

  -- All checks are done: from here on, writes.
  -- Only all that is known of a window says whether it was reset.
  if led.format == WIDE_FORMAT then unfold(led) end
  if has_life then lock_counted(led, record, state) end
  local refunds = {}
  for i, claim in ipairs(record.claims) do
    local falls, beyond = asks[i][1], asks[i][2]
    local window = window_of(led, claim)
    local applied = 0
    if has_life then
      applied = window and refund_counted(led, claim, falls) or 0
    elseif window and not (led.windows and is_reset_since(window, record)) then
      applied = min(falls, window.used)
      window.used = window.used - applied
    end
    -- Also what could not be given back: whatever is counted in the window later is not this reservation's.
    claim.refunded = claim.refunded + falls
    refunds[i] = {
      place = claim.place, number = claim.number, span = claim.span, charge = falls + beyond,
      committed = falls + beyond - applied, own_quota = claim.own_quota,
    }
  end
  record.settled = quantities_of(settled)
  if before then record.settled = record.settled .. quantities_of(with_refund(before, asked)) end
  local made = write_tracked(led, once, record.plan, refunds, settle.replay_ms, record.forget, settle.field, record_bytes(record))
  local done = tracked(led, made, false)
  return led.used_before and with_befores(led, done, refunds, plan) or done
end

return each(refund_reservation, 3, 2)
