#!lua flags=no-writes
-- inspect_memory: some of a user's memory, and what each of its fields has to agree with. For `tollgate verify`.
--
-- KEYS: ledger, memory, agenda
-- ARGV: cursor; about how many fields
-- Answers: memory { redis time, ledger or '', next cursor, [{ field, value, score in the agenda or '', other value or '' }] };
--          the other value of a reservation is that of its request id, and of a request id that of its reservation
-- uses: base record

local ledger_key, memory_key, agenda_key = KEYS[1], KEYS[2], KEYS[3]
local cursor, count = ARGV[1], ARGV[2]

local clock = call('TIME')
local redis_time = clock[1] * 1000 + floor(clock[2] / 1000)
local function is_a(key, kind)
  return call('TYPE', key).ok == kind
end

local function other_value(field, packed)
  -- What cannot be unpacked is the caller's to report.
  local id, other
  if sub(field, 1, 1) == 'r' then
    local read, record = pcall(read_record, packed)
    id, other = read and record[R_REQUEST], 'q'
  else
    local read, kind, _, nonce = pcall(unpack_message, packed)
    id, other = read and kind == 'reserve' and nonce, 'r'
  end
  return type(id) == 'string' and id ~= '' and call('HGET', memory_key, other .. id) or ''
end

local entries, next_cursor = {}, '0'
if is_a(memory_key, 'hash') then
  local found = call('HSCAN', memory_key, cursor, 'COUNT', count)
  local has_agenda = is_a(agenda_key, 'zset')
  next_cursor = found[1]
  for i = 1, #found[2], 2 do
    local field, value = found[2][i], found[2][i + 1]
    local score = has_agenda and call('ZSCORE', agenda_key, field) or ''
    entries[#entries + 1] = { field, value, score, other_value(field, value) }
  end
end
local ledger = is_a(ledger_key, 'string') and call('GET', ledger_key) or ''
return pack({ memory = { redis_time, ledger, next_cursor, entries } })
