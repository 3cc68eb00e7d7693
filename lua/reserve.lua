#!lua
-- reserve: holds what an event may cost, in every limit group that it matches, or in none.
--
-- KEYS: subscription, ledger, memory, agenda, hold
-- ARGV: call { revision, ended, request id, digest, nonce, ttl ms, settlement window ms, metadata, event name, quantity, quantities,
--       numeric metadata }; compiled plan, 'none' or 'unknown'
-- Answers: stale { now, redis time, subscription }; fault { reason, group, name };
--          decision { outcome, nonce, state, deadline, rows, retry after ms or -1, replayed }
-- uses: base price match ledger record agenda report subscription once decide

local function reserve(k, a)
  local subscription_key, ledger_key, memory_key, agenda_key, hold_key = unpack(KEYS, k + 1, k + 5)
  local at, revision, ended, request_id, digest, nonce, ttl_ms, settlement_ms, metadata = unpack_some(ARGV[a + 1], 8, 1)
  local event = sub(ARGV[a + 1], at + 1)
  local name, quantity, quantities, numeric = unpack_message(event)
  local plan = plan_of(ARGV[a + 2])

  local stored = call('MGET', subscription_key, ledger_key)
  local led, redis_time = open_ledger(ledger_key, stored[2])
  local now = led.time
  local lapsed = give_back_due(led, agenda_key, memory_key)

  local known, record = recall(led, memory_key, request_id, 'reserve', digest)
  if known == 'reused' then return fault('REQUEST_ID_REUSED') end
  if known then
    local rows = claim_rows(led, record[R_CLAIMS], C_CHARGE)
    return DECISION .. pack('allowed', known, state_name(record, now), record[R_DEADLINE], rows, -1, true)
  end

  local current, changed_subscription = check_subscription(led, stored[1], revision, ended, plan)
  if not current then return stale(led, redis_time, stored[1]) end
  if ARGV[a + 2] == 'unknown' then return fault('PLAN_UNKNOWN') end
  if not plan then return DECISION .. pack('no_subscription', '', '', 0, '', -1, false) end

  local matched, failed = assess(led, plan, name, metadata, { quantity, quantities, numeric })
  if not matched then return failed or stale(led, redis_time, stored[1]) end
  if #matched == 0 then return DECISION .. pack('unmatched_event', '', '', 0, '', -1, false) end

  local allowed = all_fit(matched)
  if allowed then
    local group = overflow(matched)
    if group then return fault('OUT_OF_RANGE', group) end
    if led.live >= 10000 then return fault('TOO_MANY_HOLDS') end
  end

  -- All checks are done: from here on, writes.
  write_subscription(subscription_key, changed_subscription)
  if not allowed then
    local rows, wait_ms = denied_rows(matched), retry_after(led, agenda_key, matched)
    if lapsed or changed_subscription then
      undo_windows(led)
      write_lapsed(led, agenda_key, memory_key, lapsed)
      save_ledger(led)
    end
    return DECISION .. pack('limit_reached', '', '', 0, rows, wait_ms, false)
  end

  local claims, shown, rows = {}, {}, {}
  for i = 1, #matched do
    local match = matched[i]
    local group, w, charge, measures = match[1], match[2], match[3], match[4]
    local span, terms = span_of(w), group[G_TERMS]
    w[HELD] = w[HELD] + charge
    claims[i] = pack_struct(CLAIM_FORMAT, charge, 0, 0, span, w[NUMBER], #terms, terms, #measures, measures)
    rows[i] = pack_struct(ROW_FORMAT, span, w[USED], w[HELD], charge, 0, 0, 0) .. terms
    shown[i] = format('%s=%d', group[G_ID], charge)
  end
  local deadline = now + ttl_ms
  local forget_at = deadline + settlement_ms
  local field = 'r' .. nonce
  local packed = record_bytes(HELD_STATE, 0, deadline, forget_at, request_id, event, concat(claims))
  write_lapsed(led, agenda_key, memory_key, lapsed)
  if request_id == '' then
    call('HSET', memory_key, field, packed)
  else
    call('HSET', memory_key, field, packed, 'q' .. request_id, pack('reserve', digest, nonce))
  end
  call('ZADD', agenda_key, format('%d', deadline), field)
  -- For people who look with redis-cli; no script reads it.
  call('SET', hold_key, concat(shown, ' '), 'PX', format('%d', ttl_ms))
  led.live = led.live + 1
  if deadline < led.due then led.due = deadline end
  tidy_memory(led, agenda_key, memory_key, forget_at)
  save_ledger(led)
  return DECISION .. pack('allowed', nonce, 'held', deadline, concat(rows), -1, false)
end

return each(reserve, 5, 2)
