-- ledger: a user's counters and clock, and the windows they belong to. Needs base.
--
-- The ledger key holds { time, live holds, next due, next forgotten, memory until, plan, groups, windows opened }. `groups` maps
-- a group's id to { current window, previous window or false }. The current one stands until its end, whatever a replica has
-- compiled (SELF-CONTAINED); the previous one is kept as well.
--
-- A window is known by its number, which no other window of the user ever has: a window with the same bounds that is opened
-- again, say after two plan changes, must not take back what an earlier one held.

local UNIT, PERIOD, ANCHOR, START, END, KEPT, USED, HELD, NUMBER = 1, 2, 3, 4, 5, 6, 7, 8, 9

-- A compiled group: what the catalog says, with the windows at the time of compiling. `kept` is the end of the window
-- after the current one: until then somebody may ask for the current one.
local G_ID, G_LABEL, G_UNIT, G_QUOTA, G_HARD, G_PERIOD, G_ANCHOR = 1, 2, 3, 4, 5, 6, 7
local G_START, G_END, G_KEPT, G_P_START, G_P_END, G_RULES = 8, 9, 10, 11, 12, 13

-- Redis's own time; the same for all calls that travel together.
local redis_time

-- ONE-CLOCK: Redis's time, which for this user never runs backwards. Returns the ledger and Redis's own time.
local function open_ledger(packed)
  local led
  if packed then
    local v = unpack_message(packed)
    led = {
      time = v[1], live = v[2], due = v[3], forget = v[4], memory = v[5], plan = v[6], groups = v[7], opened = v[8],
    }
  else
    led = { time = 0, live = 0, due = NEVER, forget = NEVER, memory = 0, plan = '', groups = {}, opened = 0 }
  end
  -- What `groups` was where a window was opened since; see `undo_windows`.
  led.before = {}
  if not redis_time then
    local clock = call('TIME')
    redis_time = clock[1] * 1000 + floor(clock[2] / 1000)
  end
  if redis_time > led.time then led.time = redis_time end
  return led, redis_time
end

-- Writes the ledger, to expire a minute after the last thing that needs it; never, if a lifetime group is in it.
local function save_ledger(key, led)
  local now, last = led.time, led.memory
  for id, pair in pairs(led.groups) do
    if pair[2] and pair[2][KEPT] <= now then pair[2] = false end
    if pair[1][KEPT] <= now and not pair[2] then
      led.groups[id] = nil
    else
      last = math.max(last, pair[1][KEPT], pair[2] and pair[2][KEPT] or 0)
    end
  end
  local packed = pack({ now, led.live, led.due, led.forget, led.memory, led.plan, led.groups, led.opened })
  if last == NEVER then
    call('SET', key, packed)
  else
    if last < now then last = now end
    call('SET', key, packed, 'PXAT', last + 60000)
  end
end

-- Whether a window of the group is kept: what is kept no longer is as good as gone, written or not.
local function has_window(led, id)
  local pair = led.groups[id]
  return pair and (led.time < pair[1][KEPT] or (pair[2] and led.time < pair[2][KEPT]))
end

-- Whether the window is one of the group's, and open.
local function is_open(led, w, group)
  return w and w[UNIT] == group[G_UNIT] and w[PERIOD] == group[G_PERIOD] and led.time < w[END]
end

-- Makes it the current one of the group.
local function set_windows(led, id, current, previous)
  if led.before[id] == nil then led.before[id] = led.groups[id] or false end
  led.groups[id] = { current, previous }
  return current
end

-- A denied call changes nothing, and so leaves no window open that was not.
local function undo_windows(led)
  for id, pair in pairs(led.before) do led.groups[id] = pair or nil end
end

-- Opens the compiled window. Nil if that is not current: compile again.
local function open_window(led, group)
  local now = led.time
  local start, ends = group[G_START], group[G_END]
  if now < start or now >= ends then return nil end
  local pair = led.groups[group[G_ID]]
  local before, previous = pair and pair[1], false
  if before then
    local ended = now >= before[END]
    local same = before[UNIT] == group[G_UNIT] and before[PERIOD] == group[G_PERIOD]
    -- Another time-zone database may put the boundary elsewhere; windows of one period still do not overlap.
    if ended and same and before[END] > start then start = before[END] end
    if not ended or before[END] > group[G_P_START] then previous = before end
  end
  led.opened = led.opened + 1
  local w = { group[G_UNIT], group[G_PERIOD], group[G_ANCHOR], start, ends, group[G_KEPT], 0, 0, led.opened }
  return set_windows(led, group[G_ID], w, previous)
end

-- Makes the previous window the current one, where that is still open: it was replaced before its end, by a replica with another
-- catalog or by another plan, and goes on with what it has counted and holds. One of another anchor is no way back: the
-- subscription has left it.
local function go_back(led, pair, group)
  if not is_open(led, pair[2], group) or pair[2][ANCHOR] ~= group[G_ANCHOR] then return nil end
  return set_windows(led, group[G_ID], pair[2], pair[1])
end

-- The group's window at the user's time, opened if it is a new one; nil: compile again.
local function current_window(led, group)
  local pair = led.groups[group[G_ID]]
  if pair then
    if is_open(led, pair[1], group) then return pair[1] end
    local w = go_back(led, pair, group)
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
