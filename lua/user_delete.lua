#!lua flags=allow-oom
-- user_delete: deletes everything of an owner. The answer names the fields of live holds, whose visible keys the caller deletes. Those
-- would expire alone.
--
-- KEYS: state, memory 1, memory 2
-- Answers: deleted [field]
-- uses: base formats

-- The state of a record.
local HELD, FIELD_BYTES, CHUNK, MOST_FIELDS = 1, 16, 1000, 10000

local clock = call('TIME')
local now = clock[1] * 1000 + floor(clock[2] / 1000)
local fields = {}
for i = 2, #KEYS do
  local cursor = '0'
  repeat
    local found = call('HSCAN', KEYS[i], cursor, 'COUNT', CHUNK)
    cursor = found[1]
    for j = 1, #found[2], 2 do
      local field = found[2][j]
      if #field == FIELD_BYTES and #fields < MOST_FIELDS then
        local record = read_record(found[2][j + 1])
        if record.state == HELD and record.deadline > now then fields[#fields + 1] = field end
      end
    end
  until cursor == '0'
end
-- UNLINK: an owner may have left a million entries, which DEL would free while nobody else is served.
call('UNLINK', KEYS[1], KEYS[2], KEYS[3])
return pack({ deleted = fields })
