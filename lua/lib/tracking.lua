-- tracking: what track and both refunds share. Needs base, memory, save, record, answer.

-- Remembers the call if it has a request id, and writes the ledger: the last writes of the three scripts. `field` is another one to write
-- to the memory, which is remembered until `forget_at`.
local function write_tracked(led, once, plan_digest, claims, replay_ms, forget_at, field, value)
  local record = new_record(led, once, TRACKED, plan_digest, claims, led.time + replay_ms)
  if once.has_id == 1 then
    write_fields(led, max(forget_at or 0, record.forget), once.field, record_bytes(record), field, value)
  elseif field then
    write_fields(led, forget_at, field, value)
  end
  write_corrected(led)
  save_ledger(led)
  return record
end
