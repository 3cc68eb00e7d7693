-- decide: what an event costs each group, and whether it fits. Needs base, each, plan, match, price, windows, deadlines, answer.

-- The claims on the matched groups, in the catalog's order. Else nil and a fault, or nil and nothing: a window is not current, compile again.
local function assess(led, plan, asked, round_down)
  local matches, values = matches_of(plan, asked.what), values_of(asked.quantities)
  local claims, quotas = { false, false, false, false, name = matches.name }, own_quotas(asked)
  for i = 1, #matches do
    local match = matches[i]
    local group = match.group
    local window = current_window(led, plan, asked, group)
    if not window then return nil end
    local charge, measure = first_price(match.measures, values, round_down)
    -- Without a charge, the other is the place of the name that is missing.
    if not charge then return nil, fault('QUANTITY_MISSING', group.place, plan.names[measure], plan.digest) end
    if charge > MAX_UNITS[group.unit] then return nil, fault('OUT_OF_RANGE', group.place, '', plan.digest) end
    local quota = quotas and quotas[group.place] or group.quota
    claims[i] = {
      group = group, place = group.place, window = window, number = window.number, start = window.start, ends = window.ends, charge = charge,
      measure = measure, quota = quota, own_quota = quotas and quota,
    }
  end
  for i = #matches + 1, 4 do claims[i] = nil end
  return claims
end

-- NO-OVERSHOOT: used + held + requested <= quota. Every amount is at most 2^53 - 1, so that the subtraction is exact where
-- its result is not negative, and negative where it is. A charge of 0 fits a group that is full, but not one whose quota is 0.
local function fits(claim)
  local quota, charge, window = claim.quota, claim.charge, claim.window
  if not claim.group.hard or quota < 0 then return true end
  return quota > 0 and (charge == 0 or charge <= quota - window.used - window.held)
end

-- Whether all groups have room (ALL-OR-NOTHING).
local function all_fit(claims)
  for i = 1, #claims do
    if not fits(claims[i]) then return false end
  end
  return true
end

-- The fault of a group whose counter would pass its maximum, or nil.
local function overflow(claims, plan)
  for i = 1, #claims do
    local claim = claims[i]
    local group, window = claim.group, claim.window
    if claim.charge > MAX_UNITS[group.unit] - window.used - window.held then
      return fault('OUT_OF_RANGE', group.place, '', plan.digest)
    end
  end
end

-- The answer of a denial, whose column says what is missing in each full group.
local function answer_denied(named, claims)
  local shortfalls = {}
  for i = 1, #claims do
    local claim = claims[i]
    local window, shortfall = claim.window, 0
    if not fits(claim) then
      -- In this order, so that no sum passes 2^53 unless the answer does.
      shortfall = min(max(claim.charge - (claim.quota - window.used - window.held), 0), MAX)
    end
    shortfalls[i] = shortfall
  end
  local columns, column_bytes = WITH_SHORTFALLS, write_flat(AMOUNT_FORMAT, 1, #claims, shortfalls)
  if claims[1].own_quota then
    columns, column_bytes = columns + WITH_ROW_QUOTAS, column_bytes .. column_of(claims, QUOTA_FORMAT, 'own_quota')
  end
  return answer(named, #claims, rows_of(claims), columns, column_bytes)
end

-- In how many milliseconds to ask again, or -1 if waiting does not help: of every full group the time at which there may be
-- room, and of these the latest.
local function retry_after(led, claims)
  local latest, deadline = led.time, nil
  for i = 1, #claims do
    local claim = claims[i]
    if not fits(claim) then
      local quota, charge, window = claim.quota, claim.charge, claim.window
      local at = window.ends
      if charge > quota or quota == 0 then return -1 end
      if charge <= quota - window.used then
        deadline = deadline or earliest_deadline(led) or NEVER
        at = min(at, deadline)
      end
      if at == NEVER then return -1 end
      latest = max(latest, at)
    end
  end
  return latest - led.time
end
