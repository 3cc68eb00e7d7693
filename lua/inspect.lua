#!lua flags=no-writes
-- inspect: what of a user must be seen at one moment, as it is stored. For `tollgate verify`.
--
-- KEYS: subscription, ledger, memory, agenda
-- ARGV: how many live holds to read at most
-- Answers: inspected { redis time, types of the keys, their expiry times or -1, subscription or '', ledger or '', number of live
--          holds, [{ agenda entry, score, record or '' }], scores of the first and the last entry that is only remembered }
-- uses: base

local subscription_key, ledger_key, memory_key, agenda_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local most = ARGV[1]

-- Below the limit for the arguments of one call.
local CHUNK = 1000

local clock = call('TIME')
local redis_time = clock[1] * 1000 + floor(clock[2] / 1000)
local types, expiries = {}, {}
for i = 1, #KEYS do
  types[i] = call('TYPE', KEYS[i]).ok
  expiries[i] = call('PEXPIRETIME', KEYS[i])
end
local function value_of(key, position)
  return types[position] == 'string' and call('GET', key) or ''
end

local live, holds, remembered = 0, {}, {}
if types[4] == 'zset' then
  live = call('ZCOUNT', agenda_key, '-inf', '(1e14')
  local found = call('ZRANGEBYSCORE', agenda_key, '-inf', '(1e14', 'WITHSCORES', 'LIMIT', 0, most)
  for from = 1, #found, 2 * CHUNK do
    local members = {}
    for i = from, min(from + 2 * CHUNK, #found) - 1, 2 do members[#members + 1] = found[i] end
    local records = types[3] == 'hash' and call('HMGET', memory_key, unpack(members)) or {}
    for i = 1, #members do holds[#holds + 1] = { members[i], found[from + 2 * i - 1], records[i] or '' } end
  end
  local first = call('ZRANGEBYSCORE', agenda_key, '1e14', '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
  local last = call('ZREVRANGEBYSCORE', agenda_key, '+inf', '1e14', 'WITHSCORES', 'LIMIT', 0, 1)
  remembered = { first[2], last[2] }
end
return pack({
  inspected = {
    redis_time, types, expiries, value_of(subscription_key, 1), value_of(ledger_key, 2), live, holds, remembered,
  },
})
