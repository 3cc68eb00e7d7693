#!lua
-- refund_reservation: gives back some of what a reservation committed, in its groups and windows and by its rules.
--
-- KEYS: ledger, memory, agenda
-- ARGV: call { nonce, request id, digest, event id, refunded event's name, replay window ms, quantity, quantities, numeric metadata }
-- Answers: as track, without stale
-- uses: base price match ledger record agenda report once tracking

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

  local record = load_record(keys.memory, field, now)
  if not record then return fault('RESERVATION_NOT_FOUND') end
  if record[R_STATE] ~= COMMITTED_STATE then return fault('NOT_COMMITTED', '', state_name(record, now)) end
  local event_name = unpack_message(record[R_EVENT])
  if event_name ~= refunded then return fault('REFUND_OF_ANOTHER_EVENT', '', event_name) end

  local claims = record[R_CLAIMS]
  local amount = { quantity, quantities, numeric }
  local charges = {}
  for i = 1, #claims do
    local claim = claims[i]
    local charge, by_events = first_price(claim[C_MEASURES], amount, true)
    -- Without a charge, the other is the name of what is missing.
    if not charge then return fault('QUANTITY_MISSING', claim[C_ID], by_events) end
    charges[i] = by_events and 0 or charge
    if charges[i] > MAX_UNITS[claim[C_UNIT]] then return fault('OUT_OF_RANGE', claim[C_ID]) end
  end

  -- All checks are done: from here on, writes.
  local refunds = {}
  for i = 1, #claims do
    local claim, charge = claims[i], charges[i]
    local applied = 0
    local w = kept_window(led, claim[C_ID], claim[C_WINDOW])
    if w then
      applied = min(charge, claim[C_COMMITTED] - claim[C_REFUNDED], w[USED])
      w[USED] = w[USED] - applied
      claim[C_REFUNDED] = claim[C_REFUNDED] + applied
    end
    refunds[i] = {
      charge, charge - applied, 0, claim[C_SPAN], claim[C_WINDOW], claim[C_TERMS], '', claim[C_ID], claim[C_UNIT],
    }
  end
  write_record(keys.memory, field, record)
  write_tracked(keys, led, lapsed, request_id, digest, event_id, now + replay_ms, refunds)
  return tracked(led, event_id, refunds, false)
end

return each(refund_reservation, 3, 1)
