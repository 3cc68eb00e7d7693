#!lua flags=no-writes
-- inspect_agenda: some of a user's agenda, and which of its entries the memory knows nothing of. For `tollgate verify`.
--
-- KEYS: memory, agenda
-- ARGV: cursor; about how many entries
-- Answers: agenda { next cursor, [{ entry without a memory, score }] }
-- uses: base

local memory_key, agenda_key = KEYS[1], KEYS[2]
local cursor, count = ARGV[1], ARGV[2]

local unknown, next_cursor = {}, '0'
if call('TYPE', agenda_key).ok == 'zset' then
  local found = call('ZSCAN', agenda_key, cursor, 'COUNT', count)
  local has_memory = call('TYPE', memory_key).ok == 'hash'
  next_cursor = found[1]
  for i = 1, #found[2], 2 do
    local entry, score = found[2][i], found[2][i + 1]
    if not has_memory or call('HEXISTS', memory_key, entry) == 0 then unknown[#unknown + 1] = { entry, score } end
  end
end
return pack({ agenda = { next_cursor, unknown } })
