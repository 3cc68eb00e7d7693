#!lua flags=no-writes
-- usage: an owner's standing in every group of the plan, as if everything due had been written.
--
-- KEYS: state, memory 1, memory 2
-- ARGV: basis, usage_call
--       the plan's message
-- Answers: answer, stale, fault
-- uses: base formats each plan ledger windows memory deadlines record answer begin subscription

-- The window of the group that was before `window`, if `at` is in one: as stored, or with nothing used where nothing was stored.
local function earlier_window(led, group, frame, window, at)
  unfold(led)
  for _, other in ipairs(led.windows[group.id] or {}) do
    local of_kind = other.unit == window.unit and other.period == window.period
      and (other.anchor ~= CALENDAR) == (window.anchor ~= CALENDAR)
    if other ~= window and of_kind and at >= other.start and at < other.ends then return other end
  end
  local start, ends = frame.previous_start, frame.previous_ends
  if at < start or at >= ends or at >= window.start then return nil end
  return { start = start, ends = ends, used = 0, held = 0 }
end

local function usage(k, a)
  local packed = ARGV[a + 1]
  local basis, offset = read_basis(packed)
  local at = read_usage_call(packed, offset).at
  local led, failed = begin(k)
  if not led then return failed end

  local plan = basis.in_force == IN_FORCE and plan_of(basis.digest, ARGV[a + 2]) or nil
  local frames = plan and open_frames(basis.frames)
  if not check_subscription(led, basis, plan, frames) then return stale(led) end
  if basis.in_force == UNKNOWN_PLAN then return fault('PLAN_UNKNOWN') end
  if not plan then return answer({ outcome = NO_SUBSCRIPTION }, {}) end

  -- Earlier windows need all that is known of the current ones.
  if at >= 0 then unfold(led) end
  local rows = {}
  for place, group in ipairs(plan.groups) do
    local window = current_window(led, plan, frames, group)
    if not window then return stale(led) end
    if at >= 0 and at < window.start then
      local frame = frame_of(frames, group)
      -- ONE-CLOCK: an open window stands whatever was compiled, but the one before it would be that of another time.
      if led.time < frame.start or led.time >= frame.ends then return stale(led) end
      window = earlier_window(led, group, frame, window, at)
    elseif at >= 0 and at >= window.ends then
      window = nil
    end
    if window then rows[#rows + 1] = row(place, window, 0, 0, (quota_of(frames, group))) end
  end
  return answer({ plan = plan.digest }, rows)
end

return each(usage, 3, 2)
