-- ledger: a user's counters and clock, and the windows they belong to. Needs base.
--
-- The ledger key holds { time, live holds, next due, next forgotten, memory until, plan, groups }. `groups` maps a group's
-- id to the array below. A window is known by its start and end. The one that is stored as current stands until its end,
-- whatever a replica has compiled (SELF-CONTAINED); the one before it is kept as well.

local UNIT, PERIOD, ANCHOR, START, END, KEPT, USED, HELD = 1, 2, 3, 4, 5, 6, 7, 8
local P_START, P_END, P_USED, P_HELD = 9, 10, 11, 12

-- A compiled group: what the catalog says, with the windows at the time of compiling. `kept` is the end of the window
-- after the current one: until then somebody may ask for the current one.
local G_ID, G_LABEL, G_UNIT, G_QUOTA, G_HARD, G_PERIOD, G_ANCHOR = 1, 2, 3, 4, 5, 6, 7
local G_START, G_END, G_KEPT, G_P_START, G_P_END, G_RULES = 8, 9, 10, 11, 12, 13

-- ONE-CLOCK: Redis's time, which for this user never runs backwards. Returns the ledger and Redis's own time.
local function open_ledger(packed)
  local led
  if packed then
    local v = unpack_message(packed)
    led = { time = v[1], live = v[2], due = v[3], forget = v[4], memory = v[5], plan = v[6], groups = v[7] }
  else
    led = { time = 0, live = 0, due = NEVER, forget = NEVER, memory = 0, plan = '', groups = {} }
  end
  local clock = call('TIME')
  local redis_time = clock[1] * 1000 + floor(clock[2] / 1000)
  if redis_time > led.time then led.time = redis_time end
  return led, redis_time
end

-- Writes the ledger, to expire a minute after the last thing that needs it; never, if a lifetime group is in it.
local function save_ledger(key, led)
  local now, last = led.time, led.memory
  for id, w in pairs(led.groups) do
    if w[KEPT] <= now then
      led.groups[id] = nil
    elseif w[KEPT] > last then
      last = w[KEPT]
    end
  end
  local packed = pack({ now, led.live, led.due, led.forget, led.memory, led.plan, led.groups })
  if last == NEVER then
    call('SET', key, packed)
  else
    if last < now then last = now end
    call('SET', key, packed, 'PXAT', last + 60000)
  end
end

-- Puts the compiled window in the place of `w` (which may be nil). Nil if the compiled window is not current: compile again.
local function open_window(led, group, w)
  local now = led.time
  local start, ends = group[G_START], group[G_END]
  if now < start or now >= ends then return nil end
  local fresh = { group[G_UNIT], group[G_PERIOD], group[G_ANCHOR], start, ends, group[G_KEPT], 0, 0, 0, 0, 0, 0 }
  if w and w[UNIT] == group[G_UNIT] then
    local ended = now >= w[END]
    -- Another time-zone database may put the boundary elsewhere; windows of one period still do not overlap.
    if ended and w[PERIOD] == group[G_PERIOD] and w[END] > start then fresh[START] = w[END] end
    if not ended or w[END] > group[G_P_START] then
      fresh[P_START], fresh[P_END], fresh[P_USED], fresh[P_HELD] = w[START], w[END], w[USED], w[HELD]
    end
  end
  led.groups[group[G_ID]] = fresh
  return fresh
end

-- The group's window at the user's time, opened if it is a new one; nil: compile again.
local function current_window(led, group)
  local w = led.groups[group[G_ID]]
  if w and w[UNIT] == group[G_UNIT] and led.time < w[END] then
    if w[PERIOD] == group[G_PERIOD] then return w end
    if w[START] == group[G_START] and w[END] == group[G_END] then
      w[PERIOD], w[KEPT] = group[G_PERIOD], group[G_KEPT]
      return w
    end
  end
  return open_window(led, group, w)
end

-- Where the window (start, ends) of a group keeps its counters: the group's array and the positions of used and held.
-- Nil if it is kept no longer: only the current window and the one before it are.
local function window_slot(led, id, unit, start, ends)
  local w = led.groups[id]
  if not w or w[UNIT] ~= unit then return nil end
  if w[START] == start and w[END] == ends then
    if led.time < w[KEPT] then return w, USED, HELD end
  elseif w[P_START] == start and w[P_END] == ends then
    if led.time < w[END] then return w, P_USED, P_HELD end
  end
  return nil
end
