#!lua flags=no-writes
-- reservation_get: what is remembered of a reservation, as if everything due had been written.
--
-- KEYS: state, memory 1, memory 2
-- ARGV: settle_call
-- Answers: reservations, with the one reservation; fault
-- uses: base formats each price ledger windows memory deadlines record begin reservations

local function reservation_get(k, a)
  local asked = read_settle_call(ARGV[a + 1])
  local led, failed = begin(k)
  if not led then return failed end
  local record, reason = load_reservation(led, asked)
  if not record then return fault(reason) end
  return write_reservations({ kind = RESERVATIONS_KIND, memory = 0, is_last = 1, cursor = '', count = 1 })
    .. reservation_bytes(led, asked.field, record)
end

return each(reservation_get, 3, 1)
