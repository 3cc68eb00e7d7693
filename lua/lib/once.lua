-- once: what a request id has done before. Needs base, record.
--
-- ONCE: the ids of one user are one namespace for Reserve and Track. The memory of an id is { 'reserve', digest, nonce }, and
-- lasts as long as the reservation's; or { 'track', digest, event id, forget at, claims }.

-- Returns nil for an id that is new; 'reused' if it came with another body or RPC; else its memory, and for a Reserve the
-- reservation's record.
local function recall(led, memory_key, request_id, kind, digest)
  if request_id == '' then return nil end
  local packed = call('HGET', memory_key, 'q' .. request_id)
  if not packed then return nil end
  local memory, record = unpack_message(packed), nil
  if memory[1] == 'reserve' then
    record = load_record(memory_key, 'r' .. memory[3], led.time)
    if not record then return nil end
  elseif led.time >= memory[4] then
    return nil
  end
  if memory[1] ~= kind or memory[2] ~= digest then return 'reused' end
  return memory, record
end
