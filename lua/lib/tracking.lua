-- tracking: what track and both refunds share. Needs base, record, report, agenda, ledger, once.

-- The answer to a retry, from the memory of the first call.
local function replay_tracked(led, memory)
  local rows = {}
  for i = 1, #memory[5] do
    local claim = memory[5][i]
    rows[i] = claim_row(led, claim, claim[C_CHARGE], claim[C_UNAPPLIED])
  end
  return pack({ tracked = { 'matched', memory[3], rows, true } })
end

-- Remembers the call if it has a request id, and writes the ledger: the last writes of the three scripts.
local function write_tracked(keys, led, lapsed, request_id, digest, event_id, forget_at, claims)
  write_lapsed(keys.agenda, lapsed)
  if request_id ~= '' then
    local field = 'q' .. request_id
    call('HSET', keys.memory, field, pack({ 'track', digest, event_id, forget_at, claims }))
    remember(led, keys.agenda, field, forget_at)
  else
    forget_at = 0
  end
  tidy_memory(led, keys.agenda, keys.memory, forget_at)
  save_ledger(keys.ledger, led)
end
