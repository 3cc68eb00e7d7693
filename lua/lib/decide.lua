-- decide: what an event costs each group, and whether it fits. Needs base, price, match, ledger, record, report, agenda.

-- The matched groups, in the catalog's order, as { group, window, charge, measures, the measure that applies }. Else nil and
-- a fault, or nil and nothing: a window is not current, compile again.
local function assess(led, plan, name, metadata, amount, round_down)
  local matched = {}
  local groups = plan[P_GROUPS]
  for i = 1, #groups do
    local group = groups[i]
    local measures = candidates(group[G_RULES], name, metadata)
    if measures then
      local w = current_window(led, group)
      if not w then return nil end
      local charge, measure = first_price(measures, amount, round_down)
      -- Without a charge, the other is the name of what is missing.
      if not charge then return nil, fault('QUANTITY_MISSING', group[G_ID], measure) end
      if charge > MAX_UNITS[group[G_UNIT]] then return nil, fault('OUT_OF_RANGE', group[G_ID]) end
      matched[#matched + 1] = { group, w, charge, measures, measure }
    end
  end
  return matched
end

-- NO-OVERSHOOT: used + held + requested <= quota. Every amount is at most 2^53 - 1, so that the subtraction is exact where
-- its result is not negative, and negative where it is. A charge of 0 fits a group that is full, but not one whose quota is 0.
local function fits(group, w, charge)
  local quota = group[G_QUOTA]
  if not group[G_HARD] or quota < 0 then return true end
  return quota > 0 and (charge == 0 or charge <= quota - w[USED] - w[HELD])
end

-- Whether all groups have room (ALL-OR-NOTHING).
local function all_fit(matched)
  for i = 1, #matched do
    if not fits(matched[i][1], matched[i][2], matched[i][3]) then return false end
  end
  return true
end

-- The id of a group whose counter would pass its maximum, or nil.
local function overflow(matched)
  for i = 1, #matched do
    local group, w, charge = matched[i][1], matched[i][2], matched[i][3]
    if charge > MAX_UNITS[group[G_UNIT]] - w[USED] - w[HELD] then return group[G_ID] end
  end
end

-- The rows of a denial, which say what is missing in each full group.
local function denied_rows(matched)
  local rows = {}
  for i = 1, #matched do
    local group, w, charge = matched[i][1], matched[i][2], matched[i][3]
    local shortfall = 0
    if not fits(group, w, charge) then
      -- In this order, so that no sum passes 2^53 unless the answer does.
      shortfall = min(max(charge - (group[G_QUOTA] - w[USED] - w[HELD]), 0), MAX)
    end
    rows[i] = group_row(group, w, charge, shortfall)
  end
  return concat(rows)
end

local function matched_rows(matched)
  local rows = {}
  for i = 1, #matched do rows[i] = group_row(matched[i][1], matched[i][2], matched[i][3]) end
  return concat(rows)
end

-- In how many milliseconds to ask again, or -1 if waiting does not help: of every full group the time at which there may be
-- room, and of these the latest.
local function retry_after(led, agenda_key, matched)
  local latest, deadline = led.time, nil
  for i = 1, #matched do
    local group, w, charge = matched[i][1], matched[i][2], matched[i][3]
    if not fits(group, w, charge) then
      local quota = group[G_QUOTA]
      local at = whole(w)[END]
      if charge > quota or quota == 0 then return -1 end
      if charge <= quota - w[USED] then
        deadline = deadline or earliest_deadline(led, agenda_key) or NEVER
        at = min(at, deadline)
      end
      if at == NEVER then return -1 end
      latest = max(latest, at)
    end
  end
  return latest - led.time
end
