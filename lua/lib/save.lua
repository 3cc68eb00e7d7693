-- save: the one write that decides. Needs base, formats, ledger, windows, memory.

-- When the key is to expire, some time after the last thing that needs it. It only moves where it has to, as setting it costs more than
-- the value. Never, if there is a subscription or a window without end.
local function expiry(led)
  if led.subscribed > 0 then return 0 end
  local now, last = led.time, led.last_kept or 0
  if last == NEVER then return 0 end
  if led.memory then last = max(last, led.memory.young_expires, led.memory.old_expires) end
  local expires, least = led.expires, max(last, now) + SLACK
  -- Without `last_kept` the windows are those that the stored expiry was made for.
  if expires == 0 and not led.last_kept then return 0 end
  if expires == 0 or expires == NEVER or expires < least then return least + max(last - now, 0) end
  return expires
end

-- The last write of a script.
local function save_ledger(led)
  if led.windows then fold(led) else put_counters(led) end
  local expires, deadlines = expiry(led), led.deadlines
  led.expires, led.deadlines = expires, #deadlines
  local packed = write_head(led) .. (led.memory and write_memory(led.memory) or '') .. (led.subscribed > 0 and write_terms(led.terms) or '')
    .. led.schedule_bytes .. counters_bytes(led) .. deadlines .. led.tail
  if expires == led.stored_expires then
    call('SET', led.key, packed, 'KEEPTTL')
  elseif expires == 0 then
    call('SET', led.key, packed)
  else
    call('SET', led.key, packed, 'PXAT', expires)
  end
  if led.was_wrong then corrected_clocks = (corrected_clocks or 0) + 1 end
  lapsed_holds = (lapsed_holds or 0) + led.lapsed
end

-- The writes of a call that is denied: only what has lapsed, ended or was corrected meanwhile.
local function save_due(led, has_changed)
  if led.lapsed == 0 and not has_changed and not led.was_wrong then return end
  undo_windows(led)
  write_corrected(led)
  save_ledger(led)
end
