#!lua flags=allow-oom
-- release: gives a reservation back.
--
-- KEYS: state, memory 1, memory 2, hold
-- ARGV: settle_call
-- Answers: answer, fault, committed_otherwise
-- uses: base formats each price ledger windows memory deadlines save record answer begin life

local function release(k, a)
  local settle = read_settle_call(ARGV[a + 1])
  local led, failed = begin(k)
  if not led then return failed end
  local now = led.time
  local record, reason = load_reservation(led, settle)
  if not record then return fault(reason) end

  local state = state_of(record, now)
  if state == STATE_COMMITTED then return committed_otherwise(record) end
  local has_life, is_short = record.format == LIVING_FORMAT, false
  local has_counted = has_life and state == STATE_EXPIRED and record.on_expiry == COUNTS_UP
  if state ~= STATE_HELD and not has_counted then
    return answer_remembered(led, { state = state, replayed = state == STATE_RELEASED, plan = record.plan }, record.claims)
  end

  -- All checks are done: from here on, writes.
  local bucket_field, bucket
  if state == STATE_HELD then bucket_field, bucket = end_hold(led, record) end
  if has_counted then
    -- The amounts of partial commits stay; only what the deadline has counted on top of them is taken back.
    local amounts = {}
    for i, claim in ipairs(record.claims) do amounts[i] = claim.committed end
    is_short = count_finally(led, record, amounts, state)
  elseif has_life then
    lock_counted(led, record, state)
  end
  record.state = RELEASED
  record.forget = max(record.forget, now + settle.replay_ms)
  write_fields(led, record.forget, settle.field, record_bytes(record), bucket_field, bucket)
  call('DEL', KEYS[k + HOLD_KEY])
  write_corrected(led)
  save_ledger(led)
  return answer_remembered(led, { state = STATE_RELEASED, plan = record.plan }, record.claims, nil, is_short and 'unapplied')
end

return each(release, 4, 1)
