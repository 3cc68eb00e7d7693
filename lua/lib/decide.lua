-- decide: what an event costs each group, and whether it fits. Needs base, each, plan, match, price, windows, deadlines, answer.

-- NO-OVERSHOOT: used + held + requested <= quota. Every amount is at most 2^53 - 1, so that the subtraction is exact where
-- its result is not negative, and negative where it is. A charge of 0 fits a group that is full, but not one whose quota is 0.
local function fits(group, quota, charge, used, held)
  if quota < 0 or not group.hard then return true end
  return quota > 0 and (charge == 0 or charge <= quota - used - held)
end

-- The claims of a call, whose tables the next one uses again.
local assessed, claim_tables = { name = false, all_fit = false, overflow = false }, {}

local function claim_table(i)
  local claim = {
    place = 0, window = false, number = 0, span = false, charge = 0, quota = 0, fits = false, committed = 0, own_quota = false,
    refunded = false, due = 0, locked = 0,
  }
  claim_tables[i] = claim
  return claim
end

-- The claims on the matched groups, in the catalog's order. `all_fit` says whether all have room (ALL-OR-NOTHING), and `overflow` names
-- the first group whose counter would pass its maximum. Else nil and the answer of the script. `otherwise` may know the charge of an event that
-- the group cannot price. `find` finds other windows than the current ones.
local function assess(led, plan, asked, round_down, otherwise, find)
  local matches, values, quotas = matches_of(plan, asked.what), values_of(asked.quantities), own_quotas(asked)
  local claims, is_current = assessed, is_arranged(led, asked.arrangement)
  claims.name, claims.all_fit, claims.overflow = matches.name, true, false
  for i = 1, #matches do
    local match = matches[i]
    local group = match.group
    local window
    if find then
      window = find(led, plan, asked, group)
    else
      window = is_current and not led.windows and window_at(led, group.place) or opened_window(led, plan, asked, group)
    end
    if not window then return nil, stale(led) end
    local charge, measure = first_price(match.measures, values, round_down)
    if not charge then
      -- Without a charge, the other says what is wrong.
      charge = otherwise and otherwise(match.measures, values, measure)
      if not charge then return nil, unpriced(plan, group, measure) end
    end
    if charge > group.max_units then return nil, fault('OUT_OF_RANGE', group.place, '', plan.digest) end
    local quota = quotas and quotas[group.place] or group.quota
    local used, held = window.used, window.held
    local has_room = fits(group, quota, charge, used, held)
    if not has_room then claims.all_fit = false end
    if charge > group.max_units - used - held then claims.overflow = claims.overflow or group.place end
    local claim = claim_tables[i] or claim_table(i)
    claim.place, claim.window, claim.number, claim.span = group.place, window, window.number, window.span or span_of(window)
    claim.charge, claim.quota, claim.fits, claim.committed, claim.own_quota = charge, quota, has_room, 0, quotas and quota
    -- What happened is not undone: a group that counts events keeps its count.
    if round_down and measure == EVENTS then claim.charge = 0 end
    claims[i] = claim
  end
  if not matches[1] then return nil, answer({ outcome = UNMATCHED, plan = plan.digest }, 0) end
  for i = #matches + 1, #claims do claims[i] = nil end
  return claims
end

-- The answer of a denial, whose column says what is missing in each full group. `closings` are the bytes of that column, if there is one.
local function answer_denied(named, claims, closings)
  local shortfalls = {}
  for i = 1, #claims do
    local claim = claims[i]
    local window, shortfall = claim.window, 0
    if window.is_unopened then claim.span = NO_SPAN end
    if not claim.fits then
      -- In this order, so that no sum passes 2^53 unless the answer does.
      shortfall = min(max(claim.charge - (claim.quota - window.used - window.held), 0), MAX)
    end
    shortfalls[i] = shortfall
  end
  local columns, column_bytes = WITH_SHORTFALLS, write_flat(AMOUNT_FORMAT, 1, #claims, shortfalls)
  if closings then columns, column_bytes = columns + WITH_CLOSINGS, column_bytes .. closings end
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
