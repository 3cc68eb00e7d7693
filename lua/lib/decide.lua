-- decide: what an event costs each group, and whether it fits. Needs base, each, plan, match, price, windows, deadlines, answer.

-- NO-OVERSHOOT: used + held + requested <= quota. Every amount is at most 2^53 - 1, so that the subtraction is exact where
-- its result is not negative, and negative where it is. A charge of 0 fits a group that is full, but not one whose quota is 0.
local function fits(group, quota, charge, window)
  if quota < 0 or not group.hard then return true end
  return quota > 0 and (charge == 0 or charge <= quota - window.used - window.held)
end

-- The claims on the matched groups, in the catalog's order. `all_fit` says whether all have room (ALL-OR-NOTHING), and `overflow` names
-- the first group whose counter would pass its maximum. Else nil and a fault, or nil and nothing: a window is not current, compile again.
local function assess(led, plan, asked, round_down)
  local matches, values, quotas = matches_of(plan, asked.what), values_of(asked.quantities), own_quotas(asked)
  local claims = { false, false, false, false, name = matches.name, all_fit = true, overflow = false }
  for i = 1, #matches do
    local match = matches[i]
    local group = match.group
    local window = current_window(led, plan, asked, group)
    if not window then return nil end
    local charge, measure = first_price(match.measures, values, round_down)
    -- Without a charge, the other is the place of the name that is missing.
    if not charge then return nil, fault('QUANTITY_MISSING', group.place, plan.names[measure], plan.digest) end
    if charge > group.max_units then return nil, fault('OUT_OF_RANGE', group.place, '', plan.digest) end
    local quota = quotas and quotas[group.place] or group.quota
    local has_room = fits(group, quota, charge, window)
    if not has_room then claims.all_fit = false end
    if charge > group.max_units - window.used - window.held then claims.overflow = claims.overflow or group.place end
    local claim = {
      place = group.place, window = window, number = window.number, span = span_of(window), charge = charge, quota = quota,
      fits = has_room, committed = 0,
    }
    if quotas then claim.own_quota = quota end
    -- What happened is not undone: a group that counts events keeps its count.
    if round_down and measure == EVENTS then claim.charge = 0 end
    claims[i] = claim
  end
  for i = #matches + 1, 4 do claims[i] = nil end
  return claims
end

-- The answer of a denial, whose column says what is missing in each full group.
local function answer_denied(named, claims)
  local shortfalls = {}
  for i = 1, #claims do
    local claim = claims[i]
    local window, shortfall = claim.window, 0
    if not claim.fits then
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
    if not claim.fits then
      local quota, charge, window = claim.quota, claim.charge, claim.window
      local at = timed(window).ends
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
