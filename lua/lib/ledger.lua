-- ledger: a user's counters and clock, and the windows they belong to. Needs base.
--
-- The ledger key holds what LEDGER_FORMAT says: time, live holds, next due, next forgotten, memory until, expiry of the key, windows opened,
-- plan, number of groups; and for each group what GROUP_FORMAT says, its id and its current window, and then the previous one as
-- WINDOW_FORMAT says if there is one. In the script, `groups` maps a group's id to { current window, previous window or false }. The current one stands
-- until its end, whatever a replica has compiled (SELF-CONTAINED); the previous one is kept as well.
--
-- A window is known by its number, which no other window of the user ever has: a window with the same bounds that is opened
-- again, say after two plan changes, must not take back what an earlier one held.

local LEDGER_FORMAT = '<I6I2I7I7I7I7I4Bc0H'

-- Frame, kept until, used, held, number, and whether another one follows. The id of the group comes before the first.
local WINDOW_FORMAT = '<c22I7I7I7I4B'
local GROUP_FORMAT = '<Bc0c22I7I7I7I4B'

-- Unit, period, anchor, start and end: what a window is, and what a compiled group would make it. Start and end alone are its span.
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

-- ONE-CLOCK: Redis's time, which for this user never runs backwards. Returns the ledger and Redis's own time.
local function open_ledger(key, packed)
  local redis_now = clock_of_redis()
  if not packed then
    return {
      key = key, time = redis_now, live = 0, due = NEVER, forget = NEVER, memory = 0, expires = 0, opened = 0, plan = '',
      groups = {},
    }, redis_now
  end
  local time, live, due, forget, memory, expires, opened, plan, count, at = unpack_struct(LEDGER_FORMAT, packed)
  local groups = {}
  for _ = 1, count do
    local id, frame, kept, used, held, number, more, next_at = unpack_struct(GROUP_FORMAT, packed, at)
    local current, previous = { frame, kept, used, held, number }, false
    if more == 1 then
      frame, kept, used, held, number, more, next_at = unpack_struct(WINDOW_FORMAT, packed, next_at)
      previous = { frame, kept, used, held, number }
    end
    at = next_at
    groups[id] = { current, previous }
  end
  return {
    key = key, time = max(time, redis_now), live = live, due = due, forget = forget, memory = memory, expires = expires,
    opened = opened, plan = plan, groups = groups,
  }, redis_now
end

-- Writes the ledger, to expire a minute after the last thing that needs it; never, if a lifetime group is in it.
local function save_ledger(led)
  local key, now, last = led.key, led.time, led.memory
  local parts, count = {}, 0
  for id, pair in pairs(led.groups) do
    local current, previous = pair[1], pair[2]
    if previous and previous[KEPT] <= now then previous = false end
    if previous or current[KEPT] > now then
      count = count + 1
      if current[KEPT] > last then last = current[KEPT] end
      parts[#parts + 1] = pack_struct(GROUP_FORMAT, #id, id, current[FRAME], current[KEPT], current[USED], current[HELD],
        current[NUMBER], previous and 1 or 0)
      if previous then
        if previous[KEPT] > last then last = previous[KEPT] end
        parts[#parts + 1] = pack_struct(WINDOW_FORMAT, previous[FRAME], previous[KEPT], previous[USED], previous[HELD],
          previous[NUMBER], 0)
      end
    end
  end
  local expires = last == NEVER and NEVER or max(last, now) + 60000
  local packed = pack_struct(LEDGER_FORMAT, now, led.live, led.due, led.forget, led.memory, expires, led.opened, #led.plan,
    led.plan, count) .. concat(parts)
  if expires == NEVER then
    call('SET', key, packed)
  elseif expires == led.expires then
    call('SET', key, packed, 'KEEPTTL')
  else
    call('SET', key, packed, 'PXAT', expires)
  end
end

-- Whether a window of the group is kept: what is kept no longer is as good as gone, written or not.
local function has_window(led, id)
  local pair = led.groups[id]
  return pair and (led.time < pair[1][KEPT] or (pair[2] and led.time < pair[2][KEPT]))
end

-- Whether the window is one of the group's, and open.
local function is_open(led, w, group)
  if not w then return false end
  local _, period = unpack_struct('<BB', group[G_FRAME])
  return whole(w)[UNIT] == group[G_UNIT] and w[PERIOD] == period and led.time < w[END]
end

-- Makes it the current one of the group.
local function set_windows(led, id, current, previous)
  -- What `groups` was where a window was opened since; see `undo_windows`.
  led.before = led.before or {}
  if led.before[id] == nil then led.before[id] = led.groups[id] or false end
  led.groups[id] = { current, previous }
  return current
end

-- A denied call changes nothing, and so leaves no window open that was not.
local function undo_windows(led)
  for id, pair in pairs(led.before or {}) do led.groups[id] = pair or nil end
end

-- Opens the compiled window. Nil if that is not current: compile again.
local function open_window(led, group)
  local now = led.time
  local start, ends = group[G_START], group[G_END]
  if now < start or now >= ends then return nil end
  local frame = group[G_FRAME]
  local before_start, _, kept = unpack_struct(AROUND_FORMAT, group[G_AROUND])
  local pair = led.groups[group[G_ID]]
  local before, previous = pair and whole(pair[1]), false
  if before then
    local unit, period, anchor = unpack_struct(FRAME_FORMAT, frame)
    local ended = now >= before[END]
    local same = before[UNIT] == unit and before[PERIOD] == period
    -- Another time-zone database may put the boundary elsewhere; windows of one period still do not overlap.
    if ended and same and before[END] > start then
      start = before[END]
      frame = pack_struct(FRAME_FORMAT, unit, period, anchor, start, ends)
    end
    if not ended or before[END] > before_start then previous = before end
  end
  led.opened = led.opened + 1
  return set_windows(led, group[G_ID], { frame, kept, 0, 0, led.opened }, previous)
end

-- Makes the previous window the current one, where that is still open: it was replaced before its end, by a replica with another
-- catalog or by another plan, and goes on with what it has counted and holds. One of another anchor is no way back: the
-- subscription has left it.
local function go_back(led, pair, group)
  local _, _, anchor = unpack_struct(FRAME_FORMAT, group[G_FRAME])
  if not is_open(led, pair[2], group) or pair[2][ANCHOR] ~= anchor then return nil end
  return set_windows(led, group[G_ID], pair[2], pair[1])
end

-- The group's window at the user's time, opened if it is a new one; nil: compile again.
local function current_window(led, group)
  local pair = led.groups[group[G_ID]]
  if pair then
    local w = pair[1]
    -- Nearly always it is just the one that was compiled.
    if w[FRAME] == group[G_FRAME] and led.time < group[G_END] then return w end
    if is_open(led, w, group) then return w end
    w = go_back(led, pair, group)
    if w then return w end
  end
  return open_window(led, group)
end

-- The window of this number, or nil if it is kept no longer: only the current one and the one before it are, and each only until
-- the end of the one after it.
local function kept_window(led, id, number)
  local pair = led.groups[id]
  if not pair then return nil end
  local w = pair[1][NUMBER] == number and pair[1] or pair[2]
  if w and w[NUMBER] == number and led.time < w[KEPT] then return w end
  return nil
end
