-- price: what an event costs a limit group, exactly. Needs base, each.
--
-- A value is an integer, or { whole, millionths }. A measure is the number 1 (`events`: always 1), or flat terms of four: the place of a name
-- among the plan's names, whole weight or -1, weight limbs or false, default or false. A weight counts the group's smallest units per 1 of
-- the quantity. Where it is no integer, its limbs give weight x 10^12 in base 10^6, the lowest first.
--
-- Some measures have `parts`: lists of terms, by where they begin, each of a whole and of its parts; a whole stands before its parts. A whole
-- counts what is in none of its parts. Its weight is always -1 with limbs, so that only `price_exactly` has to know of parts.
--
-- Values are found by the place of their name. One is `true` where the caller sent metadata that is no decimal number.

local BASE = 1000000

-- The measure `events`.
local EVENTS = 1

-- The values of an event, by the place of their name; false or nil where it says none.
local function values_of(quantities)
  return quantities == '' and {} or unpack_message(quantities)
end

-- The values as `values_of` reads them.
local function quantities_of(values)
  local list = {}
  for place = 1, table.maxn(values) do list[place] = values[place] or false end
  return pack(list)
end

-- Puts the values that `more` says in the place of others.
local function replace_values(values, more)
  for place = 1, table.maxn(more) do
    if more[place] then values[place] = more[place] end
  end
end

-- The limbs of a whole weight, which is at most 10^12.
local function limbs_of(weight)
  local high = floor(weight / BASE)
  return { 0, 0, weight - high * BASE, high }
end

-- EXACT: adds value x weight x 10^18 to `sum`, in limbs of base 10^6. A product of two limbs is below 10^12, and at most
-- 16 terms of 5 products meet in one limb: no intermediate passes 2^53.
local function add_product(sum, value, limbs)
  local whole, millionths = value, 0
  if type(value) == 'table' then whole, millionths = value[1], value[2] end
  local middle = floor(whole / BASE)
  local high = floor(middle / BASE)
  local digits = { millionths, whole - middle * BASE, middle - high * BASE, high }
  for i = 1, 4 do
    local digit = digits[i]
    if digit > 0 then
      for j = 1, #limbs do
        sum[i + j - 1] = (sum[i + j - 1] or 0) + digit * limbs[j]
      end
    end
  end
end

-- The integer part of sum / 10^18, and whether anything is left over.
local function from_limbs(sum, highest)
  local carry, rest = 0, false
  local total, place = 0, 1
  for i = 1, highest + 2 do
    local limb = (sum[i] or 0) + carry
    carry = floor(limb / BASE)
    limb = limb - carry * BASE
    if i <= 3 then
      if limb > 0 then rest = true end
    else
      -- Beyond MAX this is not exact any more, but it stays beyond MAX: rounding is monotonic.
      total = total + limb * place
      place = place * BASE
    end
  end
  return total, rest
end

-- `value - other`, or nil where that is below 0.
local function minus(value, other)
  local whole, millionths = value, 0
  if type(value) == 'table' then whole, millionths = value[1], value[2] end
  if type(other) == 'table' then
    whole, millionths = whole - other[1], millionths - other[2]
  else
    whole = whole - other
  end
  if millionths < 0 then whole, millionths = whole - 1, millionths + BASE end
  if whole < 0 then return nil end
  return millionths > 0 and { whole, millionths } or whole
end

-- `value - other`, or 0 where that is below 0.
local function less(value, other)
  return minus(value, other) or 0
end

-- `value + other`, as far as a counter goes.
local function plus(value, other)
  local whole, millionths = value, 0
  if type_of(value) == 'table' then whole, millionths = value[1], value[2] end
  if type_of(other) == 'table' then
    whole, millionths = whole + other[1], millionths + other[2]
  else
    whole = whole + other
  end
  if millionths >= BASE then whole, millionths = whole + 1, millionths - BASE end
  if whole >= MAX then return MAX end
  return millionths > 0 and { whole, millionths } or whole
end

-- The names of the quantities that a measure counts, for people.
local function names_of(measure, plan)
  local names = {}
  for i = 1, #measure, 4 do names[#names + 1] = plan.names[measure[i]] end
  return concat(names, ', ')
end

-- Whether the measure counts a quantity of which `values` says something.
local function measures_any(measure, values)
  for i = 1, #measure, 4 do
    if values[measure[i]] then return true end
  end
  return false
end

-- What the terms of a measure with parts count, by where they begin: of a whole what is in none of its parts. Else nil, and the place of a name that
-- is missing, or those of a whole and its parts, which exceed it.
local function without_parts(measure, values)
  local own = {}
  for i = 1, #measure, 4 do
    local value = values[measure[i]] or measure[i + 3]
    if not value or value == true then return nil, measure[i] end
    own[i] = value
  end
  for _, terms in ipairs(measure.parts) do
    local rest = own[terms[1]]
    -- EXACT: one after the other, as the sum of the parts may pass 2^53.
    for i = 2, #terms do
      rest = rest and minus(rest, own[terms[i]])
    end
    if not rest then
      local names = {}
      for i = 1, #terms do names[i] = measure[terms[i]] end
      return nil, names
    end
    own[terms[1]] = rest
  end
  return own
end

-- The charge where some value or weight is no integer, or where a quantity has parts.
local function price_exactly(measure, values, round_down)
  local total, sum, highest, own, wrong = 0, nil, 0, nil, nil
  if measure.parts then
    own, wrong = without_parts(measure, values)
    if not own then return nil, wrong end
  end
  for i = 1, #measure, 4 do
    local value = own and own[i] or values[measure[i]] or measure[i + 3]
    if not value or value == true then return nil, measure[i] end
    local weight = measure[i + 1]
    if weight >= 0 and type_of(value) == 'number' then
      total = total + value * weight
    else
      local limbs = measure[i + 2] or limbs_of(weight)
      sum = sum or {}
      add_product(sum, value, limbs)
      if #limbs + 3 > highest then highest = #limbs + 3 end
    end
  end
  if sum then
    local units, rest = from_limbs(sum, highest)
    total = total + units
    if rest and not round_down then total = total + 1 end
  end
  return total
end

-- The charge in the group's smallest units, rounded once, after the sum: up, or down for refunds. It may be above any
-- counter's maximum, but is exact up to MAX. Nil, and the place of a name that is missing, if the measure does not apply. Nil, and a list of such
-- places, if parts exceed their whole: the whole, and then its parts.
local function price(measure, values, round_down)
  if measure == EVENTS then return 1 end
  local total = 0
  for i = 1, #measure, 4 do
    local value, weight = values[measure[i]] or measure[i + 3], measure[i + 1]
    if not value then return nil, measure[i] end
    if weight < 0 or type_of(value) ~= 'number' then return price_exactly(measure, values, round_down) end
    total = total + value * weight
  end
  return total
end

-- The place of the first name that the measure looks up in the metadata, where it finds no decimal number; nil if there is none.
local function unreadable(measure, values)
  if measure == EVENTS then return nil end
  for i = 1, #measure, 4 do
    if values[measure[i]] == true then return measure[i] end
  end
end

-- The values of a commit whose `actual` names some, as a measure with parts takes them: where it names a whole and not a part of that, the part
-- takes its default, else 0, and so do the parts of that part.
local function with_parts_anew(measure, values, actual)
  local own, anew = {}, {}
  for place, value in pairs(values) do own[place] = value end
  for _, terms in ipairs(measure.parts) do
    local whole = measure[terms[1]]
    if actual[whole] or anew[whole] then
      for i = 2, #terms do
        local part = measure[terms[i]]
        if not actual[part] then own[part], anew[part] = measure[terms[i] + 3] or 0, true end
      end
    end
  end
  return own
end

-- The charge by the first of the measures that applies, and that measure; else nil and what `price` says is wrong, of a name that is missing the
-- first. A measure that looks up what is no number ends the search, and so do parts that exceed their whole: neither a later rule nor a
-- default stands in for it. `actual` are the values that a commit names, if it is one.
local function first_price(measures, values, round_down, actual)
  local missing
  for i = 1, #measures do
    local measure, own = measures[i], values
    if actual and measure ~= EVENTS and measure.parts then own = with_parts_anew(measure, values, actual) end
    local charge, lacks = price(measure, own, round_down)
    if charge then return charge, measure end
    if type_of(lacks) == 'table' then return nil, lacks end
    local no_number = unreadable(measure, own)
    if no_number then return nil, no_number end
    missing = missing or lacks
  end
  return nil, missing
end

-- The fault of an event that a group cannot price, as `first_price` says what is wrong.
local function unpriced(plan, group, wrong)
  if type_of(wrong) == 'number' then return fault('QUANTITY_MISSING', group.place, plan.names[wrong], plan.digest) end
  local names = {}
  for i = 1, #wrong do names[i] = plan.names[wrong[i]] end
  return fault('PARTS_EXCEED_WHOLE', group.place, pack(names), plan.digest)
end
