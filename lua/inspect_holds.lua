#!lua flags=no-writes
-- inspect_holds: keys that show live holds, and the records that they belong to. For `tollgate verify`.
--
-- KEYS: state, memory 1, memory 2, then holds
-- ARGV: the fields of the holds, in their order
-- Answers: holds { redis time, beginning of the state (more than head and memory take) or '', [undo of each memory or ''],
--          [{ type, expiry time or -1, text or '', [record in each memory or ''] }] }
-- uses: base

local HEAD = 399

local clock = call('TIME')
local redis_time = clock[1] * 1000 + floor(clock[2] / 1000)
local function is_a(key, kind)
  return call('TYPE', key).ok == kind
end

local has_memory, undos = {}, {}
for i = 1, 2 do
  has_memory[i] = is_a(KEYS[i + 1], 'hash')
  undos[i] = has_memory[i] and call('HGET', KEYS[i + 1], 'u') or ''
end
local holds = {}
for i = 4, #KEYS do
  local records = {}
  for memory = 1, 2 do
    records[memory] = has_memory[memory] and call('HGET', KEYS[memory + 1], ARGV[i - 3]) or ''
  end
  local kind = call('TYPE', KEYS[i]).ok
  holds[#holds + 1] = { kind, call('PEXPIRETIME', KEYS[i]), kind == 'string' and call('GET', KEYS[i]) or '', records }
end
local head = is_a(KEYS[1], 'string') and call('GETRANGE', KEYS[1], 0, HEAD - 1) or ''
return pack({ holds = { redis_time, head, undos, holds } })
