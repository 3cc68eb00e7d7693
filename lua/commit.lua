#!lua flags=allow-oom
-- commit: counts what was really used, in the reservation's groups and windows.
--
-- KEYS: ledger, memory, agenda, hold
-- ARGV: call { nonce, whether actual values are given, their quantity or false, their quantities, replay window ms }
-- Answers: fault { reason, group, name }; already_committed [{ group, unit, units }];
--          committed { state, rows, overage, late, replayed }
-- uses: base price match ledger record agenda report

local function commit(k, a)
  local ledger_key, memory_key, agenda_key, hold_key = unpack(KEYS, k + 1, k + 4)
  local nonce, has_actual, quantity, quantities, replay_ms = unpack(unpack_message(ARGV[a + 1]))
  local field = 'r' .. nonce

  local led = open_ledger(call('GET', ledger_key))
  local now = led.time
  local lapsed = give_back_due(led, agenda_key, memory_key)
  local record = load_record(memory_key, field, now)
  if not record then return fault('RESERVATION_NOT_FOUND') end
  local claims = record[R_CLAIMS]

  -- The charges: as reserved, or priced anew by the rules written with the reservation. What the actual does not name stays as
  -- reserved, in a second commit as in the first: the record keeps what was reserved.
  local charges, values = {}, {}
  if has_actual then
    for name, value in pairs(record[R_VALUES]) do values[name] = value end
    if quantity then values.quantity = quantity end
    for name, value in pairs(quantities) do values[name] = value end
  end
  for i = 1, #claims do
    local claim = claims[i]
    charges[i] = claim[C_CHARGE]
    if has_actual then
      local measure, missing = choose(claim[C_MEASURES], values)
      if not measure then return fault('QUANTITY_MISSING', claim[C_ID], missing) end
      charges[i] = price(measure, values)
    end
  end

  local function rows_of_charges()
    local rows = {}
    for i = 1, #claims do rows[i] = claim_row(led, claims[i], charges[i]) end
    return rows
  end

  local overage = false
  for i = 1, #claims do
    if charges[i] > claims[i][C_CHARGE] then overage = true end
  end

  local state = state_name(record, now)
  -- TRUTH: at the deadline, and after it, the hold is gone; what was used counts all the same.
  local late = state ~= 'held'

  if state == 'committed' then
    local committed, same = {}, true
    for i = 1, #claims do
      local claim = claims[i]
      committed[i] = { claim[C_ID], claim[C_UNIT], claim[C_COMMITTED] }
      if claim[C_COMMITTED] ~= charges[i] then same = false end
    end
    if not same then return pack({ already_committed = committed }) end
    return pack({ committed = { state, rows_of_charges(), overage, record[R_LATE], true } })
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
    led.live = led.live - 1
  end
  for i = 1, #claims do
    local claim = claims[i]
    local w = kept_window(led, claim[C_ID], claim[C_WINDOW])
    if w then w[USED] = w[USED] + charges[i] end
    claim[C_COMMITTED] = charges[i]
  end
  record[R_STATE], record[R_LATE] = COMMITTED_STATE, late
  record[R_FORGET] = math.max(record[R_FORGET], now + replay_ms)
  write_lapsed(agenda_key, lapsed)
  call('HSET', memory_key, field, pack(record))
  remember(led, agenda_key, field, record[R_FORGET])
  call('DEL', hold_key)
  tidy_memory(led, agenda_key, memory_key, record[R_FORGET])
  save_ledger(ledger_key, led)
  return pack({ committed = { 'committed', rows_of_charges(), overage, late, false } })
end

return each(commit, 4, 1)
