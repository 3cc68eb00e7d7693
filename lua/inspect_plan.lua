#!lua flags=no-writes
-- inspect_plan: a plan of the archive. For `tollgate verify`.
--
-- KEYS: plan
-- ARGV: none
-- Answers: plan { type, expiry time or -1, message or '' }
-- uses: base

local kind = call('TYPE', KEYS[1]).ok
return pack({ plan = { kind, call('PEXPIRETIME', KEYS[1]), kind == 'string' and call('GET', KEYS[1]) or '' } })
