#!lua flags=allow-oom
-- release: gives a reservation back.
--
-- KEYS: ledger, memory, agenda, hold
-- ARGV: call { nonce, replay window ms }
-- Answers: fault { reason, group, name }; already_committed [{ group, unit, units }]; released { state, rows, replayed }
-- uses: base ledger record agenda report

local function release(k, a)
  local ledger_key, memory_key, agenda_key, hold_key = unpack(KEYS, k + 1, k + 4)
  local nonce, replay_ms = unpack(unpack_message(ARGV[a + 1]))
  local field = 'r' .. nonce

  local led = open_ledger(call('GET', ledger_key))
  local now = led.time
  local lapsed = give_back_due(led, agenda_key, memory_key)
  local record = load_record(memory_key, field, now)
  if not record then return fault('RESERVATION_NOT_FOUND') end
  local claims = record[R_CLAIMS]

  local state = state_name(record, now)
  if state == 'committed' then
    local committed = {}
    for i = 1, #claims do committed[i] = { claims[i][C_ID], claims[i][C_UNIT], claims[i][C_COMMITTED] } end
    return pack({ already_committed = committed })
  end
  if state ~= 'held' then
    return pack({ released = { state, claim_rows(led, claims, C_CHARGE), state == 'released' } })
  end

  -- All checks are done: from here on, writes.
  give_back(led, claims)
  led.live = led.live - 1
  record[R_STATE] = RELEASED_STATE
  record[R_FORGET] = math.max(record[R_FORGET], now + replay_ms)
  write_lapsed(agenda_key, lapsed)
  call('HSET', memory_key, field, pack(record))
  remember(led, agenda_key, field, record[R_FORGET])
  call('DEL', hold_key)
  tidy_memory(led, agenda_key, memory_key, record[R_FORGET])
  save_ledger(ledger_key, led)
  return pack({ released = { 'released', claim_rows(led, claims, C_CHARGE), false } })
end

return each(release, 4, 1)
