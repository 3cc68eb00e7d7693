#!lua flags=allow-oom
-- release: gives a reservation back.
--
-- KEYS: state, memory 1, memory 2, hold
-- ARGV: settle_call
-- Answers: answer, fault, committed_otherwise
-- uses: base formats each price ledger windows memory deadlines save record answer begin

local function release(k, a)
  local settle = read_settle_call(ARGV[a + 1])
  local led, failed = begin(k)
  if not led then return failed end
  local now = led.time
  local record, reason = load_reservation(led, settle)
  if not record then return fault(reason) end

  local state = state_of(record, now)
  if state == STATE_COMMITTED then return committed_otherwise(record) end
  if state ~= STATE_HELD then
    return answer_remembered(led, { state = state, replayed = state == STATE_RELEASED, plan = record.plan }, record.claims)
  end

  -- All checks are done: from here on, writes.
  local bucket_field, bucket = end_hold(led, record)
  record.state = RELEASED
  record.forget = max(record.forget, now + settle.replay_ms)
  write_fields(led, record.forget, settle.field, record_bytes(record), bucket_field, bucket)
  call('DEL', KEYS[k + HOLD_KEY])
  write_corrected(led)
  save_ledger(led)
  return answer_remembered(led, { state = STATE_RELEASED, plan = record.plan }, record.claims)
end

return each(release, 4, 1)
