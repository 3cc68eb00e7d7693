-- record: what is remembered of reservations and tracked events. Needs base, formats, price, windows, memory, deadlines.
--
-- SELF-CONTAINED: a reservation is settled by its record, and by the plan whose digest is in it. A record stands under its field, which is
-- made of the request id, so that a retry finds it. Its claims say what each group was charged, and in which window.

local HELD, COMMITTED, COMMITTED_LATE, RELEASED, TRACKED = 1, 2, 3, 4, 5

-- States in answers.
local NO_STATE, STATE_HELD, STATE_COMMITTED, STATE_RELEASED, STATE_EXPIRED = 0, 1, 2, 3, 4

local STATE_WORDS = { 'held', 'committed', 'released', 'expired' }

-- `columns`: the claims are followed by what was committed, by what was refunded as well, and by the quotas.
local WITH_COMMITTED, WITH_REFUNDED, WITH_QUOTAS = 1, 2, 4

local CLAIM_WIDTH = 4

local function state_of(record, now)
  local state = record.state
  if state == HELD then return now >= record.deadline and STATE_EXPIRED or STATE_HELD end
  if state == RELEASED then return STATE_RELEASED end
  return STATE_COMMITTED
end

-- What was committed where no column says so: as it was reserved. Of tracked events the column says what could not be applied.
local function committed_unsaid(record, charge)
  return record.state == TRACKED and 0 or charge
end

-- The bytes of the claims, before them those of their spans, and how many spans there are.
local function claims_bytes(claims)
  local count, first = #claims, claims[1] and claims[1].span
  local numbers, spans, packed_spans, known, at = { 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }, 1, first, nil, 1
  if count == 0 then return '', 0 end
  for i = 1, count do
    local claim = claims[i]
    local span = 1
    -- Nearly always all of them have the same one.
    if claim.span ~= first then
      known = known or {}
      span = known[claim.span]
      if not span then
        span, spans, packed_spans = spans + 1, spans + 1, packed_spans .. claim.span
        known[claim.span] = span
      end
    end
    numbers[at], numbers[at + 1], numbers[at + 2], numbers[at + 3] = claim.place, claim.number, span, claim.charge
    at = at + CLAIM_WIDTH
  end
  return packed_spans .. write_flat(CLAIM_FORMAT, CLAIM_WIDTH, count, numbers), spans
end

-- One value of each claim.
local function column_of(claims, format, name)
  local values = {}
  for i = 1, #claims do values[i] = claims[i][name] end
  return write_flat(format, 1, #claims, values)
end

-- Which columns the claims need, and their bytes.
local function columns_of(record)
  local claims, columns, packed = record.claims, 0, ''
  for i = 1, #claims do
    local claim = claims[i]
    if claim.refunded and claim.refunded > 0 then
      columns = WITH_REFUNDED
    elseif columns == 0 and claim.committed and claim.committed ~= committed_unsaid(record, claim.charge) then
      columns = WITH_COMMITTED
    end
  end
  if columns >= WITH_COMMITTED then packed = column_of(claims, AMOUNT_FORMAT, 'committed') end
  if columns >= WITH_REFUNDED then packed = packed .. column_of(claims, AMOUNT_FORMAT, 'refunded') end
  return columns, packed
end

-- The bytes of a record whose claims are tables.
local function record_bytes(record)
  local claims, columns, column_bytes = record.claims, 0, ''
  -- What is only held has nothing else to say.
  if record.state ~= HELD then columns, column_bytes = columns_of(record) end
  if claims[1] and claims[1].own_quota then
    columns, column_bytes = columns + WITH_QUOTAS, column_bytes .. column_of(claims, QUOTA_FORMAT, 'own_quota')
  end
  local packed, spans = claims_bytes(claims)
  return pack_struct(RECORD_FORMAT, FORMAT, record.state, record.paged, record.epoch, record.deadline, record.forget, record.digest,
    record.suffix, record.plan, #record.what, record.what, #record.quantities, record.quantities, #record.settled, record.settled,
    columns, spans, #claims) .. packed .. column_bytes .. record.rest
end

local function parse_record(packed)
  local record, at = read_record(packed)
  local count, columns = record.claims, record.columns
  local spans, numbers = at, nil
  numbers, at = read_flat(CLAIM_FORMAT, CLAIM_WIDTH, count, packed, at + record.spans * SPAN_BYTES)
  local claims = {}
  for i = 1, count do
    local from = (i - 1) * CLAIM_WIDTH
    local span, charge = spans + (numbers[from + 3] - 1) * SPAN_BYTES, numbers[from + 4]
    claims[i] = {
      place = numbers[from + 1], number = numbers[from + 2], span = sub(packed, span, span + SPAN_BYTES - 1), charge = charge,
      committed = committed_unsaid(record, charge), refunded = 0,
    }
  end
  local function column(format, name)
    local values
    values, at = read_flat(format, 1, count, packed, at)
    for i = 1, count do claims[i][name] = values[i] end
  end
  local has_quotas = columns >= WITH_QUOTAS
  if has_quotas then columns = columns - WITH_QUOTAS end
  if columns >= WITH_COMMITTED then column(AMOUNT_FORMAT, 'committed') end
  if columns >= WITH_REFUNDED then column(AMOUNT_FORMAT, 'refunded') end
  if has_quotas then column(QUOTA_FORMAT, 'own_quota') end
  record.claims, record.rest = claims, sub(packed, at)
  return record
end

-- The record under this field; else nil and the reason: it is unknown or forgotten, or a later version has written it.
local function load_record(led, field)
  local packed = known_field(led, field)
  if not packed then return nil, 'RESERVATION_NOT_FOUND' end
  if byte(packed) ~= FORMAT then return nil, 'FORMAT_UNKNOWN' end
  local record = parse_record(packed)
  local memory = led.memory
  -- ONE-CLOCK: after a wrong clock no deadline that was set before can be trusted. The hold has lapsed when the clock was corrected.
  if record.state == HELD and record.epoch ~= memory.epoch and record.deadline > memory.corrected then
    record.forget = memory.corrected + record.forget - record.deadline
    record.deadline = memory.corrected
  end
  if led.time >= record.forget then return nil, 'RESERVATION_NOT_FOUND' end
  return record
end

-- The reservation that the call is about; else nil and the reason.
local function load_reservation(led, settle)
  local record, reason = load_record(led, settle.field)
  if not record then return nil, reason end
  -- Another one had the same request id before, and is forgotten.
  if record.state == TRACKED or record.suffix ~= settle.suffix or record.plan ~= settle.plan then return nil, 'RESERVATION_NOT_FOUND' end
  return record
end

-- What the claims hold, as parts of deadlines.
local function parts_of(claims)
  local parts, at = { 0, 0, 0, 0, 0, 0 }, 1
  for i = 1, #claims do
    parts[at], parts[at + 1] = claims[i].number, claims[i].charge
    at = at + PART_WIDTH
  end
  for i = at, #parts do parts[i] = nil end
  return parts
end

-- Gives back what the reservation holds before its deadline. Returns the bucket to write with it, if there is one.
local function end_hold(led, record)
  local parts = parts_of(record.claims)
  give_back(led, parts)
  return remove_deadline(led, record.deadline, record.paged == 1, parts)
end

-- What a request id has done: nil if it is new; false and the reason if it came with another body or RPC, or a later version has written it;
-- else its record.
local function recall(led, once, is_track)
  if once.has_id == 0 then return nil end
  local record, reason = load_record(led, once.field)
  if not record then
    if reason == 'FORMAT_UNKNOWN' then return false, reason end
    return nil
  end
  if (record.state == TRACKED) ~= is_track or record.digest ~= once.digest then return false, 'REQUEST_ID_REUSED' end
  return record
end
