-- match: which limit groups an event feeds, and by which rule. Needs base, price.
--
-- An event is { name, quantity or false, quantities, numeric metadata, metadata }. A compiled rule is { kind, pattern,
-- conditions, measure }: kind 0 any name, 1 this name, 2 names that start with the pattern (which ends in a dot). A
-- condition is { key, exact values as a set, prefixes }.

local function condition_holds(condition, metadata)
  local value = metadata[condition[1]]
  if not value then return false end
  if condition[2][value] then return true end
  local prefixes = condition[3]
  for i = 1, #prefixes do
    if string.sub(value, 1, #prefixes[i]) == prefixes[i] then return true end
  end
  return false
end

local function rule_holds(rule, name, metadata)
  local kind, pattern, conditions = rule[1], rule[2], rule[3]
  if kind == 1 then
    if name ~= pattern then return false end
  elseif kind == 2 then
    if #name <= #pattern or string.sub(name, 1, #pattern) ~= pattern then return false end
  end
  for i = 1, #conditions do
    if not condition_holds(conditions[i], metadata) then return false end
  end
  return true
end

-- The measures of the group's rules that hold by name and metadata, in the catalog's order; nil if none does.
local function candidates(rules, name, metadata)
  local found
  for i = 1, #rules do
    local rule = rules[i]
    if rule_holds(rule, name, metadata) then
      found = found or {}
      found[#found + 1] = rule[4]
    end
  end
  return found
end

-- The values that the measures name: from the quantities, the event's own quantity, or numeric metadata.
local function resolve(measures, event, values)
  for i = 1, #measures do
    local measure = measures[i]
    if measure ~= 1 then
      for j = 1, #measure do
        local name = measure[j][1]
        values[name] = event[3][name] or (name == 'quantity' and event[2]) or event[4][name] or nil
      end
    end
  end
end

-- The first measure whose every quantity is there; else nil and the first name that is missing.
local function choose(measures, values)
  local missing
  for i = 1, #measures do
    local measure = measures[i]
    if measure == 1 then return measure end
    local lacks
    for j = 1, #measure do
      local term = measure[j]
      if not values[term[1]] and not term[4] then
        lacks = term[1]
        break
      end
    end
    if not lacks then return measure end
    missing = missing or lacks
  end
  return nil, missing
end
