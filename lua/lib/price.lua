-- price: what an event costs a limit group, exactly. Needs base.
--
-- A value is an integer, or { whole, millionths }. A term is { name, whole weight or -1, weight limbs, default or false }:
-- its weight counts the group's smallest units per 1 of the quantity. Where the weight is no integer, its limbs give
-- weight x 10^12 in base 10^6, the lowest first. A measure is a list of terms, or the number 1 (`events`: always 1).

local BASE = 1000000

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

-- The charge in the group's smallest units, rounded once, after the sum: up, or down for refunds. It may be above any
-- counter's maximum, but is exact up to MAX. Every quantity that the measure needs is in `values`.
local function price(measure, values, round_down)
  if measure == 1 then return 1 end
  local total, sum, highest = 0, nil, 0
  for i = 1, #measure do
    local term = measure[i]
    local value = values[term[1]] or term[4]
    if term[2] >= 0 and type(value) == 'number' then
      total = total + value * term[2]
    else
      sum = sum or {}
      add_product(sum, value, term[3])
      if #term[3] + 3 > highest then highest = #term[3] + 3 end
    end
  end
  if sum then
    local units, rest = from_limbs(sum, highest)
    total = total + units
    if rest and not round_down then total = total + 1 end
  end
  return total
end
