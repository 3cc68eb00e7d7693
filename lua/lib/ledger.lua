-- ledger: an owner's state while a script runs: its clock, counters and what else decides. Needs base, formats.
--
-- The value is what formats.toml says: head, memory, terms, schedules, counters, deadlines, windows, subscription, and whatever a later
-- version has added. One SET writes it, as the last write of a script: what that SET does not say did not happen.
--
-- A ledger in the script is its head, with `memory`, `terms`, `schedule_bytes`, `counters` (four numbers each),
-- `deadlines` and `tail` (bytes from the windows on). The counters are in the order of the plan that the state was last used with. While
-- that plan's windows are current, a call needs nothing of the tail. `unfold` takes it apart where it does (see windows).

-- Positions in `times` and `counters`.
local SCHEDULE_WIDTH, COUNTER_WIDTH, IDLE_WIDTH = 4, 4, 3

-- What a schedule takes, and the anchor and the span in it.
local SCHEDULE_BYTES, ANCHOR_BYTES, SPAN_BYTES = 24, 6, 12

-- A clock that jumps ahead makes Redis expire states early. So they live this much longer than what needs them (7 days), and twice as
-- long as that is still to last.
local SLACK = 604800000

-- The windows that the call has asked for, by the place of their counters and in the order of asking. The next call uses their tables
-- again, because making a table costs more than using it.
local windows_at, asked_windows = {}, {}

-- What is known of the fields of the memories: a value, or false if there is none.
local known = {}

-- The number of this ledger among those that were opened. It marks the windows of this call.
local opening = 0

local function new_ledger(key, redis_now)
  return {
    key = key, format = FORMAT, subscribed = 0, young = 0, time = redis_now, stored_time = 0, redis_now = redis_now, expires = NEVER,
    current_until = 0, basis = ZEROS_8, opened = 0, live = 0, groups = 0, schedules = 0, pages = 0, plan = '', schedule_bytes = '',
    counters = {}, deadlines = '', tail = '\0\0\0\0\0\0', asked = 0, lapsed = 0,
  }
end

-- The counters while nothing is held, as four numbers each.
local function idle_counters(led, packed, at)
  local idle, counters = nil, {}
  idle, at = read_flat(IDLE_COUNTER_FORMAT, IDLE_WIDTH, led.groups, packed, at)
  for i = 0, led.groups - 1 do
    local from, to = i * IDLE_WIDTH, i * COUNTER_WIDTH
    counters[to + 1], counters[to + 2], counters[to + 3], counters[to + 4] = idle[from + 1], idle[from + 2], idle[from + 3], 0
  end
  return counters, at
end

-- ONE-CLOCK: the ledger's time is Redis's, which for this owner never runs backwards, unless the stored time was wrong. Nil if a later
-- version has written the state.
local function open_ledger(key, packed)
  local redis_now = clock_of_redis()
  opening = opening + 1
  for name in pairs(known) do known[name] = nil end
  if not packed then return new_ledger(key, redis_now) end
  local format = byte(packed)
  if format ~= FORMAT and format ~= WIDE_FORMAT then return nil end
  local led, at = read_head(packed)
  local stored_time = led.time
  led.key, led.redis_now, led.stored_time, led.stored_expires = key, redis_now, stored_time, led.expires
  if stored_time > redis_now + MOST_AHEAD_MS then
    led.was_wrong, led.time = true, redis_now
    -- Which windows are open is another question now.
    led.current_until = 0
  elseif redis_now > stored_time then
    led.time = redis_now
  end
  if led.young > 0 then led.memory, at = read_memory(packed, at) end
  if led.subscribed > 0 then led.terms, at = read_terms(packed, at) end
  local counters_at = at + led.schedules * SCHEDULE_BYTES
  led.schedule_bytes = sub(packed, at, counters_at - 1)
  if led.live > 0 then
    led.counters, at = read_flat(COUNTER_FORMAT, COUNTER_WIDTH, led.groups, packed, counters_at)
  else
    led.counters, at = idle_counters(led, packed, counters_at)
  end
  local tail_at = at + led.deadlines
  led.deadlines, led.tail = sub(packed, at, tail_at - 1), sub(packed, tail_at)
  -- How many windows somebody has asked for, and how many holds have lapsed.
  led.asked, led.lapsed = 0, 0
  return led
end

-- Start and end of the window, as bytes.
local function span_of(window)
  if not window.span then window.span = pack_struct(SPAN_FORMAT, window.start, window.ends) end
  return window.span
end

-- The window with its start and end as numbers.
local function timed(window)
  if not window.ends then window.start, window.ends = unpack_struct(SPAN_FORMAT, window.span) end
  return window
end

-- The span of a schedule, from 1. Nearly always all windows have the same one.
local function span_at(led, schedule)
  if led.span_of == schedule then return led.span end
  local at = (schedule - 1) * SCHEDULE_BYTES + ANCHOR_BYTES
  led.span_of, led.span = schedule, sub(led.schedule_bytes, at + 1, at + SPAN_BYTES)
  return led.span
end

-- The window at this place, if the call has asked for it. Its table is not used again.
local function take_window(place)
  local window = windows_at[place]
  if not window or window.opening ~= opening then return nil end
  windows_at[place] = nil
  return window
end

-- The number of the window whose counter is at this place, if there is one.
local function number_at(led, place)
  return led.counters[(place - 1) * COUNTER_WIDTH + 1]
end

-- The window whose counter is at this place of the ones that are arranged; nil if none is open.
local function window_at(led, place)
  local window = windows_at[place]
  if window and window.opening == opening then return window end
  local counters, at = led.counters, (place - 1) * COUNTER_WIDTH
  local number = counters[at + 1]
  if not number or number == 0 then return nil end
  if not window then
    window = { place = place, opening = 0, number = 0, used = 0, held = 0, span = false, ends = false }
    windows_at[place] = window
  end
  window.opening, window.number, window.used, window.held = opening, number, counters[at + 3], counters[at + 4]
  window.span, window.ends = span_at(led, counters[at + 2]), false
  led.asked = led.asked + 1
  asked_windows[led.asked] = window
  return window
end

-- The counters that were asked for go back to where they came from.
local function put_counters(led)
  local counters = led.counters
  for i = 1, led.asked do
    local window = asked_windows[i]
    local at = (window.place - 1) * COUNTER_WIDTH
    counters[at + 3], counters[at + 4] = window.used, window.held
  end
end

local function counters_bytes(led)
  local groups, counters = led.groups, led.counters
  if led.live > 0 then return write_flat(COUNTER_FORMAT, COUNTER_WIDTH, groups, counters) end
  local idle = {}
  for i = 0, groups - 1 do
    local from, to = i * COUNTER_WIDTH, i * IDLE_WIDTH
    idle[to + 1], idle[to + 2], idle[to + 3] = counters[from + 1], counters[from + 2], counters[from + 3]
  end
  return write_flat(IDLE_COUNTER_FORMAT, IDLE_WIDTH, groups, idle)
end
