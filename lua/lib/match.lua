-- match: which limit groups an event feeds, and by which rule. Needs base, price.
--
-- Compiled rules are flat, four values each: kind, pattern, conditions, measure. Kind 0 is any name, 1 this name, 2 names that start
-- with the pattern (which ends in a dot). Conditions (or '', if there are none) and measures are messages of their own, decoded only
-- where they are needed. A condition is { key, exact values as a set, prefixes }.

-- What such messages decode to, each to a list; no script changes them.
local decoded, decoded_bytes = {}, 0

local function decode(messages)
  local values = decoded[messages]
  if not values then
    values = { unpack_message(messages) }
    if decoded_bytes > MOST_REMEMBERED then decoded, decoded_bytes = {}, 0 end
    decoded[messages], decoded_bytes = values, decoded_bytes + #messages
  end
  return values
end

local function condition_holds(condition, metadata)
  local value = metadata[condition[1]]
  if not value then return false end
  if condition[2][value] then return true end
  local prefixes = condition[3]
  for i = 1, #prefixes do
    if sub(value, 1, #prefixes[i]) == prefixes[i] then return true end
  end
  return false
end

local function conditions_hold(message, metadata)
  local conditions = decode(message)[1]
  for i = 1, #conditions do
    if not condition_holds(conditions[i], metadata) then return false end
  end
  return true
end

-- The measures of the group's rules that hold by name and metadata, one message after the other in the catalog's order; nil if none
-- does.
local function candidates(rules, name, metadata)
  local found
  for i = 1, #rules, 4 do
    local kind, pattern, conditions = rules[i], rules[i + 1], rules[i + 2]
    local named
    if kind == 1 then
      named = name == pattern
    else
      named = kind == 0 or (#name > #pattern and sub(name, 1, #pattern) == pattern)
    end
    if named and (conditions == '' or conditions_hold(conditions, metadata)) then
      found = found and found .. rules[i + 3] or rules[i + 3]
    end
  end
  return found
end

-- The charge by the first of the measures that applies, and that measure; else nil and the first quantity that is missing.
-- A measure that looks up what is no number ends the search: neither a later rule nor a default stands in for it.
local function first_price(measures, amount, round_down)
  local missing
  measures = decode(measures)
  for i = 1, #measures do
    local measure = measures[i]
    local charge, lacks = price(measure, amount, round_down)
    if charge then return charge, measure end
    local no_number = unreadable(measure, amount)
    if no_number then return nil, no_number end
    missing = missing or lacks
  end
  return nil, missing
end
