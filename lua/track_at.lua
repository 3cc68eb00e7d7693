#!lua
-- track_at: counts what has happened at a time, in each group's window of that time, whatever the limits say.
--
-- KEYS: state, memory 1, memory 2
-- ARGV: track_at_call
--       the plan's message
-- Answers: answer, stale, fault
-- uses: base formats each plan match price ledger windows memory deadlines save record answer begin subscription in_force decide tracking crossed

-- How far the clock of a caller may be ahead.
local MOST_FUTURE_MS = 60000

-- Stands for a window that is kept no longer, or that was never opened and is over.
local GONE = { number = 0, used = 0, held = 0, span = NO_SPAN }

-- When the event of the call happened.
local happened_at

-- The window that has the time in it: one of the group's own kind, or else of another kind of anchor.
local function window_with(led, group, frame, at)
  local found
  for _, window in ipairs(led.windows[group.id] or NOTHING) do
    local same_kind = is_of_kind(window, group, frame)
    if same_kind ~= nil and at >= window.start and at < window.ends then
      if same_kind then return window end
      found = found or window
    end
  end
  return found
end

-- Whether a window of the group has a part of the period before the current one.
local function has_part_of_previous(led, group, frame)
  for _, window in ipairs(led.windows[group.id] or NOTHING) do
    local has_part = window.start < frame.previous_ends and window.ends > frame.previous_start and not is_mark(window)
    if is_of_kind(window, group, frame) ~= nil and has_part then
      return true
    end
  end
  return false
end

-- Opens the window before the current one, in which nothing has happened so far.
local function open_previous(led, group, frame)
  local others = led.windows[group.id] or NOTHING
  if has_part_of_previous(led, group, frame) or count_windows(others) >= MOST_WINDOWS then return GONE end
  local window = put_window(led, group, frame, frame.previous_start, frame.previous_ends, frame.ends)
  -- It does not come into force, so it stands behind the others.
  local windows = {}
  for i = 1, #others do windows[i] = others[i] end
  windows[#windows + 1] = window
  led.windows[group.id] = windows
  return window
end

-- Opens the window that an event of that time opens, unless it would be over. What happened before another window ended does not begin one.
local function open_first(led, group, frame, at)
  if at + frame.lasts <= led.time then return GONE end
  for _, window in ipairs(led.windows[group.id] or NOTHING) do
    local is_ours = is_of_kind(window, group, frame) ~= nil and window.start <= led.time
    if is_ours and window.ends > at and not is_mark(window) then return GONE end
  end
  return open_with_event(led, group, frame, at)
end

-- The group's window of the time of the event, or GONE. Nil: compile again.
local function find_window(led, plan, asked, group)
  local at, frame = happened_at, frame_of(asked.frames, group)
  -- The window before the current one would be that of another time.
  if led.time < frame.start or led.time >= frame.ends then return nil end
  local open = arranged_window(led, plan, asked, group)
  if open and at >= open.start then return open end
  local window = window_with(led, group, frame, at)
  if window then return window end
  if frame.anchor == FIRST_USE then
    if open then return open.anchor == FIRST_USE and open or GONE end
    -- A period that began then may be longer or shorter than one that begins now.
    local of_that_time = at < led.time and asked.frames_then ~= '' and read_frame(asked.frames_then, 1 + (group.schedule - 1) * FRAME_BYTES)
    window = open_first(led, group, of_that_time or frame, at)
  elseif not open and at >= start_after_others(led, group, frame) then
    return opened_window(led, plan, asked, group)
  elseif at >= frame.previous_start and at < frame.previous_ends then
    return open_previous(led, group, frame)
  else
    return GONE
  end
  if window ~= GONE then place_window(led, group.place, window) end
  return window
end

local function track_at(k, a)
  local asked = read_track_at_call(ARGV[a + 1])
  local led, failed = begin(k)
  if not led then return failed end

  local record, reason = recall(led, asked, TRACKED)
  if record == false then return fault(reason) end
  if record then return tracked(led, record, true) end
  if asked.at > led.time + MOST_FUTURE_MS then return fault('TIME_IN_FUTURE') end
  happened_at = min(asked.at, led.time)

  local plan, other = plan_in_force(led, asked, ARGV[a + 2])
  if not plan then return other end

  local claims
  claims, other = assess(led, plan, asked, false, nil, find_window)
  if not claims then return other end
  if claims.overflow then return fault('OUT_OF_RANGE', claims.overflow, '', plan.digest) end
  local is_counted = false
  for i = 1, #claims do
    local claim = claims[i]
    if claim.window == GONE then claim.window = false else is_counted = true end
  end
  if not is_counted then return fault('WINDOW_CLOSED') end

  -- All checks are done: from here on, writes.
  for i = 1, #claims do
    local claim = claims[i]
    if claim.window then claim.window.used = claim.window.used + claim.charge end
  end
  local done = tracked(led, write_tracked(led, asked, plan.digest, claims, asked.replay_ms), false)
  return led.used_before and with_befores(led, done, claims, plan, charges_of(claims)) or done
end

return each(track_at, 3, 2)
