-- base: the constants and names that all scripts share. Needs nothing.
--
-- Numbers: a Lua number is a double. Every amount, time and count here is an integer of at most MAX, which a double
-- holds exactly. They travel and are stored as integers of MessagePack or of `struct`, and tostring never makes text of them.

local MAX = 9007199254740991

-- A time that does not come: the largest of six bytes. It is also the anchor of windows that follow the calendar. The one before it is the
-- anchor of windows that open with their first event.
local NEVER = 281474976710655
local CALENDAR, FIRST_USE = 281474976710655, 281474976710654

-- The unit codes are 1 count, 2 tokens, 3 seconds, 4 cents. This is the largest counter of each, in smallest units.
local MAX_UNITS = { MAX, MAX, MAX, 8000000000000000 }

-- The format byte of stored values, that of states whose windows are wide (see `wide_window`), and that of records with a `life`.
local FORMAT, WIDE_FORMAT, LIVING_FORMAT = 1, 2, 2

-- What begins an answer.
local ANSWER_KIND, STALE_KIND, FAULT_KIND, OTHERWISE_KIND = 1, 2, 3, 4

local call = redis.call
local pack = cmsgpack.pack
local unpack_message = cmsgpack.unpack
local pack_struct, unpack_struct = struct.pack, struct.unpack
local sub, byte, rep, format_text = string.sub, string.byte, string.rep, string.format
local type_of, unpack = _G.type, _G.unpack
-- Of a list that grows, as text that grows is copied each time.
local concat = table.concat
local floor, ceil, max, min = math.floor, math.ceil, math.max, math.min

local ZEROS_6, ZEROS_8 = '\0\0\0\0\0\0', '\0\0\0\0\0\0\0\0'

-- How many bytes of messages are remembered with what they decode to, which takes some ten times as many. A function remembers them from
-- call to call, a script only while it runs.
local MOST_REMEMBERED = 250000

local formats = {}

-- The `struct` format of `count` times `one`, after `first` if there is one. Only one format ever follows a given `first`.
local function format_of(one, count, first)
  local of_one = formats[first or one]
  if not of_one then
    of_one = {}
    formats[first or one] = of_one
  end
  local format = of_one[count]
  if not format then
    format = (first or '<') .. rep(sub(one, 2), count)
    of_one[count] = format
  end
  return format
end

-- Lua's stack has no room for more numbers at once.
local MOST_AT_ONCE = 2000

-- Reads `count` times the format `one`, which has `width` numbers, into one flat list. Returns where they end.
local function read_flat(one, width, count, packed, at)
  if count * width <= MOST_AT_ONCE then
    local numbers = { unpack_struct(format_of(one, count), packed, at) }
    local size = count * width + 1
    at = numbers[size]
    numbers[size] = nil
    return numbers, at
  end
  local numbers = {}
  for i = 0, count - 1 do
    local some = { unpack_struct(one, packed, at) }
    for j = 1, width do numbers[i * width + j] = some[j] end
    at = some[width + 1]
  end
  return numbers, at
end

-- Writes what `read_flat` reads.
local function write_flat(one, width, count, numbers)
  if count * width <= MOST_AT_ONCE then return pack_struct(format_of(one, count), unpack(numbers, 1, count * width)) end
  local parts = {}
  for i = 1, count do parts[i] = pack_struct(one, unpack(numbers, (i - 1) * width + 1, i * width)) end
  return concat(parts)
end

-- Redis's own time, once it was asked for; the same for all calls that travel together.
local redis_time

-- Redis's time in milliseconds.
local function clock_of_redis()
  if not redis_time then
    local clock = call('TIME')
    redis_time = clock[1] * 1000 + floor(clock[2] / 1000)
  end
  return redis_time
end
