-- windows: which windows an owner has, and which is a group's current one. Needs base, formats, ledger, plan.
--
-- A window is what its unit, period, kind of anchor and start make it (SPEC section 5, "identity of a window"). An open one stands until
-- its end, whatever other windows of the same group come and go (SELF-CONTAINED). Claims and deadlines know a window by its number, which
-- no other window of the owner ever has.
--
-- While the call's groups and anchors are those that the counters are arranged for, and none of their windows has ended, the counters say
-- all that a call needs. Otherwise `unfold` reads every window into `led.windows`, by the id of its group: the one that was opened or
-- entered last comes first. `arrange` then finds those of the plan's groups, and `fold` writes them as counters again.

-- What one `frame` and one `override` take in the call.
local FRAME_BYTES, OVERRIDE_BYTES = 42, 9

-- The quotas of an owner's own, by the place of the group; nil if there are none.
local function own_quotas(basis)
  if basis.overrides == 0 then return nil end
  local quotas, packed = {}, basis.frames
  local at = #packed - basis.overrides * OVERRIDE_BYTES + 1
  for _ = 1, basis.overrides do
    local group, quota
    group, quota, at = unpack_struct(OVERRIDE_FORMAT, packed, at)
    quotas[group] = quota
  end
  return quotas
end

-- The windows that the call was compiled for, of the group's schedule.
local function frame_of(frames, group)
  return (read_frame(frames, 1 + (group.schedule - 1) * FRAME_BYTES))
end

-- Reads a window of the state.
local function read_stored_window(led, packed, at)
  if led.format == FORMAT then return read_window(packed, at) end
  return read_wide_window(packed, at)
end

-- A mark stands in the place of windows that are gone: it has no length, and counts nothing (see `take_out`).
local function is_mark(window)
  return window.start == window.ends
end

local function is_of_series(window, other)
  return window.unit == other.unit and window.period == other.period
end

-- When the last one of these windows of a group ends that stand behind this place and have this unit and period; 0 if there is none.
local function last_end_behind(windows, place, like)
  local last = 0
  for i = place + 1, #windows do
    if is_of_series(windows[i], like) then last = max(last, windows[i].ends) end
  end
  return last
end

-- A new window of the group, with this unit and period.
local function new_window(led, group, like, anchor, start, ends, kept)
  led.opened = led.opened + 1
  return {
    group = group, unit = like.unit, period = like.period, place = 0, number = led.opened, used = 0, held = 0, reset = 0, reset_at = 0,
    anchor = anchor, start = start, ends = ends, kept = kept,
  }
end

-- A mark that stands before the group's windows of this unit and period until the last of them has ended.
local function new_mark(led, group, like, last)
  return new_window(led, group, like, CALENDAR, 0, 0, last)
end

-- Takes a window out of those of its group. Where it was the one in force, those of another kind of anchor behind it were left behind, when
-- a plan was entered or the anchor moved. They stay so: a mark takes its place.
local function take_out(led, windows, place)
  local gone = table.remove(windows, place)
  for i = 1, place - 1 do
    if is_of_series(windows[i], gone) and windows[i].start <= led.time then return end
  end
  local last = last_end_behind(windows, place - 1, gone)
  if last > led.time then table.insert(windows, place, new_mark(led, gone.group, gone, last)) end
end

-- Takes out those of a group's windows that are kept no longer.
local function forget_windows(led, group)
  local windows = led.windows[group]
  for place = #windows, 1, -1 do
    if windows[place].kept <= led.time then take_out(led, windows, place) end
  end
  if #windows == 0 then led.windows[group] = nil end
end

local function unfold(led)
  if led.windows then return end
  local windows, arranged, counters, tail, forgotten = {}, {}, led.counters, led.tail, nil
  local times = read_flat(SCHEDULE_FORMAT, SCHEDULE_WIDTH, led.schedules, led.schedule_bytes, 1)
  local count, at = unpack_struct(WINDOWS_FORMAT, tail)
  for _ = 1, count do
    local window, number, schedule, used, held
    window, at = read_stored_window(led, tail, at)
    local place = window.place
    if place > 0 then
      local from = (place - 1) * COUNTER_WIDTH
      number, schedule, used, held = counters[from + 1], counters[from + 2], counters[from + 3], counters[from + 4]
      -- Whoever has asked for the window before has it in the hand.
      local asked = take_window(place)
      if asked then
        asked.group, asked.unit, asked.period = window.group, window.unit, window.period
        asked.reset, asked.reset_at = window.reset, window.reset_at
        window, used, held = asked, asked.used, asked.held
      end
      arranged[place] = window
    else
      number, schedule, used, held, at = unpack_struct(COUNTER_FORMAT, tail, at)
    end
    local from = (schedule - 1) * SCHEDULE_WIDTH
    window.number, window.used, window.held = number, used, held
    window.reset, window.reset_at = window.reset or 0, window.reset_at or 0
    -- ONE-CLOCK: a reset at a time that was wrong came before whatever lapses now.
    if led.was_wrong then window.reset_at = min(window.reset_at, led.time - 1) end
    window.anchor, window.start, window.ends, window.kept = times[from + 1], times[from + 2], times[from + 3], times[from + 4]
    local of_group = windows[window.group]
    if of_group then of_group[#of_group + 1] = window else windows[window.group] = { window } end
    if window.kept <= led.time then
      arranged[place], forgotten = nil, forgotten or {}
      forgotten[window.group] = true
    end
  end
  led.windows, led.arranged, led.rest = windows, arranged, sub(tail, at)
  for group in pairs(forgotten or {}) do forget_windows(led, group) end
  -- Until somebody arranges them anew.
  led.current_until = 0
end

-- Which schedule has these times, from 1.
local function schedule_of(times, known, window)
  local key = pack_struct(SCHEDULE_FORMAT, window.anchor, window.start, window.ends, window.kept)
  local schedule = known[key]
  if not schedule then
    local size = #times
    times[size + 1], times[size + 2], times[size + 3], times[size + 4] = window.anchor, window.start, window.ends, window.kept
    schedule = size / SCHEDULE_WIDTH + 1
    known[key] = schedule
  end
  return schedule
end

-- Whether the window has something that only a wide one can say.
local function is_wide(window)
  return window.period >= FIRST_LENGTH or window.anchor == FIRST_USE or window.reset > 0
end

-- The format that all windows fit into. Versions that do not know the wide one can read the others. While holds are live, some of them may count
-- at their deadlines, which only the wide one says.
local function format_of_windows(led)
  if led.format == WIDE_FORMAT and led.live > 0 then return WIDE_FORMAT end
  for _, windows in pairs(led.windows) do
    for i = 1, #windows do
      if is_wide(windows[i]) then return WIDE_FORMAT end
    end
  end
  return FORMAT
end

-- Writes what `unfold` has read.
local function fold(led)
  local times, known, counters, places, parts, last, count = {}, {}, {}, {}, { '' }, 0, 0
  led.format = format_of_windows(led)
  local write = led.format == FORMAT and write_window or write_wide_window
  for place = 1, led.groups do
    local window, at = led.arranged[place], (place - 1) * COUNTER_WIDTH
    if window then
      places[window] = place
      counters[at + 1], counters[at + 2] = window.number, schedule_of(times, known, window)
      counters[at + 3], counters[at + 4] = window.used, window.held
    else
      counters[at + 1], counters[at + 2], counters[at + 3], counters[at + 4] = 0, 0, 0, 0
    end
  end
  for _, windows in pairs(led.windows) do
    for i = 1, #windows do
      local window = windows[i]
      count, last = count + 1, max(last, window.kept)
      window.place = places[window] or 0
      parts[#parts + 1] = write(window)
      if window.place == 0 then
        local schedule = schedule_of(times, known, window)
        parts[#parts + 1] = pack_struct(COUNTER_FORMAT, window.number, schedule, window.used, window.held)
      end
    end
  end
  parts[1] = pack_struct(WINDOWS_FORMAT, count)
  parts[#parts + 1] = led.rest
  led.schedules = #times / SCHEDULE_WIDTH
  led.schedule_bytes = write_flat(SCHEDULE_FORMAT, SCHEDULE_WIDTH, led.schedules, times)
  led.counters, led.tail, led.last_kept = counters, concat(parts), last
end

-- A window that starts later was opened by a clock that was wrong, and is set aside until then.
local function is_open(led, window)
  return window.start <= led.time and led.time < window.ends
end

-- The kind of an anchor: CALENDAR, FIRST_USE, or 0 for a time from which windows are counted.
local function kind_of(anchor)
  return anchor >= FIRST_USE and anchor or 0
end

-- Whether the window is of the kind of the group and its frame: unit, period, and kind of anchor. Nil if it is of another unit or
-- period, false if only the kind of anchor differs.
local function is_of_kind(window, group, frame)
  if window.unit ~= group.unit or window.period ~= group.period then return nil end
  return kind_of(window.anchor) == kind_of(frame.anchor)
end

-- The group's own window, if one is open: of its kind, and counted from its anchor, or from another one to the same start.
local function own_window(led, group, frame)
  for _, window in ipairs(led.windows[group.id] or {}) do
    if is_of_kind(window, group, frame) and is_open(led, window)
      and (window.anchor == frame.anchor or window.start == frame.start) then
      return window
    end
  end
end

-- The window in force of this unit and period: of those that have begun, the last one, if it is open. And whether it is of the group's
-- kind of anchor.
local function window_in_force(led, group, frame)
  for _, window in ipairs(led.windows[group.id] or {}) do
    local same_kind = is_of_kind(window, group, frame)
    if same_kind ~= nil and window.start <= led.time then return led.time < window.ends and window or nil, same_kind end
  end
end

-- The open window that stands although its group has another kind of anchor now: a catalog edit of the anchor waits for its end.
local function standing_window(led, group, frame)
  local window, same_kind = window_in_force(led, group, frame)
  return same_kind == false and window or nil
end

-- Replaces the group's windows.
local function set_windows(led, id, windows)
  -- What the windows were before one was opened; see `undo_windows`.
  led.windows_before = led.windows_before or {}
  if led.windows_before[id] == nil then led.windows_before[id] = led.windows[id] or false end
  led.windows[id] = windows
end

-- Puts the group's own window before those of its kind that are counted from another anchor. A replica that does not have the group has
-- moved the anchor back, and left them so: if it moves again, this window is the last one that it leaves behind.
local function go_on_in(led, group, frame, own)
  if led.windows[group.id][1] == own then return end
  local windows, is_there, moves = {}, false, false
  for _, window in ipairs(led.windows[group.id]) do
    if not is_there and (window == own or is_of_kind(window, group, frame) and window.anchor ~= frame.anchor) then
      windows[#windows + 1], is_there, moves = own, true, window ~= own
    end
    if window ~= own then windows[#windows + 1] = window end
  end
  if moves then set_windows(led, group.id, windows) end
end

-- A denied call changes nothing, and so leaves no window open that was not.
local function undo_windows(led)
  for id, windows in pairs(led.windows_before or {}) do
    led.windows[id] = windows or nil
    led.current_until = 0
  end
  for window, kept in pairs(led.kept_before or {}) do window.kept = kept end
  if led.windows_before then led.arranged = {} end
end

-- How many windows these are, besides marks.
local function count_windows(windows)
  local count = 0
  for i = 1, #windows do
    if not is_mark(windows[i]) then count = count + 1 end
  end
  return count
end

-- Takes out the window that ends first, of those behind the first one, and the marks that then stand before nothing.
local function take_out_earliest(led, windows)
  local earliest
  for i = 2, #windows do
    if not is_mark(windows[i]) and (not earliest or windows[i].ends < windows[earliest].ends) then earliest = i end
  end
  take_out(led, windows, earliest)
  for i = #windows, 2, -1 do
    if is_mark(windows[i]) and last_end_behind(windows, i, windows[i]) <= led.time then table.remove(windows, i) end
  end
end

-- `first`, and then the group's other windows. Of those that a moved anchor has left behind, only the last one is kept; of all, only
-- MOST_WINDOWS: the one that ends first goes first.
local function windows_after(led, group, frame, first)
  local windows, left_behind = { first }, false
  for _, window in ipairs(led.windows[group.id] or {}) do
    local is_left = frame.anchor ~= CALENDAR and is_of_kind(window, group, frame) and window.anchor ~= frame.anchor
    -- What it stands before stands behind `first` now.
    local is_passed = is_mark(window) and is_of_series(window, first)
    if window ~= first and not is_passed and not (is_left and left_behind) then windows[#windows + 1] = window end
    if window ~= first and is_left then left_behind = true end
  end
  if count_windows(windows) > MOST_WINDOWS then take_out_earliest(led, windows) end
  return windows
end

-- Where the window of the frame starts: no earlier than the one before it ended, although another catalog or time-zone database puts the
-- boundary elsewhere. One that a moved anchor has left behind is not before it: the new windows are counted as the anchor says. Nor is a
-- mark.
local function start_after_others(led, group, frame)
  local start = frame.start
  for _, window in ipairs(led.windows[group.id] or {}) do
    local same_kind = is_of_kind(window, group, frame)
    local is_left = same_kind and window.anchor ~= frame.anchor or is_mark(window)
    if same_kind ~= nil and not is_left and window.ends <= led.time and window.ends > start then start = window.ends end
  end
  return start
end

-- Opens a window between these times, in front of the group's others.
local function put_window(led, group, frame, start, ends, kept)
  local window = new_window(led, group.id, group, frame.anchor, start, ends, kept)
  set_windows(led, group.id, windows_after(led, group, frame, window))
  return window
end

-- Opens a window with the first event that counts in it, at `start`. The one before it is kept as long as it is open.
local function open_with_event(led, group, frame, start)
  local ends = start + frame.lasts
  for _, window in ipairs(led.windows[group.id] or {}) do
    -- One that a wrong clock has opened comes into force at its start.
    if is_of_kind(window, group, frame) and window.start > led.time then ends = min(ends, window.start) end
  end
  for _, window in ipairs(led.windows[group.id] or {}) do
    if is_of_kind(window, group, frame) and window.ends <= start and not is_mark(window) then
      led.kept_before = led.kept_before or {}
      led.kept_before[window] = led.kept_before[window] or window.kept
      window.kept = max(window.kept, ends)
      break
    end
  end
  local window = put_window(led, group, frame, start, ends, ends + frame.lasts)
  -- It is not yet open for those who only look.
  window.is_unopened = true
  return window
end

-- Opens the window of the group's frame. Nil if that is not current: compile again.
local function open_window(led, group, frame)
  local now, ends = led.time, frame.ends
  if now < frame.start or now >= ends then return nil end
  if frame.anchor == FIRST_USE then return open_with_event(led, group, frame, now) end
  return put_window(led, group, frame, start_after_others(led, group, frame), ends, frame.kept)
end

-- Leaves behind the window in force, which is of another kind of anchor, where the group's own one opens only with its first event. A mark
-- comes before it, and so it does not stand.
local function leave_window(led, group, frame)
  if not window_in_force(led, group, frame) then return end
  local mark = new_mark(led, group.id, group, last_end_behind(led.windows[group.id], 0, group))
  set_windows(led, group.id, windows_after(led, group, frame, mark))
end

-- Notes what the window has used before this script, where it counts something else than the rows of its answer request.
local function note_used(led, window)
  local befores = led.used_before
  if not befores then
    befores = {}
    led.used_before = befores
  end
  befores[window.number] = befores[window.number] or window.used
end

-- What the window has used so far in this script was not made of consumption.
local function count_anew(led, window)
  if led.used_before then led.used_before[window.number] = nil end
end

-- What was counted so far counts no more, and cannot be refunded.
local function reset_window(led, window)
  count_anew(led, window)
  window.used, window.reset, window.reset_at = 0, led.memory and led.memory.sequence or 0, led.time
end

-- A span without start and end.
local NO_SPAN = '\0\0\0\0\0\0\255\255\255\255\255\255'

-- The span of a window for those who do not open it.
local function shown_span(window)
  return window.is_unopened and NO_SPAN or span_of(window)
end

-- Puts the window at the place of a group of the plan that the counters are arranged for.
local function place_window(led, place, window)
  led.arranged[place] = window
  led.current_until = min(led.current_until, window.ends)
end

-- Finds the open windows of all groups of the plan.
local function arrange(led, plan, arrangement, frames)
  unfold(led)
  led.basis, led.groups, led.arranged, led.current_until = arrangement, #plan.groups, {}, NEVER
  for _, windows in pairs(led.windows) do
    for i = 1, #windows do
      -- One that is set aside comes into force by itself.
      if windows[i].start > led.time then led.current_until = min(led.current_until, windows[i].start) end
    end
  end
  for place, group in ipairs(plan.groups) do
    if led.windows[group.id] then
      local frame = frame_of(frames, group)
      local window = own_window(led, group, frame) or standing_window(led, group, frame)
      if window and is_of_kind(window, group, frame) then go_on_in(led, group, frame, window) end
      if window then place_window(led, place, window) end
    end
  end
end

-- Whether the counters are those of the current windows of these groups.
local function is_arranged(led, arrangement)
  return led.basis == arrangement and led.time < led.current_until
end

-- The group's window, if it is open, of windows that are unfolded.
local function arranged_window(led, plan, basis, group)
  -- Whoever has unfolded the windows has forgotten until when they are current.
  if not led.windows or not is_arranged(led, basis.arrangement) then arrange(led, plan, basis.arrangement, basis.frames) end
  return led.arranged[group.place]
end

-- Opens the group's window where none is open. Nil: compile again.
local function opened_window(led, plan, basis, group)
  local window = arranged_window(led, plan, basis, group)
  if window then return window end
  window = open_window(led, group, frame_of(basis.frames, group))
  if window then place_window(led, group.place, window) end
  return window
end

-- The group's window at the owner's time, opened if it is a new one; nil: compile again.
local function current_window(led, plan, basis, group)
  if led.windows or not is_arranged(led, basis.arrangement) then return opened_window(led, plan, basis, group) end
  return window_at(led, group.place) or opened_window(led, plan, basis, group)
end

-- The place of the counter with this number; nil if there is none. Those that are asked for one after the other mostly stand so.
local function place_of(led, number)
  local counters, next_place = led.counters, (led.found_place or 0) + 1
  if counters[(next_place - 1) * COUNTER_WIDTH + 1] == number then
    led.found_place = next_place
    return next_place
  end
  for place = 1, led.groups do
    if counters[(place - 1) * COUNTER_WIDTH + 1] == number then
      led.found_place = place
      return place
    end
  end
end

-- The window of this number, or nil if it is kept no longer.
local function kept_window(led, number)
  if not led.windows then
    local place = led.time < led.current_until and place_of(led, number)
    if place then return window_at(led, place) end
    unfold(led)
  end
  for _, windows in pairs(led.windows) do
    for i = 1, #windows do
      if windows[i].number == number then return windows[i] end
    end
  end
end
