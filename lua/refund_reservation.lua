#!lua
-- refund_reservation: settles a committed reservation anew at a lower amount, in its groups and windows and by its rules.
--
-- KEYS: ledger, memory, agenda
-- ARGV: call { nonce, request id, digest, event id, refunded event's name, replay window ms, quantity, quantities, numeric metadata }
-- Answers: as track, without stale
-- uses: base price match ledger record agenda report once tracking

-- What the refund asks of a claim that is measured by a quantity which it names: the charge that falls away when the reservation is
-- settled at what stays of its quantities, and that of what was never committed. `stays` takes in what stays of each quantity.
local function by_quantities(measure, left_charge, committed, asked, stays)
  local beyond, nothing_stays = {}, true
  for i = 1, #measure, 4 do
    local name = measure[i]
    local value, refunded = value_of(committed, name), value_of(asked, name)
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
  local charge = nothing_stays and 0 or price(measure, { false, stays, false })
  return max(left_charge - charge, 0), price(measure, { false, beyond, false }, true)
end

-- What the refund asks of each claim, as { what falls away of its charge, what was never committed }; else nil and a fault.
local function asked_of_claims(claims, committed, asked, stays)
  local asks, missing, measured = {}, nil, false
  for i = 1, #claims do
    local claim = claims[i]
    local left_charge = claim[C_COMMITTED] - claim[C_REFUNDED]
    local falls, beyond = 0, 0
    local _, measure = first_price(claim[C_MEASURES], committed)
    -- What happened is not undone: a group that counts events keeps its count.
    -- Also of a rule before the one that applied: whoever sends its names expects that they count.
    for _, earlier in ipairs(decode(claim[C_MEASURES])) do
      local no_number = unreadable(earlier, asked)
      if no_number then return nil, fault('QUANTITY_MISSING', claim[C_ID], no_number) end
      if earlier == measure then break end
    end
    if measure ~= EVENTS then
      if measures_any(measure, asked.named) then
        measured = true
        falls, beyond = by_quantities(measure, left_charge, committed, asked, stays)
      else
        -- By another rule than it was committed by: so much less of the charge.
        local charge, other = first_price(claim[C_MEASURES], asked, true)
        if not charge then
          missing = missing or fault('QUANTITY_MISSING', claim[C_ID], other)
        elseif other ~= EVENTS then
          measured = true
          falls = min(charge, left_charge)
          beyond = charge - falls
        end
      end
    end
    if beyond > MAX_UNITS[claim[C_UNIT]] - falls then return nil, fault('OUT_OF_RANGE', claim[C_ID]) end
    asks[i] = { falls, beyond }
  end
  if missing and not measured then return nil, missing end
  return asks
end

-- What the refund says of each quantity, by name.
local function named_by(quantity, quantities, numeric)
  local named = {}
  for name, value in pairs(numeric or {}) do named[name] = value end
  if quantity then named.quantity = quantity end
  for name, value in pairs(quantities) do named[name] = value end
  return named
end

local function refund_reservation(k, a)
  local keys = { ledger = KEYS[k + 1], memory = KEYS[k + 2], agenda = KEYS[k + 3] }
  local at, nonce, request_id, digest, event_id, refunded, replay_ms = unpack_some(ARGV[a + 1], 6, 1)
  local _, quantity, quantities, numeric = unpack_some(ARGV[a + 1], 3, at)
  local field = 'r' .. nonce

  local led = open_ledger(keys.ledger, call('GET', keys.ledger))
  local now = led.time
  local lapsed = give_back_due(led, keys.agenda, keys.memory)

  local known, remembered = recall(led, keys.memory, request_id, 'track', digest)
  if known == 'reused' then return fault('REQUEST_ID_REUSED') end
  if known then return tracked(led, known, read_claims(remembered, 1), true) end

  local record = load_record(led, keys.memory, field)
  -- What has expired is unknown, also if Redis still has it.
  if not record or (lapsed and lapsed.expired) then return fault('RESERVATION_NOT_FOUND') end
  if record[R_STATE] ~= COMMITTED_STATE then return fault('NOT_COMMITTED', '', state_name(record, now)) end
  local after_event, event_name, reserved_quantity, amounts, reserved_numeric = unpack_some(record[R_EVENT], 4, 0)
  if event_name ~= refunded then return fault('REFUND_OF_ANOTHER_EVENT', '', event_name) end

  local event, settled = record[R_EVENT], {}
  if after_event ~= -1 then
    event, settled = sub(event, 1, after_event), unpack_message(sub(event, after_event + 1))
  end
  for name, value in pairs(settled) do amounts[name] = value end
  local asked = { quantity, quantities, numeric, named = named_by(quantity, quantities, numeric) }
  local claims = record[R_CLAIMS]
  local asks, failed = asked_of_claims(claims, { reserved_quantity, amounts, reserved_numeric }, asked, settled)
  if not asks then return failed end

  -- All checks are done: from here on, writes.
  local refunds = {}
  for i = 1, #claims do
    local claim, falls, beyond = claims[i], asks[i][1], asks[i][2]
    local w = kept_window(led, claim[C_ID], claim[C_WINDOW])
    local applied = w and min(falls, w[USED]) or 0
    if w then w[USED] = w[USED] - applied end
    -- Also what could not be given back: whatever is counted in the window later is not this reservation's.
    claim[C_REFUNDED] = claim[C_REFUNDED] + falls
    refunds[i] = {
      falls + beyond, falls + beyond - applied, 0, claim[C_SPAN], claim[C_WINDOW], claim[C_TERMS], '', claim[C_ID], claim[C_UNIT],
    }
  end
  record[R_EVENT] = event .. pack(settled)
  write_record(keys.memory, field, record)
  write_tracked(keys, led, lapsed, request_id, digest, event_id, now + replay_ms, refunds)
  return tracked(led, event_id, refunds, false)
end

return each(refund_reservation, 3, 1)
