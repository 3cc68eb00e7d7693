-- crossed: how much windows had used before a script. Needs base, formats, plan, windows, memory, subscription, answer.
--
-- No script decides by thresholds. The service compares what a window had used before the script with what it has used after it. Where the script
-- has counted what each row requests, and nothing else, the service knows both by the row. Otherwise `note_used` has noted what was used before,
-- and the answer says it in a column. Windows without a row, in which deadlines have counted, come after that.

-- Where the byte of the columns stands in an answer.
local COLUMNS_AT = 8

-- The subscription, if one is in force: only the service reads the owner's own quotas in it.
local function blob_in_force(led)
  local terms = led.terms
  local in_force = terms and (terms.ends == 0 or led.time < terms.ends)
  return in_force and subscription_blob(led) or ''
end

-- The windows of the plan's groups that have no row, and in which deadlines have counted.
local function others_of(led, claims, plan)
  unfold(led)
  local has_row, parts, count = {}, { '' }, 0
  for i = 1, #claims do has_row[claims[i].number] = true end
  for place, group in ipairs(plan.groups) do
    for _, window in ipairs(group.has_thresholds and led.windows[group.id] or NOTHING) do
      local before = led.used_before[window.number]
      local is_of_group = window.unit == group.unit and window.period == group.period
      if before and before < window.used and is_of_group and not has_row[window.number] then
        count = count + 1
        parts[count + 1] = pack_struct(OTHER_WINDOW_FORMAT, place, span_of(window), before, window.used)
      end
    end
  end
  parts[1] = write_others({ windows = count, blob = count > 0 and blob_in_force(led) or '' })
  return concat(parts)
end

-- The packed answer about these claims, with what was used before the script. `charges` are what it has counted by the claims of whose windows
-- nothing was noted; nil if that is nothing. The plan may be unknown. The ledger is written.
local function with_befores(led, packed, claims, plan, charges)
  if plan and not plan.has_thresholds then return packed end
  local befores = {}
  for i = 1, #claims do
    local claim, before = claims[i], 0
    if claim.window then before = led.used_before[claim.number] or claim.window.used - (charges and charges[i] or 0) end
    befores[i] = before
  end
  local columns = pack_struct('B', byte(packed, COLUMNS_AT) + WITH_BEFORES)
  return sub(packed, 1, COLUMNS_AT - 1) .. columns .. sub(packed, COLUMNS_AT + 1) .. write_flat(AMOUNT_FORMAT, 1, #claims, befores)
    .. (plan and others_of(led, claims, plan) or write_others({ windows = 0, blob = '' }))
end

-- What each claim charges.
local function charges_of(claims)
  local charges = {}
  for i = 1, #claims do charges[i] = claims[i].charge end
  return charges
end
