#!lua flags=no-writes
-- usage: a user's standing in every group of the plan, as if everything due had been written.
--
-- KEYS: subscription, ledger, memory, agenda
-- ARGV: call { revision, ended, at ms or -1 }; compiled plan, 'none' or 'unknown'
-- Answers: stale { now, redis time, subscription }; fault { reason, group, name }; usage { rows }
-- uses: base ledger record agenda report subscription

local function usage(k, a)
  local subscription_key, ledger_key, memory_key, agenda_key = unpack(KEYS, k + 1, k + 4)
  local _, revision, ended, at = unpack_some(ARGV[a + 1], 3, 1)
  local plan = plan_of(ARGV[a + 2])

  local stored = call('MGET', subscription_key, ledger_key)
  local led, redis_time = open_ledger(ledger_key, stored[2])
  give_back_due(led, agenda_key, memory_key)

  if not check_subscription(led, stored[1], revision, ended, plan) then return stale(led, redis_time, stored[1]) end
  if ARGV[a + 2] == 'unknown' then return fault('PLAN_UNKNOWN') end
  if not plan then return pack({ usage = { '' } }) end

  -- The row of an earlier window than `w`, if `at` is in one: as stored, or with nothing used where nothing was stored.
  local function earlier_row(group, w)
    for _, other in ipairs(led.groups[group[G_ID]]) do
      local of_kind = is_of_kind(other, w[UNIT], w[PERIOD], w[ANCHOR])
      if other ~= w and of_kind and at >= other[START] and at < other[END] then return group_row(group, other, 0) end
    end
    local start, ends = unpack_struct(SPAN_FORMAT, group[G_AROUND])
    if at < start or at >= ends or at >= w[START] then return '' end
    local frame = pack_struct(FRAME_FORMAT, w[UNIT], w[PERIOD], w[ANCHOR], start, ends)
    return group_row(group, { frame, 0, 0, 0, 0 }, 0)
  end

  local rows = {}
  local groups = plan[P_GROUPS]
  for i = 1, #groups do
    local group = groups[i]
    local w = current_window(led, group)
    if not w then return stale(led, redis_time, stored[1]) end
    if at < 0 or (at >= whole(w)[START] and at < w[END]) then
      rows[#rows + 1] = group_row(group, w, 0)
    elseif at >= w[START] then
      rows[#rows + 1] = ''
    elseif led.time < group[G_START] or led.time >= group[G_END] then
      -- ONE-CLOCK: an open window stands whatever was compiled, but the one before it would be that of another time.
      return stale(led, redis_time, stored[1])
    else
      rows[#rows + 1] = earlier_row(group, w)
    end
  end
  return pack({ usage = { concat(rows) } })
end

return each(usage, 4, 2)
