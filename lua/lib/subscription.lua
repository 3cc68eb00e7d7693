-- subscription: which plan a user is on, and what entering another one does. Needs base, ledger, record, agenda.
--
-- The subscription key holds { revision, plan, start, end or 0, cycle anchor, fallen, overrides }. `fallen` names the default
-- plan once a script has seen that the subscription ended, and is '' before.

local S_REVISION, S_FALLEN = 1, 6

-- A compiled plan is { id, on_plan_change, groups }.
local P_ID, P_CHANGE, P_GROUPS = 1, 2, 3

local function stale(led, redis_time, packed)
  return pack({ stale = { led.time, redis_time, packed or '' } })
end

-- The group's own window when its plan is entered or its anchor moved, in front of all others; nil if none is open, and false if the
-- compiled one is not current.
local function entered_window(led, group)
  if led.time < group[G_START] or led.time >= group[G_END] then return false end
  if not led.groups[group[G_ID]] then return nil end
  local w = own_window(led, group)
  -- Unlike a catalog edit, this leaves the window in force behind, so that no replica goes on in it.
  if not w and window_in_force(led, group) then return open_window(led, group) end
  if w then
    local _, _, anchor = unpack_struct(FRAME_FORMAT, group[G_FRAME])
    if w[ANCHOR] ~= anchor then
      -- Counted from another anchor to the same start: it goes on, with its counters and its end.
      w[ANCHOR] = anchor
      w[FRAME] = pack_struct(FRAME_FORMAT, w[UNIT], w[PERIOD], anchor, w[START], w[END])
      -- It is kept until the end of the one after it, which is counted from the new anchor.
      local ends, _, _, after = group[G_END], unpack_struct(AROUND_FORMAT, group[G_AROUND])
      w[KEPT] = w[END] < ends and ends or after
    end
  end
  set_windows(led, group[G_ID], windows_after(led, group, w))
  return w
end

-- The counters of a user who enters the plan, or whose anchor moved. False: a window is not current, compile again.
local function enter_plan(led, plan, change)
  local groups = plan[P_GROUPS]
  for i = 1, #groups do
    local group = groups[i]
    local w = entered_window(led, group)
    if w == false then return false end
    if change == 'block' and group[G_QUOTA] >= 0 then
      w = w or open_window(led, group)
      -- TRUTH: what is used is never lowered.
      w[USED] = max(w[USED], group[G_QUOTA])
    elseif w and change == 'reset' then
      w[USED] = 0
    end
  end
  led.plan = plan[P_ID]
  led.before = nil
  return true
end

-- Whether a reservation is remembered, live or not.
local function remembers_reservation(led, memory_key, agenda_key)
  for _, field in ipairs(call('ZRANGEBYSCORE', agenda_key, '-inf', '(1e14')) do
    if load_record(led, memory_key, field) then return true end
  end
  local from = 0
  repeat
    local range = { '(' .. format('%d', FORGETTING + led.time), '+inf', 'LIMIT', from, CHUNK }
    local fields = call('ZRANGEBYSCORE', agenda_key, unpack(range))
    for _, field in ipairs(fields) do
      if sub(field, 1, 1) == 'r' then return true end
    end
    from = from + #fields
  until #fields < CHUNK
  return false
end

-- The plan that the ledger was last used with; '' where that has left nothing, which counts as no plan.
local function last_plan(led, memory_key, agenda_key)
  if led.plan == '' or next(led.groups) or remembers_reservation(led, memory_key, agenda_key) then return led.plan end
  return ''
end

-- Reads the subscription and compares it with the one that the call was compiled for: `revision` ('' for none) and whether
-- it had `ended`. An ended subscription falls to the default plan, once. Returns whether all of it is current, and the
-- subscription to write, if it changed.
local function check_subscription(led, packed, revision, ended, plan)
  if not packed then
    if plan and revision == '' then led.plan = plan[P_ID] end
    return revision == ''
  end
  -- What comes before the overrides, without the list that it is all in.
  local _, stored_revision, stored_plan, _, ends, _, fallen = unpack_some(packed, 6, 1)
  local has_ended = ends > 0 and led.time >= ends
  if stored_revision ~= revision or has_ended ~= ended then return false end
  if has_ended and plan and fallen == '' then
    if stored_plan ~= plan[P_ID] and not enter_plan(led, plan, plan[P_CHANGE]) then return false end
    local changed = unpack_message(packed)
    changed[S_FALLEN] = plan[P_ID]
    return true, changed
  end
  return true
end

local function write_subscription(key, sub)
  if sub then call('SET', key, pack(sub)) end
end
