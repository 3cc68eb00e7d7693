-- tracking: what track and both refunds share. Needs base, record, report, agenda, ledger, once.

-- The answer, from what is remembered of the call.
local function tracked(led, event_id, claims, replayed)
  local rows = {}
  for i = 1, #claims do rows[i] = claim_row(led, claims[i], claims[i][C_CHARGE], claims[i][C_UNAPPLIED]) end
  return TRACKED .. pack('matched', event_id, concat(rows), replayed)
end

-- What a group was charged, or of a refund given back, and what of that could not be.
local function tracked_claim(group, w, charge, unapplied)
  return { charge, unapplied, 0, span_of(w), w[NUMBER], group[G_TERMS], '', group[G_ID], group[G_UNIT] }
end

-- Remembers the call if it has a request id, and writes the ledger: the last writes of the three scripts.
local function write_tracked(keys, led, lapsed, request_id, digest, event_id, forget_at, claims)
  write_lapsed(led, keys.agenda, keys.memory, lapsed)
  if request_id ~= '' then
    local field = 'q' .. request_id
    call('HSET', keys.memory, field, pack('track', digest, event_id, forget_at, claims_bytes(claims)))
    remember(led, keys.agenda, field, forget_at)
  else
    forget_at = 0
  end
  tidy_memory(led, keys.agenda, keys.memory, forget_at)
  save_ledger(led)
end
