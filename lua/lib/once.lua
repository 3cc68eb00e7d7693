-- once: what a request id has done before. Needs base, record.
--
-- ONCE: the ids of one user are one namespace for Reserve and Track. The memory of an id is 'reserve', digest, nonce, and lasts as long
-- as the reservation's; or 'track', digest, event id, forget at, claims; one MessagePack value after the other.

-- Returns nil for an id that is new; 'reused' if it came with another body or RPC; else the nonce and the reservation's record, or the
-- event id and the claims.
local function recall(led, memory_key, request_id, wanted, digest)
  if request_id == '' then return nil end
  local packed = call('HGET', memory_key, 'q' .. request_id)
  if not packed then return nil end
  local kind, stored_digest, id, forget_at, remembered = unpack_message(packed)
  if kind == 'reserve' then
    remembered = load_record(led, memory_key, 'r' .. id)
    if not remembered then return nil end
  elseif led.time >= forget_at then
    return nil
  end
  if kind ~= wanted or stored_digest ~= digest then return 'reused' end
  return id, remembered
end
