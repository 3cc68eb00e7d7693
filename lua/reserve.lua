#!lua
-- reserve: holds what an event may cost, in every limit group that it matches, or in none.
--
-- KEYS: state, memory 1, memory 2, hold
-- ARGV: reserve_call
--       the plan's message
-- Answers: answer, stale, fault
-- uses: base formats each plan match price ledger windows memory deadlines save record answer begin life subscription in_force decide

-- The answer to a retry.
local function replay(led, record)
  local named = {
    state = state_of(record, led.time), replayed = true, suffix = record.suffix, plan = record.plan, deadline = record.deadline,
  }
  return answer_remembered(led, named, record.claims)
end

local function reserve(k, a)
  local asked = read_reserve_call(ARGV[a + 1])
  local led, failed = begin(k)
  if not led then return failed end

  local record, reason = recall(led, asked, HELD)
  if record == false then return fault(reason) end
  if record then return replay(led, record) end

  local plan, other, has_changed = plan_in_force(led, asked, ARGV[a + 2])
  if not plan then return other end

  local claims
  claims, other = assess(led, plan, asked)
  if not claims then return other end
  local is_allowed = claims.all_fit
  if is_allowed then
    if claims.overflow then return fault('OUT_OF_RANGE', claims.overflow, '', plan.digest) end
    if led.live >= MOST_HOLDS then return fault('TOO_MANY_HOLDS') end
  end

  -- All checks are done: from here on, writes.
  if not is_allowed then
    local denial = answer_denied({ outcome = LIMIT_REACHED, plan = plan.digest, retry_after_ms = retry_after(led, claims) }, claims)
    save_due(led, has_changed)
    return denial
  end
  for i = 1, #claims do
    local window = claims[i].window
    window.held = window.held + claims[i].charge
  end
  local deadline = ceil((led.time + asked.ttl_ms) / TENTH_MS) * TENTH_MS
  local forget_at = deadline + asked.settlement_ms
  local made = new_record(led, asked, HELD, plan.digest, claims, forget_at)
  local parts
  if asked.on_expiry == COUNTS_UP then
    begin_life(made)
    made.on_expiry = COUNTS_UP
    parts = parts_of_life(made)
    -- Versions that do not know of it would give back what is to count.
    if led.format ~= WIDE_FORMAT then unfold_arranged(led) end
    led.format = WIDE_FORMAT
  else
    parts = parts_of(claims)
  end
  local is_paged, bucket_field, bucket = add_deadline(led, deadline, parts)
  made.paged, made.deadline, made.what, made.quantities = is_paged and 1 or 0, deadline, asked.what, asked.quantities
  write_fields(led, forget_at, asked.field, record_bytes(made), is_paged and bucket_field, bucket)
  -- For people who look with redis-cli; no script reads it.
  call('SET', KEYS[k + HOLD_KEY], claims.name, 'PX', format_text('%d', deadline - led.time))
  write_corrected(led)
  save_ledger(led)
  return answer_assessed({ state = STATE_HELD, suffix = asked.suffix, plan = plan.digest, deadline = deadline }, claims)
end

return each(reserve, 4, 2)
