#!lua
-- reset: takes back what was counted in the current windows of some groups. Holds stay.
--
-- KEYS: state, memory 1, memory 2
-- ARGV: reset_call
--       the plan's message
-- Answers: answer, stale, fault
-- uses: base formats each plan price ledger windows memory deadlines save record answer begin subscription in_force tracking

-- The groups that the call names, in the order of the plan; all if it names none. And an id that the plan does not have, or nil.
local function named_groups(plan, ids)
  if not ids[1] then return plan.groups end
  local groups, names = {}, {}
  for i = 1, #ids do names[ids[i]] = true end
  for _, group in ipairs(plan.groups) do
    if names[group.id] then groups[#groups + 1] = group end
    names[group.id] = nil
  end
  return groups, (next(names))
end

-- A claim of the group that charges nothing. Nil: compile again.
local function claim_of(led, plan, asked, group, quotas)
  local window = opened_window(led, plan, asked, group)
  if not window then return nil end
  return {
    place = group.place, window = window, number = window.number, span = shown_span(window), charge = 0, committed = 0, refunded = 0,
    own_quota = quotas and (quotas[group.place] or group.quota),
  }
end

local function reset(k, a)
  local asked = read_reset_call(ARGV[a + 1])
  local led, failed = begin(k)
  if not led then return failed end

  local record, reason = recall(led, asked, TRACKED)
  if record == false then return fault(reason) end

  local plan, other = plan_in_force(led, asked, ARGV[a + 2])
  if not plan then return other end

  local groups, unknown = named_groups(plan, unpack_message(asked.groups))
  -- ONCE: a retry succeeds also where the plan has lost a group since.
  if unknown and not record then return fault('GROUP_UNKNOWN', 0, unknown) end
  local claims, quotas, last = {}, own_quotas(asked), led.opened
  for i, group in ipairs(groups) do
    claims[i] = claim_of(led, plan, asked, group, quotas)
    if not claims[i] then return stale(led) end
  end
  local named = { replayed = record and true, plan = plan.digest }
  if record then return answer_assessed(named, claims) end

  -- All checks are done: from here on, writes.
  for _, claim in ipairs(claims) do
    if claim.number <= last then
      reset_window(led, claim.window)
    else
      -- In a window that is not open nothing was counted, and a reset does not open it.
      claim.number = 0
    end
  end
  local done = answer_assessed(named, claims)
  undo_windows(led)
  write_tracked(led, asked, plan.digest, claims, asked.replay_ms)
  return done
end

return each(reset, 3, 2)
