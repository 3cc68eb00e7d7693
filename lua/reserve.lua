#!lua
-- reserve: holds what an event may cost, in every limit group that it matches, or in none.
--
-- KEYS: state, memory 1, memory 2, hold
-- ARGV: basis, once, event, reserve_call
--       the plan's message
-- Answers: answer, stale, fault
-- uses: base formats each plan match price ledger windows memory deadlines save record answer begin subscription decide

-- The answer to a retry.
local function replay(led, record)
  local rows = claim_rows(led, record.claims)
  local state = state_of(record, led.time)
  return answer({ state = state, replayed = true, suffix = record.suffix, plan = record.plan, deadline = record.deadline }, rows)
end

-- Nothing is held. Only what has lapsed or ended meanwhile is written.
local function deny(led, claims, plan, has_changed)
  local wait_ms, rows = retry_after(led, claims), denied_rows(claims)
  if led.lapsed > 0 or has_changed then
    undo_windows(led)
    write_corrected(led)
    save_ledger(led)
  end
  return answer({ outcome = LIMIT_REACHED, plan = plan.digest, retry_after_ms = wait_ms }, rows)
end

local function reserve(k, a)
  local packed = ARGV[a + 1]
  local basis, at = read_basis(packed)
  local once, event, terms
  once, at = read_once(packed, at)
  event, at = read_event(packed, at)
  terms = read_reserve_call(packed, at)
  local led, failed = begin(k)
  if not led then return failed end

  local record = recall(led, once, false)
  if record == false then return fault('REQUEST_ID_REUSED') end
  if record then return replay(led, record) end

  local plan = basis.in_force == IN_FORCE and plan_of(basis.digest, ARGV[a + 2]) or nil
  local frames = plan and open_frames(basis.frames)
  local is_current, has_changed = check_subscription(led, basis, plan, frames)
  if not is_current then return stale(led) end
  if basis.in_force == UNKNOWN_PLAN then return fault('PLAN_UNKNOWN') end
  if not plan then return answer({ outcome = NO_SUBSCRIPTION }, {}) end

  local claims
  claims, failed = assess(led, plan, frames, event)
  if not claims then return failed or stale(led) end
  if #claims == 0 then return answer({ outcome = UNMATCHED, plan = plan.digest }, {}) end
  local is_allowed = all_fit(claims)
  if is_allowed then
    failed = overflow(claims, plan)
    if failed then return failed end
    if led.live >= MOST_HOLDS then return fault('TOO_MANY_HOLDS') end
  end

  -- All checks are done: from here on, writes.
  if not is_allowed then return deny(led, claims, plan, has_changed) end
  for i = 1, #claims do
    local window = claims[i].window
    window.held = window.held + claims[i].charge
  end
  local deadline = ceil((led.time + terms.ttl_ms) / TENTH) * TENTH
  local held = recorded(claims, frames)
  local is_paged, bucket_field, bucket = add_deadline(led, deadline, parts_of(held))
  local forget_at = deadline + terms.settlement_ms
  local made = {
    format = FORMAT, state = HELD, paged = is_paged and 1 or 0, epoch = led.memory and led.memory.epoch or 0, deadline = deadline,
    forget = forget_at, digest = once.digest, suffix = once.suffix, plan = plan.digest, what = event.what,
    quantities = event.quantities, settled = '', claims = held, rest = '',
  }
  local fields = { once.field, record_bytes(made) }
  if is_paged then fields[3], fields[4] = bucket_field, bucket end
  write_fields(led, fields, forget_at)
  -- For people who look with redis-cli; no script reads it.
  call('SET', KEYS[k + HOLD_KEY], claims.name, 'PX', deadline - led.time)
  write_corrected(led)
  save_ledger(led)
  return answer({ state = STATE_HELD, suffix = once.suffix, plan = plan.digest, deadline = deadline }, rows_of(claims))
end

return each(reserve, 4, 2)
