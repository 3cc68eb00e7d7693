-- reservations: how reservations are answered to whoever looks them up. Needs base, formats, record.

-- What begins such an answer.
local RESERVATIONS_KIND = 5

-- The reservation under this field: what the time makes of it, and its record as it is stored.
local function reservation_bytes(led, field, record)
  local packed = known[field]
  return pack_struct(RESERVATION_FORMAT, field, state_of(record, led.time), record.deadline, #packed, packed)
end
