#!lua flags=allow-oom
-- release: gives a reservation back.
--
-- KEYS: ledger, memory, agenda, hold
-- ARGV: call { nonce, replay window ms }
-- Answers: fault { reason, group, name }; already_committed [{ group, unit, units }]; released { state, rows, replayed }
-- uses: base ledger record agenda report

local function release(k, a)
  local ledger_key, memory_key, agenda_key, hold_key = unpack(KEYS, k + 1, k + 4)
  local _, nonce, replay_ms = unpack_some(ARGV[a + 1], 2, 1)
  local field = 'r' .. nonce

  local led = open_ledger(ledger_key, call('GET', ledger_key))
  local now = led.time
  local lapsed = give_back_due(led, agenda_key, memory_key)
  local record = load_record(led, memory_key, field)
  if not record then return fault('RESERVATION_NOT_FOUND') end
  local claims = record[R_CLAIMS]

  local state = state_name(record, now)
  if state == 'committed' then return already_committed(claims) end
  if state ~= 'held' then return RELEASED .. pack(state, claim_rows(led, claims, C_CHARGE), state == 'released') end

  -- All checks are done: from here on, writes.
  give_back(led, claims)
  led.live = max(led.live - 1, 0)
  record[R_STATE] = RELEASED_STATE
  record[R_FORGET] = max(record[R_FORGET], now + replay_ms)
  write_lapsed(led, agenda_key, memory_key, lapsed)
  write_record(memory_key, field, record)
  remember(led, agenda_key, field, record[R_FORGET])
  call('DEL', hold_key)
  tidy_memory(led, agenda_key, memory_key, record[R_FORGET])
  save_ledger(led)
  return RELEASED .. pack('released', claim_rows(led, claims, C_CHARGE), false)
end

return each(release, 4, 1)
