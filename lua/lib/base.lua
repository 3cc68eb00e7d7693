-- base: the constants and names that all scripts share. Needs nothing.
--
-- Numbers: a Lua number is a double. Every amount, time and count here is an integer of at most MAX, which a double
-- holds exactly; they travel as MessagePack integers and are never turned into text by tostring.

local MAX = 9007199254740991

-- A time that does not come.
local NEVER = MAX

-- The unit codes are 1 count, 2 tokens, 3 seconds, 4 cents; this is the largest counter of each, in smallest units.
local MAX_UNITS = { MAX, MAX, MAX, 8000000000000000 }

local call = redis.call
local pack = cmsgpack.pack
local unpack_message = cmsgpack.unpack
local floor = math.floor

-- The answer of a script that found something wrong; `reason` is the ErrorInfo reason, and nothing was written.
local function fault(reason, group, name)
  return pack({ fault = { reason, group or '', name or '' } })
end
