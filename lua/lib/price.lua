-- price: what an event costs a limit group, exactly. Needs base.
--
-- A value is an integer, or { whole, millionths }. A measure is the number 1 (`events`: always 1), or flat terms of four: name, whole
-- weight or -1, weight limbs or false, default or false. A weight counts the group's smallest units per 1 of the quantity. Where it is
-- no integer, its limbs give weight x 10^12 in base 10^6, the lowest first.
--
-- An amount is { quantity or false, quantities, numeric metadata or false }. Of a name that is measured, the metadata has a value, or
-- `true` where the caller sent something that is no decimal number.

local BASE = 1000000

-- The measure `events`.
local EVENTS = 1

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

-- What the amount says of a quantity, or nil.
local function value_of(amount, name)
  return amount[2][name] or (name == 'quantity' and amount[1]) or (amount[3] and amount[3][name]) or nil
end

-- `value - other`, or 0 where that is more.
local function less(value, other)
  local whole, millionths = value, 0
  if type(value) == 'table' then whole, millionths = value[1], value[2] end
  if type(other) == 'table' then
    whole, millionths = whole - other[1], millionths - other[2]
  else
    whole = whole - other
  end
  if millionths < 0 then whole, millionths = whole - 1, millionths + BASE end
  if whole < 0 then return 0 end
  return millionths > 0 and { whole, millionths } or whole
end

-- The names of the quantities that a measure counts, for people.
local function names_of(measure)
  local names = {}
  for i = 1, #measure, 4 do names[#names + 1] = measure[i] end
  return concat(names, ', ')
end

-- Whether the measure counts a quantity of which `values` says something.
local function measures_any(measure, values)
  for i = 1, #measure, 4 do
    if values[measure[i]] then return true end
  end
  return false
end

-- The charge in the group's smallest units, rounded once, after the sum: up, or down for refunds. It may be above any
-- counter's maximum, but is exact up to MAX. Nil, and the name of a quantity that is missing, if the measure does not apply.
local function price(measure, amount, round_down)
  if measure == EVENTS then return 1 end
  local total, sum, highest = 0, nil, 0
  for i = 1, #measure, 4 do
    local name, weight = measure[i], measure[i + 1]
    local value = value_of(amount, name) or measure[i + 3]
    if value == true then value = nil end
    if not value then return nil, name end
    if weight >= 0 and type(value) == 'number' then
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

-- The first name that the measure looks up in the metadata, where it finds no decimal number; nil if there is none.
local function unreadable(measure, amount)
  local quantity, quantities, numeric = amount[1], amount[2], amount[3]
  if not numeric or measure == EVENTS then return nil end
  for i = 1, #measure, 4 do
    local name = measure[i]
    local named = quantities[name] or (quantity and name == 'quantity')
    if numeric[name] == true and not named then return name end
  end
end
