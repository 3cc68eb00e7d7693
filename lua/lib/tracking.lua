-- tracking: what track and both refunds share. Needs base, memory, save, record, answer.

-- Remembers the call if it has a request id, and writes the ledger: the last writes of the three scripts. `field` is another one to write
-- to the memory, which is remembered until `forget_at`.
local function write_tracked(led, once, plan_digest, claims, replay_ms, forget_at, field, value)
  local record = {
    state = TRACKED, paged = 0, epoch = led.memory and led.memory.epoch or 0, deadline = 0, forget = led.time + replay_ms,
    digest = once.digest, suffix = once.suffix, plan = plan_digest, what = '', quantities = '', settled = '', claims = claims, rest = '',
  }
  if once.has_id == 1 then
    write_fields(led, max(forget_at or 0, record.forget), once.field, record_bytes(record), field, value)
  elseif field then
    write_fields(led, forget_at, field, value)
  end
  write_corrected(led)
  save_ledger(led)
  return record
end
