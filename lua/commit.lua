#!lua flags=allow-oom
-- commit: counts what was really used, in the reservation's groups and windows.
--
-- KEYS: ledger, memory, agenda, hold
-- ARGV: call { nonce, whether actual values are given, their quantity or false, their quantities, replay window ms }
-- Answers: fault { reason, group, name }; already_committed [{ group, unit, units }];
--          committed { state, rows, overage, late, replayed }
-- uses: base price match ledger record agenda report

-- What the reservation's event measures, where the actual values do not say otherwise.
local function actual_amount(record, actual)
  local _, reserved_quantity, amount, numeric = unpack_message(record[R_EVENT])
  for name, value in pairs(actual) do amount[name] = value end
  return { reserved_quantity, amount, numeric }
end

local function commit(k, a)
  local ledger_key, memory_key, agenda_key, hold_key = unpack(KEYS, k + 1, k + 4)
  local _, nonce, has_actual, quantity, actual, replay_ms = unpack_some(ARGV[a + 1], 5, 1)
  -- What is named `quantity` among the quantities goes before the quantity itself, as in every event.
  if quantity and not actual.quantity then actual.quantity = quantity end
  local field = 'r' .. nonce

  local led = open_ledger(ledger_key, call('GET', ledger_key))
  local now = led.time
  local lapsed = give_back_due(led, agenda_key, memory_key)
  local record = load_record(led, memory_key, field)
  if not record then return fault('RESERVATION_NOT_FOUND') end
  local claims = record[R_CLAIMS]

  -- The charges: as reserved, or priced anew by the rules written with the reservation. What the actual does not name stays as
  -- reserved, in a second commit as in the first: the record keeps what was reserved.
  local charges, overage = {}, false
  local amount = has_actual and actual_amount(record, actual)
  -- A claim that is measured by quantities, and whether the actual names one that is measured.
  local by_quantities, names_one
  for i = 1, #claims do
    local claim = claims[i]
    local charge, measure = claim[C_CHARGE], nil
    if amount then
      charge, measure = first_price(claim[C_MEASURES], amount)
      if not charge then return fault('QUANTITY_MISSING', claim[C_ID], measure) end
      if measure ~= EVENTS then
        by_quantities = by_quantities or { claim, measure }
        names_one = names_one or measures_any(measure, actual)
      end
    end
    charges[i] = charge
    if charge > claim[C_CHARGE] then overage = true end
  end
  -- TRUTH: what measures nothing says nothing of what was used.
  if by_quantities and not names_one then
    return fault('NOTHING_MEASURED', by_quantities[1][C_ID], names_of(by_quantities[2]))
  end

  local function rows_of_charges()
    local rows = {}
    for i = 1, #claims do rows[i] = claim_row(led, claims[i], charges[i]) end
    return concat(rows)
  end

  local state = state_name(record, now)
  -- TRUTH: at the deadline, and after it, the hold is gone; what was used counts all the same.
  local late = state ~= 'held'

  if state == 'committed' then
    for i = 1, #claims do
      if claims[i][C_COMMITTED] ~= charges[i] then return already_committed(claims) end
    end
    return COMMITTED .. pack(state, rows_of_charges(), overage, record[R_LATE], true)
  end

  for i = 1, #claims do
    local claim, charge = claims[i], charges[i]
    local most = MAX_UNITS[claim[C_UNIT]]
    local w = kept_window(led, claim[C_ID], claim[C_WINDOW])
    if w then
      local still_held = w[HELD]
      if not late then still_held = still_held - claim[C_CHARGE] end
      most = most - w[USED] - still_held
    end
    if charge > most then return fault('OUT_OF_RANGE', claim[C_ID]) end
  end

  -- All checks are done: from here on, writes.
  if not late then
    give_back(led, claims)
    led.live = max(led.live - 1, 0)
  end
  for i = 1, #claims do
    local claim = claims[i]
    local w = kept_window(led, claim[C_ID], claim[C_WINDOW])
    if w then w[USED] = w[USED] + charges[i] end
    claim[C_COMMITTED] = charges[i]
  end
  record[R_STATE], record[R_LATE] = COMMITTED_STATE, late
  if has_actual then record[R_EVENT] = record[R_EVENT] .. pack(actual) end
  record[R_FORGET] = max(record[R_FORGET], now + replay_ms)
  write_lapsed(led, agenda_key, memory_key, lapsed)
  write_record(memory_key, field, record)
  remember(led, agenda_key, field, record[R_FORGET])
  call('DEL', hold_key)
  tidy_memory(led, agenda_key, memory_key, record[R_FORGET])
  save_ledger(led)
  return COMMITTED .. pack('committed', rows_of_charges(), overage, late, false)
end

return each(commit, 4, 1)
