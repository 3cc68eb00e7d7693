-- subscription: which plan an owner is on, and what entering another one does. Needs base, formats, each, windows, memory, record.
--
-- The state has the subscription's revision and end, and `subscribed` says whether a script has seen that it ended. The rest is a blob that
-- only the service reads.

local SUBSCRIBED, FALLEN = 1, 2

-- What a counter and the name of a record take.
local COUNTER_BYTES, FIELD_BYTES = 20, 16

local function revision_of(led)
  return led.terms and led.terms.revision or ZEROS_8
end

local function subscription_blob(led)
  local at = 1
  if led.windows then return (unpack_struct(SUBSCRIPTION_FORMAT, led.rest)) end
  local count
  count, at = unpack_struct(WINDOWS_FORMAT, led.tail)
  for _ = 1, count do
    local window
    window, at = read_stored_window(led, led.tail, at)
    if window.place == 0 then at = at + COUNTER_BYTES end
  end
  return (unpack_struct(SUBSCRIPTION_FORMAT, led.tail, at))
end

-- How things are, for a service that has compiled its call for something else.
local function stale(led, plan)
  return write_stale({
    kind = STALE_KIND, now = led.time, redis_now = led.redis_now, subscribed = led.subscribed, revision = revision_of(led),
    plan = plan or led.plan, blob = led.subscribed > 0 and subscription_blob(led) or '',
  })
end

-- The group's own window when its plan is entered or its anchor moved, in front of all others; nil if none is open, and false if the
-- compiled one is not current.
local function entered_window(led, group, frame)
  if led.time < frame.start or led.time >= frame.ends then return false end
  if not led.windows[group.id] then return nil end
  local window = own_window(led, group, frame)
  -- Unlike a catalog edit, this leaves the window in force behind, so that no replica goes on in it.
  if not window and frame.anchor == FIRST_USE then return leave_window(led, group, frame) end
  if not window and window_in_force(led, group, frame) then return open_window(led, group, frame) end
  if not window then return nil end
  if window.anchor ~= frame.anchor then
    -- Counted from another anchor to the same start: it goes on, with its counters and its end. It is kept until the end of the one after
    -- it, which is counted from the new anchor.
    window.anchor = frame.anchor
    window.kept = window.ends < frame.ends and frame.ends or frame.kept
  end
  set_windows(led, group.id, windows_after(led, group, frame, window))
  return window
end

-- The counters of an owner who enters the plan, or whose anchor moved. False: a window is not current, compile again.
local function enter_plan(led, plan, basis, change)
  unfold(led)
  local quotas = own_quotas(basis)
  for _, group in ipairs(plan.groups) do
    local frame = frame_of(basis.frames, group)
    local window = entered_window(led, group, frame)
    if window == false then return false end
    local quota = quotas and quotas[group.place] or group.quota
    if change == 'block' and quota >= 0 then
      window = window or open_window(led, group, frame)
      -- TRUTH: what is used is never lowered.
      window.used = max(window.used, quota)
      count_anew(led, window)
      -- It is open, although no event has opened it.
      window.is_unopened = nil
    elseif window and change == 'reset' then
      reset_window(led, window)
    end
  end
  arrange(led, plan, basis.arrangement, basis.frames)
  led.plan, led.windows_before, led.kept_before = plan.id, nil, nil
  return true
end

-- Whether a reservation is remembered, live or not. What is tracked is none, and the record of an Extend outlives its reservation.
local function remembers_reservation(led)
  if led.live > 0 then return true end
  local memory = led.memory
  if not memory then return false end
  for _, key in ipairs({ young_key(led), old_key(led) }) do
    local expires = key == young_key(led) and memory.young_expires or memory.old_expires
    local cursor = '0'
    repeat
      if expires <= led.time then break end
      local found = call('HSCAN', key, cursor, 'COUNT', CHUNK)
      cursor = found[1]
      for i = 1, #found[2], 2 do
        local field = found[2][i]
        local record = #field == FIELD_BYTES and load_record(led, field)
        if record and record.state < TRACKED then return true end
      end
    until cursor == '0'
  end
  return false
end

-- The plan that the ledger was last used with; '' where that has left nothing, which counts as no plan.
local function last_plan(led)
  if led.plan == '' then return '' end
  unfold(led)
  if next(led.windows) or remembers_reservation(led) then return led.plan end
  return ''
end

-- Compares the stored subscription with the one that the call was compiled for. An ended subscription falls to the default plan, once.
-- Returns whether all of it is current, and whether the subscription has changed.
local function check_subscription(led, basis, plan)
  if basis.revision ~= revision_of(led) then return false end
  local terms = led.terms
  if not terms then
    if plan then led.plan = plan.id end
    return true
  end
  local has_ended = terms.ends > 0 and led.time >= terms.ends
  if has_ended ~= (basis.ended == 1) then return false end
  if has_ended and plan and led.subscribed == SUBSCRIBED then
    if led.plan ~= plan.id and not enter_plan(led, plan, basis, plan.change) then return false end
    led.subscribed, led.plan = FALLEN, plan.id
    return true, true
  end
  return true
end
