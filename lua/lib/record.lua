-- record: what is remembered of reservations and requests. Needs base.
--
-- SELF-CONTAINED: a reservation is settled by its record alone. A claim is what one group holds for it; its measures are
-- those of the rules that held by name and metadata, in the catalog's order. R_LATE is there once it is committed: whether
-- that was late.

local R_STATE, R_DEADLINE, R_FORGET, R_REQUEST, R_EVENT, R_VALUES, R_CLAIMS, R_LATE = 1, 2, 3, 4, 5, 6, 7, 8

local C_ID, C_LABEL, C_UNIT, C_QUOTA, C_HARD, C_START, C_END, C_WINDOW, C_CHARGE = 1, 2, 3, 4, 5, 6, 7, 8, 9
-- In a reservation: the measures, what was committed (-1: nothing yet) and how much of that was refunded. In the memory of
-- a tracked event, position 10 is what of a refund could not be given back.
local C_MEASURES, C_COMMITTED, C_REFUNDED = 10, 11, 12
local C_UNAPPLIED = 10

-- States of a reservation as stored. EXPIRED is not stored: it is HELD at or after the deadline.
local HELD_STATE, COMMITTED_STATE, RELEASED_STATE = 1, 2, 3

local STATE_NAMES = { 'held', 'committed', 'released' }

local function state_name(record, now)
  if record[R_STATE] == HELD_STATE and now >= record[R_DEADLINE] then return 'expired' end
  return STATE_NAMES[record[R_STATE]]
end

-- The reservation under `field`, unless it is unknown or forgotten.
local function load_record(memory_key, field, now)
  local packed = call('HGET', memory_key, field)
  if not packed then return nil end
  local record = unpack_message(packed)
  if now >= record[R_FORGET] then return nil end
  return record
end
