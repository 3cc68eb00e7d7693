-- match: which limit groups an event feeds, and by which rules. Needs base, plan.

local find = string.find

-- Whether the value has the pieces of a pattern one after the other, the first at its beginning and the last at its end. The leftmost place of a
-- piece leaves the most to those after it, so that nothing is tried twice.
local function has_pieces(pieces, value)
  local first, last = pieces[1], pieces[#pieces]
  local at, ends = #first + 1, #value - #last
  if at > ends + 1 or sub(value, 1, #first) ~= first or sub(value, ends + 1) ~= last then return false end
  for i = 2, #pieces - 1 do
    local _, piece_ends = find(value, pieces[i], at, true)
    if not piece_ends or piece_ends > ends then return false end
    at = piece_ends + 1
  end
  return true
end

local function condition_holds(condition, metadata)
  local value = metadata[condition[1]]
  if not value then return false end
  if condition[2][value] then return true end
  for _, prefix in ipairs(condition[3]) do
    if sub(value, 1, #prefix) == prefix then return true end
  end
  local patterns = condition[4]
  if patterns then
    for _, pieces in ipairs(patterns) do
      if has_pieces(pieces, value) then return true end
    end
  end
  return false
end

local function rule_holds(rule, name, metadata)
  local pattern = rule.pattern
  if rule.kind == 1 then
    if name ~= pattern then return false end
  elseif rule.kind == 2 and not (#name > #pattern and sub(name, 1, #pattern) == pattern) then
    return false
  end
  for _, condition in ipairs(rule.conditions) do
    if not condition_holds(condition, metadata) then return false end
  end
  return true
end

-- The groups that the event matches, in the catalog's order, each with the measures of the rules that hold, in theirs. `what` are the event's
-- name and metadata, as bytes. They decide alone, so that the plan remembers the answer. `has_parts` says that some of these measures have parts.
local function matches_of(plan, what)
  local found = plan.matches[what]
  if found then return found end
  local name, metadata = unpack_message(what)
  found = { name = name }
  for _, group in ipairs(plan.groups) do
    local measures = {}
    for _, rule in ipairs(group.rules) do
      if rule_holds(rule, name, metadata) then
        measures[#measures + 1] = rule.measure
        if rule.has_parts then found.has_parts = true end
      end
    end
    if measures[1] then found[#found + 1] = { group = group, measures = measures } end
  end
  if plan.match_bytes > MOST_REMEMBERED then plan.matches, plan.match_bytes = {}, 0 end
  -- The lists of measures take more than what they are found by.
  plan.matches[what], plan.match_bytes = found, plan.match_bytes + #what + 16 * #found
  return found
end
