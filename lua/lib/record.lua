-- record: what is remembered of reservations and requests. Needs base.
--
-- SELF-CONTAINED: a reservation is settled by its record alone. A record is what RECORD_FORMAT says (state, whether it was committed late,
-- deadline, time to forget it, request id, event), and then its claims. The event is as the call brought it: name, quantity, quantities
-- and numeric metadata, as MessagePack. After a commit with actual values or a refund, the quantities follow that are settled otherwise
-- than reserved. A claim is what one group holds for it, as CLAIM_FORMAT says: charge, what was committed, how
-- much of that was refunded, the window's span and number, the group's terms, and the measures of the rules that held by name and
-- metadata, in the catalog's order, as MessagePack. Terms are what answers say of the group, and begin with its id and unit.
--
-- The claims of a tracked event are written alike, without measures; what of a refund could not be given back stands where a
-- reservation's have what was committed.

local RECORD_FORMAT = '<BBI6I6Bc0I4c0'
local R_STATE, R_LATE, R_DEADLINE, R_FORGET, R_REQUEST, R_EVENT, R_CLAIMS = 1, 2, 3, 4, 5, 6, 7

local CLAIM_FORMAT = '<I7I7I7c13I4Hc0I4c0'
local C_CHARGE, C_COMMITTED, C_REFUNDED, C_SPAN, C_WINDOW, C_TERMS, C_MEASURES, C_ID, C_UNIT = 1, 2, 3, 4, 5, 6, 7, 8, 9
local C_UNAPPLIED = 2

-- States of a reservation as stored. EXPIRED is not stored: it is HELD at or after the deadline.
local HELD_STATE, COMMITTED_STATE, RELEASED_STATE = 1, 2, 3

local STATE_NAMES = { 'held', 'committed', 'released' }

local function state_name(record, now)
  if record[R_STATE] == HELD_STATE and now >= record[R_DEADLINE] then return 'expired' end
  return STATE_NAMES[record[R_STATE]]
end

local function claim_bytes(charge, committed, refunded, span, number, terms, measures)
  return pack_struct(CLAIM_FORMAT, charge, committed, refunded, span, number, #terms, terms, #measures, measures)
end

local function claims_bytes(claims)
  local bytes = {}
  for i = 1, #claims do
    bytes[i] = claim_bytes(unpack(claims[i], 1, 7))
  end
  return concat(bytes)
end

-- The claims that stand in `packed` from a byte on.
local function read_claims(packed, at)
  local claims = {}
  while at <= #packed do
    local charge, committed, refunded, span, number, terms, measures
    charge, committed, refunded, span, number, terms, measures, at = unpack_struct(CLAIM_FORMAT, packed, at)
    local id, unit = unpack_struct('<Bc0B', terms)
    claims[#claims + 1] = { charge, committed, refunded, span, number, terms, measures, id, unit }
  end
  return claims
end

local function record_bytes(state, late, deadline, forget_at, request_id, event, claims)
  return pack_struct(RECORD_FORMAT, state, late, deadline, forget_at, #request_id, request_id, #event, event) .. claims
end

local function read_record(packed)
  local state, late, deadline, forget_at, request_id, event, at = unpack_struct(RECORD_FORMAT, packed)
  return { state, late == 1, deadline, forget_at, request_id, event, read_claims(packed, at) }
end

local function write_record(memory_key, field, record)
  local state, late, deadline, forget_at, request_id, event, claims = unpack(record)
  call('HSET', memory_key, field, record_bytes(state, late and 1 or 0, deadline, forget_at, request_id, event, claims_bytes(claims)))
end

-- ONE-CLOCK: where the ledger's time was wrong, no deadline of a hold can be trusted. The hold lapses now if it has not lapsed before,
-- and is remembered from now on. Returns whether that changed the record.
local function lapse_early(led, record)
  local now, deadline = led.time, record[R_DEADLINE]
  if not led.was_wrong or record[R_STATE] ~= HELD_STATE or deadline <= now then return false end
  record[R_DEADLINE], record[R_FORGET] = now, now + record[R_FORGET] - deadline
  return true
end

-- The reservation under `field`, unless it is unknown or forgotten.
local function load_record(led, memory_key, field)
  local packed = call('HGET', memory_key, field)
  if not packed then return nil end
  local record = read_record(packed)
  lapse_early(led, record)
  if led.time >= record[R_FORGET] then return nil end
  return record
end
