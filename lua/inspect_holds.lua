#!lua flags=no-writes
-- inspect_holds: keys that show live holds, and the reservations that they belong to. For `tollgate verify`.
--
-- KEYS: ledger, memory, agenda, then holds
-- ARGV: the nonces of the holds, in their order
-- Answers: holds { redis time, ledger or '', [{ type, expiry time or -1, text or '', score in the agenda or '', record or '' }] }
-- uses: base

local ledger_key, memory_key, agenda_key = KEYS[1], KEYS[2], KEYS[3]

local clock = call('TIME')
local redis_time = clock[1] * 1000 + floor(clock[2] / 1000)
local function is_a(key, kind)
  return call('TYPE', key).ok == kind
end

local has_memory, has_agenda = is_a(memory_key, 'hash'), is_a(agenda_key, 'zset')
local holds = {}
for i = 4, #KEYS do
  local hold_key, field = KEYS[i], 'r' .. ARGV[i - 3]
  local kind = call('TYPE', hold_key).ok
  holds[#holds + 1] = {
    kind,
    call('PEXPIRETIME', hold_key),
    kind == 'string' and call('GET', hold_key) or '',
    has_agenda and call('ZSCORE', agenda_key, field) or '',
    has_memory and call('HGET', memory_key, field) or '',
  }
end
local ledger = is_a(ledger_key, 'string') and call('GET', ledger_key) or ''
return pack({ holds = { redis_time, ledger, holds } })
