#!lua flags=no-writes
-- api_keys: Redis's time, and the records of all API keys, unless the caller knows them already.
--
-- KEYS: API keys
-- ARGV: the revision that the caller knows
-- Answers: { time, revision, records: { id, record, ... }, or false for a known revision }
-- uses: base

local revision = call('HGET', KEYS[1], 'revision') or ''
local clock = call('TIME')
local now = clock[1] * 1000 + floor(clock[2] / 1000)
if revision == ARGV[1] then return pack({ now, revision, false }) end
return pack({ now, revision, call('HGETALL', KEYS[1]) })
