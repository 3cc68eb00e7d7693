#!lua flags=allow-oom
-- user_delete: deletes everything of a user. The keys that show live holds are named in the answer; the caller deletes them,
-- and they expire alone.
--
-- KEYS: subscription, ledger, memory, agenda
-- Answers: deleted [ nonce ]
-- uses: base

local live = call('ZRANGEBYSCORE', KEYS[4], '-inf', '(1e14')
local nonces = {}
for i = 1, #live do nonces[i] = sub(live[i], 2) end
-- UNLINK: a user may have left a million entries, which DEL would free while nobody else is served.
call('UNLINK', KEYS[1], KEYS[2], KEYS[3], KEYS[4])
return pack({ deleted = nonces })
