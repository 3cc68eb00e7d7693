-- subscription: which plan a user is on, and what entering another one does. Needs base, ledger.
--
-- The subscription key holds { revision, plan, start, end or 0, cycle anchor, fallen, overrides }. `fallen` names the default
-- plan once a script has seen that the subscription ended, and is '' before.

local S_REVISION, S_FALLEN = 1, 6

-- A compiled plan is { id, on_plan_change, groups }.
local P_ID, P_CHANGE, P_GROUPS = 1, 2, 3

local function stale(led, redis_time, packed)
  return pack({ stale = { led.time, redis_time, packed or '' } })
end

-- The group's open window, by the group's anchor: unlike a catalog edit, a change of the subscription moves it. Nil: compile again.
local function realigned_window(led, group)
  local w = current_window(led, group)
  if not w then return nil end
  local _, _, anchor = unpack_struct(FRAME_FORMAT, group[G_FRAME])
  if whole(w)[ANCHOR] == anchor then return w end
  local pair = led.groups[group[G_ID]]
  local earlier = go_back(led, pair, group)
  if earlier then return earlier end
  if w[START] == group[G_START] and w[END] == group[G_END] then
    -- The same window by another anchor: it stays, with its holds, and starts again.
    local _, _, kept = unpack_struct(AROUND_FORMAT, group[G_AROUND])
    w[FRAME], w[ANCHOR], w[KEPT], w[USED] = group[G_FRAME], anchor, kept, 0
    return w
  end
  return open_window(led, group)
end

-- The counters of a user who enters the plan. False: a window is not current, compile again.
local function enter_plan(led, plan, change)
  local groups = plan[P_GROUPS]
  for i = 1, #groups do
    local group = groups[i]
    local full = change == 'block' and group[G_QUOTA] >= 0
    -- A group that has counted nothing yet needs no window before its first event, unless that is to be denied.
    if has_window(led, group[G_ID]) or full then
      local w = realigned_window(led, group)
      if not w then return false end
      if full then
        w[USED] = group[G_QUOTA]
      elseif change == 'reset' then
        w[USED] = 0
      end
    end
  end
  led.plan = plan[P_ID]
  led.before = nil
  return true
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
