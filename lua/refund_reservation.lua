#!lua
-- refund_reservation: settles a committed reservation anew at a lower amount, in its groups and windows and by its rules.
--
-- KEYS: state, memory 1, memory 2
-- ARGV: settle_call, once, event (by the name of the refunded event)
--       the message of the reservation's plan, or empty
-- Answers: as track, without stale
-- uses: base formats each plan match price ledger windows memory deadlines save record answer begin tracking

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
  -- EXACT: whoever refunds all that was committed gets all of the charge back, whatever the rounding and the defaults.
  local charge = nothing_stays and 0 or price(measure, stays)
  return max(left_charge - charge, 0), price(measure, beyond, true)
end

-- What the refund asks of each claim, as { what falls away of its charge, what was never committed }; else nil and a fault.
local function asked_of_claims(record, plan, committed, asked, stays)
  local asks, missing, measured = {}, nil, false
  for i, match in ipairs(matches_of(plan, record.what)) do
    local claim, group, measures = record.claims[i], match.group, match.measures
    local left_charge = claim.committed - claim.refunded
    local falls, beyond = 0, 0
    local _, measure = first_price(measures, committed)
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
        falls, beyond = by_quantities(measure, left_charge, committed, asked, stays)
      else
        -- By another rule than it was committed by: so much less of the charge.
        local charge, other = first_price(measures, asked, true)
        if not charge then
          missing = missing or fault('QUANTITY_MISSING', group.place, plan.names[other], plan.digest)
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

-- The values as `values_of` reads them.
local function quantities_of(values)
  local list = {}
  for place = 1, table.maxn(values) do list[place] = values[place] or false end
  return pack(list)
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

  local known, reason = recall(led, once, true)
  if known == false then return fault(reason) end
  if known then return tracked(led, known, true) end

  local record
  record, reason = load_reservation(led, settle)
  if not record then return fault(reason) end
  if record.state ~= COMMITTED and record.state ~= COMMITTED_LATE then
    return fault('NOT_COMMITTED', 0, STATE_WORDS[state_of(record, now)])
  end
  local event_name, refunded = unpack_message(record.what), unpack_message(event.what)
  if event_name ~= refunded then return fault('REFUND_OF_ANOTHER_EVENT', 0, event_name) end
  local plan = plan_of(settle.plan, ARGV[a + 2])
  if not plan then return fault('PLAN_NOT_ARCHIVED') end

  local settled, committed, asked = values_of(record.settled), values_of(record.quantities), values_of(event.quantities)
  replace_values(committed, settled)
  local asks
  asks, failed = asked_of_claims(record, plan, committed, asked, settled)
  if not asks then return failed end

  -- All checks are done: from here on, writes.
  -- Only all that is known of a window says whether it was reset.
  if led.format == WIDE_FORMAT then unfold(led) end
  local refunds = {}
  for i, claim in ipairs(record.claims) do
    local falls, beyond = asks[i][1], asks[i][2]
    local window = window_of(led, claim)
    if window and led.windows and is_reset_since(window, record) then window = nil end
    local applied = window and min(falls, window.used) or 0
    if window then window.used = window.used - applied end
    -- Also what could not be given back: whatever is counted in the window later is not this reservation's.
    claim.refunded = claim.refunded + falls
    refunds[i] = {
      place = claim.place, number = claim.number, span = claim.span, charge = falls + beyond,
      committed = falls + beyond - applied, own_quota = claim.own_quota,
    }
  end
  record.settled = quantities_of(settled)
  local made = write_tracked(led, once, record.plan, refunds, settle.replay_ms, record.forget, settle.field, record_bytes(record))
  return tracked(led, made, false)
end

return each(refund_reservation, 3, 2)
