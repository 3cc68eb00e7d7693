#!lua flags=allow-oom
-- api_key_put: adds an API key, or takes it away.
--
-- KEYS: API keys
-- ARGV: the key's id; its record, empty to take it away; the revision from now on
-- Answers: whether something changed: an id is never given to another key
-- uses: base

local id, record, revision = ARGV[1], ARGV[2], ARGV[3]
local known = call('HEXISTS', KEYS[1], id) == 1
if known == (record ~= '') then return pack(false) end

-- All checks are done: from here on, writes.
if record == '' then
  call('HDEL', KEYS[1], id)
else
  call('HSET', KEYS[1], id, record)
end
call('HSET', KEYS[1], 'revision', revision)
return pack(true)
