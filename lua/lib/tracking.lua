-- tracking: what track and both refunds share. Needs base, memory, save, record, answer.

-- Remembers the call if it has a request id, and writes the ledger: the last writes of the three scripts. `fields` are others to write
-- to the memory, which are remembered until `forget_at` at most.
local function write_tracked(led, once, plan_digest, claims, replay_ms, fields, forget_at)
  local record = {
    format = FORMAT, state = TRACKED, paged = 0, epoch = led.memory and led.memory.epoch or 0, deadline = 0, forget = led.time + replay_ms,
    digest = once.digest, suffix = once.suffix, plan = plan_digest, what = '', quantities = '', settled = '', claims = claims, rest = '',
  }
  if once.has_id == 1 then
    fields[#fields + 1], fields[#fields + 2] = once.field, record_bytes(record)
    forget_at = max(forget_at, record.forget)
  end
  if fields[1] then write_fields(led, fields, forget_at) end
  write_corrected(led)
  save_ledger(led)
  return record
end
