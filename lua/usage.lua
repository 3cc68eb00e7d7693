#!lua flags=no-writes
-- usage: an owner's standing in every group of the plan, as if everything due had been written.
--
-- KEYS: state, memory 1, memory 2
-- ARGV: usage_call
--       the plan's message
-- Answers: answer, stale, fault
-- uses: base formats each plan ledger windows memory deadlines record answer begin subscription in_force

-- The window of the group that was before `window`, if `at` is in one: as stored, or with nothing used where nothing was stored.
local function earlier_window(led, group, frame, window, at)
  unfold(led)
  for _, other in ipairs(led.windows[group.id] or {}) do
    if other ~= window and is_of_kind(other, window, window) and at >= other.start and at < other.ends then return other end
  end
  local start, ends = frame.previous_start, frame.previous_ends
  if at < start or at >= ends or at >= window.start then return nil end
  return { start = start, ends = ends, used = 0, held = 0 }
end

local function usage(k, a)
  local asked = read_usage_call(ARGV[a + 1])
  local at = asked.at
  local led, failed = begin(k)
  if not led then return failed end

  local plan, other = plan_in_force(led, asked, ARGV[a + 2])
  if not plan then return other end

  -- Earlier windows need all that is known of the current ones.
  if at >= 0 then unfold(led) end
  local rows, count, own, quotas = {}, 0, own_quotas(asked), {}
  for place, group in ipairs(plan.groups) do
    local window = current_window(led, plan, asked, group)
    if not window then return stale(led) end
    if at >= 0 then timed(window) end
    if at >= 0 and at < window.start then
      local frame = frame_of(asked.frames, group)
      -- ONE-CLOCK: an open window stands whatever was compiled, but the one before it would be that of another time.
      if led.time < frame.start or led.time >= frame.ends then return stale(led) end
      window = earlier_window(led, group, frame, window, at)
    elseif at >= 0 and at >= window.ends then
      window = nil
    end
    if window then
      local to = count * ROW_WIDTH
      rows[to + 1], rows[to + 2], rows[to + 3], rows[to + 4], rows[to + 5] = place, shown_span(window), window.used, window.held, 0
      count = count + 1
      quotas[count] = own and own[place] or group.quota
    end
  end
  if own then return answer({ plan = plan.digest }, count, rows, WITH_ROW_QUOTAS, write_flat(QUOTA_FORMAT, 1, count, quotas)) end
  return answer({ plan = plan.digest }, count, rows)
end

return each(usage, 3, 2)
