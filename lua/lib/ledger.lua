-- ledger: a user's counters and clock, and the windows that they belong to. Needs base.
--
-- The ledger key holds what LEDGER_FORMAT says: time, live holds, next due, next forgotten, memory until, expiry of the key, windows
-- opened, plan, number of groups. For each group follow its id and its windows, as GROUP_FORMAT and WINDOW_FORMAT say. In the script,
-- `groups` maps the id of a group to the list of its kept windows. The first of them is the one that was opened or entered last.
--
-- A window is what its unit, period, kind of anchor and start make it (SPEC section 5, "identity of a window"). An open one stands
-- until its end, whatever other windows of the same group come and go (SELF-CONTAINED). Claims know a window by its number, which no
-- other window of the user ever has.

local LEDGER_FORMAT = '<I6I2I7I7I7I7I4Bc0H'

-- Frame, kept until, used, held, number, and whether another window of the group follows. The id of the group comes before the first.
local WINDOW_FORMAT = '<c22I7I7I7I4B'
local GROUP_FORMAT = '<Bc0c22I7I7I7I4B'

-- Unit, period, anchor, start and end: what a window is, and what a compiled group would make it. Start and end alone are its span.
-- The anchor of calendar windows is -1.
local FRAME_FORMAT = '<BBi7I6I7'
local SPAN_FORMAT = '<I6I7'
local SPAN_FROM, SPAN_TO = 10, 22

-- A window in the script. What its frame says is there once `whole` has been asked for it.
local FRAME, KEPT, USED, HELD, NUMBER, UNIT, PERIOD, ANCHOR, START, END = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10

-- A compiled group: what the catalog says, with the windows at the time of compiling. G_TERMS are what answers say of the group.
-- G_AROUND are the span of the window before the current one, and the end of the one after it: until then somebody may ask for
-- the current one.
local G_ID, G_UNIT, G_QUOTA, G_HARD, G_START, G_END, G_FRAME, G_AROUND, G_TERMS, G_RULES = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10
local AROUND_FORMAT = '<I6I7I7'

local function whole(w)
  if not w[END] then w[UNIT], w[PERIOD], w[ANCHOR], w[START], w[END] = unpack_struct(FRAME_FORMAT, w[FRAME]) end
  return w
end

-- Redis's time in milliseconds. Calls that travel together have the same time.
local function clock_of_redis()
  if not redis_time then
    local clock = call('TIME')
    redis_time = clock[1] * 1000 + floor(clock[2] / 1000)
  end
  return redis_time
end

-- By how much a ledger may be ahead of Redis. Time that is further ahead was wrong.
local MOST_AHEAD = 300000

-- At most this many windows of one group are kept.
local MOST_WINDOWS = 8

-- A clock that jumps ahead makes Redis expire ledgers early. So they live this much longer than what needs them (7 days), and twice as
-- long as their windows are still to last.
local SLACK = 604800000

-- ONE-CLOCK: Redis's time, which for this user never runs backwards, unless the ledger's time was wrong. Returns the ledger and Redis's
-- own time. What is kept no longer is left out.
local function open_ledger(key, packed)
  local redis_now = clock_of_redis()
  if not packed then
    return {
      key = key, time = redis_now, live = 0, due = NEVER, forget = NEVER, memory = 0, expires = 0, opened = 0, plan = '',
      groups = {},
    }, redis_now
  end
  local stored_time, live, due, forget, memory, expires, opened, plan, count, at = unpack_struct(LEDGER_FORMAT, packed)
  local was_wrong = stored_time > redis_now + MOST_AHEAD
  local time = was_wrong and redis_now or max(stored_time, redis_now)
  local groups = {}
  for _ = 1, count do
    local id, frame, kept, used, held, number, more, next_at = unpack_struct(GROUP_FORMAT, packed, at)
    local windows = kept > time and { { frame, kept, used, held, number } } or {}
    while more == 1 do
      frame, kept, used, held, number, more, next_at = unpack_struct(WINDOW_FORMAT, packed, next_at)
      if kept > time then windows[#windows + 1] = { frame, kept, used, held, number } end
    end
    at = next_at
    if windows[1] then groups[id] = windows end
  end
  return {
    key = key, time = time, was_wrong = was_wrong, live = live, due = due, forget = forget, memory = memory, expires = expires,
    opened = opened, plan = plan, groups = groups,
  }, redis_now
end

-- Writes the ledger, to expire some time after the last thing that needs it; never, if a lifetime group is in it.
local function save_ledger(led)
  local now, last = led.time, led.memory
  local parts, count = {}, 0
  for id, windows in pairs(led.groups) do
    count = count + 1
    local w = windows[1]
    if w[KEPT] > last then last = w[KEPT] end
    parts[#parts + 1] = pack_struct(GROUP_FORMAT, #id, id, w[FRAME], w[KEPT], w[USED], w[HELD], w[NUMBER], windows[2] and 1 or 0)
    for i = 2, #windows do
      w = windows[i]
      if w[KEPT] > last then last = w[KEPT] end
      parts[#parts + 1] = pack_struct(WINDOW_FORMAT, w[FRAME], w[KEPT], w[USED], w[HELD], w[NUMBER], windows[i + 1] and 1 or 0)
    end
  end
  -- The expiry only moves where it has to, as setting it costs more than the value.
  local expires, least = led.expires, max(last, now) + SLACK
  if last == NEVER then
    expires = NEVER
  elseif expires < least or expires == NEVER then
    expires = least + max(last - now, 0)
  end
  local packed = pack_struct(LEDGER_FORMAT, now, led.live, led.due, led.forget, led.memory, expires, led.opened, #led.plan,
    led.plan, count) .. concat(parts)
  if expires == NEVER then
    call('SET', led.key, packed)
  elseif expires == led.expires then
    call('SET', led.key, packed, 'KEEPTTL')
  else
    call('SET', led.key, packed, 'PXAT', expires)
  end
  if led.was_wrong then corrected_clocks = (corrected_clocks or 0) + 1 end
end

-- A window that starts later was opened by a clock that was wrong, and is set aside until then.
local function is_open(led, w)
  return w[START] <= led.time and led.time < w[END]
end

-- Replaces the group's windows.
local function set_windows(led, id, windows)
  -- What `groups` was before a window was opened; see `undo_windows`.
  led.before = led.before or {}
  if led.before[id] == nil then led.before[id] = led.groups[id] or false end
  led.groups[id] = windows
end

-- A denied call changes nothing, and so leaves no window open that was not.
local function undo_windows(led)
  for id, windows in pairs(led.before or {}) do led.groups[id] = windows or nil end
end

-- Whether the window is of the kind of the compiled group: unit, period, and calendar or anchor. Nil if it is of another unit or period,
-- false if only the kind of anchor differs.
local function is_of_kind(w, unit, period, anchor)
  if whole(w)[UNIT] ~= unit or w[PERIOD] ~= period then return nil end
  return (w[ANCHOR] >= 0) == (anchor >= 0)
end

-- The group's own window, if one is open: of its kind, and counted from its anchor, or from another one to the same start.
local function own_window(led, group)
  local unit, period, anchor = unpack_struct(FRAME_FORMAT, group[G_FRAME])
  for _, w in ipairs(led.groups[group[G_ID]]) do
    if is_of_kind(w, unit, period, anchor) and is_open(led, w) and (w[ANCHOR] == anchor or w[START] == group[G_START]) then
      return w
    end
  end
end

-- The window in force of this unit and period: of those that have begun, the last one, if it is open. And whether it is of the group's
-- kind of anchor.
local function window_in_force(led, group)
  local unit, period, anchor = unpack_struct(FRAME_FORMAT, group[G_FRAME])
  for _, w in ipairs(led.groups[group[G_ID]]) do
    local same_kind = is_of_kind(w, unit, period, anchor)
    if same_kind ~= nil and w[START] <= led.time then return led.time < w[END] and w or nil, same_kind end
  end
end

-- The open window that stands although its group has another kind of anchor now: a catalog edit of the anchor waits for its end.
local function standing_window(led, group)
  local w, same_kind = window_in_force(led, group)
  return same_kind == false and w or nil
end

-- `first`, and then the group's other windows. Of those that a moved anchor has left behind, only the last one is kept; of all, only
-- MOST_WINDOWS: the one that ends first goes first.
local function windows_after(led, group, first)
  local unit, period, anchor = unpack_struct(FRAME_FORMAT, group[G_FRAME])
  local windows, left_behind = { first }, false
  for _, w in ipairs(led.groups[group[G_ID]] or {}) do
    local is_left = anchor >= 0 and is_of_kind(w, unit, period, anchor) and w[ANCHOR] ~= anchor
    if w ~= first and not (is_left and left_behind) then windows[#windows + 1] = w end
    if w ~= first and is_left then left_behind = true end
  end
  if #windows > MOST_WINDOWS then
    local earliest = 2
    for i = 3, #windows do
      if whole(windows[i])[END] < whole(windows[earliest])[END] then earliest = i end
    end
    table.remove(windows, earliest)
  end
  return windows
end

-- Opens the compiled window. Nil if that is not current: compile again.
local function open_window(led, group)
  local now = led.time
  local start, ends, frame = group[G_START], group[G_END], group[G_FRAME]
  if now < start or now >= ends then return nil end
  local unit, period, anchor = unpack_struct(FRAME_FORMAT, frame)
  for _, w in ipairs(led.groups[group[G_ID]] or {}) do
    local same_kind = is_of_kind(w, unit, period, anchor)
    local is_left = same_kind and w[ANCHOR] ~= anchor
    -- It starts no earlier than the one before it ended, although another catalog or time-zone database puts the boundary elsewhere. One that
    -- a moved anchor has left behind is not before it: the new windows are counted as the anchor says.
    if same_kind ~= nil and not is_left and w[END] <= now and w[END] > start then start = w[END] end
  end
  if start ~= group[G_START] then frame = pack_struct(FRAME_FORMAT, unit, period, anchor, start, ends) end
  local _, _, kept = unpack_struct(AROUND_FORMAT, group[G_AROUND])
  led.opened = led.opened + 1
  local w = { frame, kept, 0, 0, led.opened }
  set_windows(led, group[G_ID], windows_after(led, group, w))
  return w
end

-- The group's window at the user's time, opened if it is a new one; nil: compile again.
local function current_window(led, group)
  local windows = led.groups[group[G_ID]]
  if not windows then return open_window(led, group) end
  -- Nearly always it is just the one that was compiled.
  local w = windows[1]
  if w[FRAME] == group[G_FRAME] and led.time >= group[G_START] and led.time < group[G_END] then return w end
  return own_window(led, group) or standing_window(led, group) or open_window(led, group)
end

-- The window of this number, or nil if it is kept no longer.
local function kept_window(led, id, number)
  local windows = led.groups[id]
  if not windows then return nil end
  for i = 1, #windows do
    if windows[i][NUMBER] == number then return windows[i] end
  end
end
