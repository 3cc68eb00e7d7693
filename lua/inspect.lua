#!lua flags=no-writes
-- inspect: what of a user must be seen at one moment, as it is stored, and some of both memories. For `tollgate verify`.
--
-- KEYS: state, memory 1, memory 2
-- ARGV: cursor of memory 1, cursor of memory 2 ('' for one that was read to its end), about how many fields of each to read
-- Answers: inspected { redis time, types of the keys, their expiry times or -1, state or '', stamp, [undo of each memory or ''],
--          [{ next cursor ('' after the last field), [field, value, ...] } of each memory] };
--          while the stamp is the same, nothing that decides was written. The first call (both cursors '0') has the whole state, the
--          others have its beginning: more than head and memory take
-- uses: base

local HEAD = 399

local clock = call('TIME')
local redis_time = clock[1] * 1000 + floor(clock[2] / 1000)
local types, expiries = {}, {}
for i = 1, 3 do
  types[i] = call('TYPE', KEYS[i]).ok
  expiries[i] = call('PEXPIRETIME', KEYS[i])
end

local undos, pages = {}, {}
for i = 1, 2 do
  local is_hash, cursor = types[i + 1] == 'hash', ARGV[i]
  undos[i] = is_hash and call('HGET', KEYS[i + 1], 'u') or ''
  local found = is_hash and cursor ~= '' and call('HSCAN', KEYS[i + 1], cursor, 'COUNT', ARGV[3]) or { '0', {} }
  pages[i] = { found[1] == '0' and '' or found[1], found[2] }
end
local state = types[1] == 'string' and call('GET', KEYS[1]) or ''
local stamp = redis.sha1hex(#state .. ':' .. state .. undos[1] .. undos[2])
if ARGV[1] ~= '0' or ARGV[2] ~= '0' then state = sub(state, 1, HEAD) end
return pack({ inspected = { redis_time, types, expiries, state, stamp, undos, pages } })
