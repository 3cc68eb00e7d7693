-- base: the constants and names that all scripts share. Needs nothing.
--
-- Numbers: a Lua number is a double. Every amount, time and count here is an integer of at most MAX, which a double
-- holds exactly; they travel and are stored as integers of MessagePack or of `struct`, and are never turned into text by tostring.

local MAX = 9007199254740991

-- A time that does not come.
local NEVER = MAX

-- The unit codes are 1 count, 2 tokens, 3 seconds, 4 cents; this is the largest counter of each, in smallest units.
local MAX_UNITS = { MAX, MAX, MAX, 8000000000000000 }

local call = redis.call
local pack = cmsgpack.pack
local unpack_message = cmsgpack.unpack
-- Decodes so many values, from so many bytes on. Returns where it stopped (-1: at the end), and the values.
local unpack_some = cmsgpack.unpack_limit
-- Formats are fixed and little-endian: `In` an integer of n bytes, `in` a signed one, `cn` text of n bytes, `Bc0` text after its length.
local pack_struct, unpack_struct = struct.pack, struct.unpack
local sub, format = string.sub, string.format
-- Of a list that grows, as text that grows is copied each time.
local concat = table.concat
local floor, max, min = math.floor, math.max, math.min

-- The answer of a script that found something wrong; `reason` is the ErrorInfo reason, and nothing was written.
local function fault(reason, group, name)
  return pack({ fault = { reason, group or '', name or '' } })
end

-- How many bytes of messages are remembered with what they decode to, which takes some ten times as many. A function remembers them from
-- call to call, a script only while it runs.
local MOST_REMEMBERED = 250000

-- A compiled plan as a call has it, or false for 'none' and 'unknown'. Calls that share a message share what it decodes to, which no
-- script changes.
local plans, plan_bytes = {}, 0

local function plan_of(message)
  if message == 'none' or message == 'unknown' then return false end
  local plan = plans[message]
  if not plan then
    plan = unpack_message(message)
    -- Plans come and go with their windows.
    if plan_bytes > MOST_REMEMBERED then plans, plan_bytes = {}, 0 end
    plans[message], plan_bytes = plan, plan_bytes + #message
  end
  return plan
end

-- Redis's own time, once it was asked for; the same for all calls that travel together.
local redis_time

-- How many lapsed holds they have written, and how many ledgers whose time had been wrong.
local lapsed_holds, corrected_clocks

-- Several calls of one script, of any users, travel together: the keys and the arguments of one after those of another. Each has its
-- answer, in their order, and an error of one does not touch the others. If holds have lapsed or clocks were corrected, both numbers
-- come after the answers. `run` takes how many keys and arguments come before its own.
local function each(run, key_count, argument_count)
  redis_time, lapsed_holds, corrected_clocks = nil, 0, 0
  local calls = #ARGV / argument_count
  local answers = {}
  if calls == 1 then
    answers[1] = run(0, 0)
  else
    for i = 0, calls - 1 do
      local ran, answer = pcall(run, i * key_count, i * argument_count)
      if not ran then answer = fault('SCRIPT_ERROR', '', type(answer) == 'table' and answer.err or tostring(answer)) end
      answers[i + 1] = answer
    end
  end
  if lapsed_holds + corrected_clocks > 0 then answers[calls + 1], answers[calls + 2] = lapsed_holds, corrected_clocks end
  return answers
end
