#!lua
-- refund_reservation: gives back some of what a reservation committed, in its groups and windows and by its rules.
--
-- KEYS: ledger, memory, agenda
-- ARGV: call { nonce, event, refunded event's name, request id, digest, event id, replay window ms }
-- Answers: as track, without stale
-- uses: base price match ledger record agenda report once tracking

local function refund_reservation(k, a)
  local keys = { ledger = KEYS[k + 1], memory = KEYS[k + 2], agenda = KEYS[k + 3] }
  local nonce, event, refunded, request_id, digest, event_id, replay_ms = unpack(unpack_message(ARGV[a + 1]))
  local field = 'r' .. nonce

  local led = open_ledger(call('GET', keys.ledger))
  local now = led.time
  local lapsed = give_back_due(led, keys.agenda, keys.memory)

  local memory = recall(led, keys.memory, request_id, 'track', digest)
  if memory == 'reused' then return fault('REQUEST_ID_REUSED') end
  if memory then return replay_tracked(led, memory) end

  local record = load_record(keys.memory, field, now)
  if not record then return fault('RESERVATION_NOT_FOUND') end
  if record[R_STATE] ~= COMMITTED_STATE then return fault('NOT_COMMITTED', '', state_name(record, now)) end
  if record[R_EVENT] ~= refunded then return fault('REFUND_OF_ANOTHER_EVENT', '', record[R_EVENT]) end

  local claims = record[R_CLAIMS]
  local charges = {}
  for i = 1, #claims do
    local claim, values = claims[i], {}
    resolve(claim[C_MEASURES], event, values)
    local measure, missing = choose(claim[C_MEASURES], values)
    if not measure then return fault('QUANTITY_MISSING', claim[C_ID], missing) end
    charges[i] = measure == 1 and 0 or price(measure, values, true)
    if charges[i] > MAX_UNITS[claim[C_UNIT]] then return fault('OUT_OF_RANGE', claim[C_ID]) end
  end

  -- All checks are done: from here on, writes.
  local rows, refunds = {}, {}
  for i = 1, #claims do
    local claim, charge = claims[i], charges[i]
    local applied = 0
    local w = kept_window(led, claim[C_ID], claim[C_WINDOW])
    if w then
      applied = math.min(charge, claim[C_COMMITTED] - claim[C_REFUNDED], w[USED])
      w[USED] = w[USED] - applied
      claim[C_REFUNDED] = claim[C_REFUNDED] + applied
    end
    refunds[i] = {
      claim[C_ID], claim[C_LABEL], claim[C_UNIT], claim[C_QUOTA], claim[C_HARD], claim[C_START], claim[C_END],
      claim[C_WINDOW], charge, charge - applied,
    }
    rows[i] = claim_row(led, refunds[i], charge, charge - applied)
  end
  call('HSET', keys.memory, field, pack(record))
  write_tracked(keys, led, lapsed, request_id, digest, event_id, now + replay_ms, refunds)
  return pack({ tracked = { 'matched', event_id, rows, false } })
end

return each(refund_reservation, 3, 1)
