-- record: what is remembered of reservations and tracked events. Needs base, formats, price, windows, memory, deadlines.
--
-- SELF-CONTAINED: a reservation is settled by its record, and by the plan whose digest is in it. A record stands under its field, which is
-- made of the request id, so that a retry finds it. Its claims say what each group was charged, and in which window.

local HELD, COMMITTED, COMMITTED_LATE, RELEASED, TRACKED, EXTENDED = 1, 2, 3, 4, 5, 6

-- States in answers.
local NO_STATE, STATE_HELD, STATE_COMMITTED, STATE_RELEASED, STATE_EXPIRED = 0, 1, 2, 3, 4

local STATE_WORDS = { 'held', 'committed', 'released', 'expired' }

-- `columns`: the claims are followed by what was committed, by what was refunded as well, and by the quotas.
local WITH_COMMITTED, WITH_REFUNDED, WITH_QUOTAS = 1, 2, 4

local CLAIM_WIDTH = 4

-- What happens at the deadline to what is still held.
local GIVES_BACK, COUNTS_UP = 0, 1

-- The claims of the record that was read last, whose tables the next one uses again.
local remembered, remembered_tables = {}, {}

-- The formats of records, by the number of spans and of claims.
local record_formats = {}

local function record_format(spans, count)
  local key = spans * 65536 + count
  local format = record_formats[key]
  if not format then
    format = RECORD_FORMAT .. 'c' .. SPAN_BYTES * spans .. rep(sub(CLAIM_FORMAT, 2), count)
    record_formats[key] = format
  end
  return format
end

local function state_of(record, now)
  local state = record.state
  if state == HELD then return now >= record.deadline and STATE_EXPIRED or STATE_HELD end
  if state == RELEASED then return STATE_RELEASED end
  return STATE_COMMITTED
end

-- What was committed where no column says so: as it was reserved. Of tracked events the column says what could not be applied.
local function committed_unsaid(record, charge)
  return record.state >= TRACKED and 0 or charge
end

-- How many bytes of `rest` the time takes at which a reservation of format 1 was made.
local MADE_BYTES = 6

-- The values of claims and of one column, until they are packed. Making a list costs more than filling one.
local claim_numbers, column_values = {}, {}

-- Puts the claims' numbers into `claim_numbers`. Returns the bytes of their spans, and how many spans there are.
local function number_claims(claims)
  local count, first = #claims, claims[1].span
  local numbers, spans, packed_spans, known, at = claim_numbers, 1, first, nil, 1
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
  return packed_spans, spans
end

-- One value of each claim.
local function column_of(claims, format, name)
  for i = 1, #claims do column_values[i] = claims[i][name] end
  return write_flat(format, 1, #claims, column_values)
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

-- The columns of a record with a `life`, and that.
local function life_bytes(record)
  local claims = record.claims
  local columns, packed = WITH_REFUNDED, column_of(claims, AMOUNT_FORMAT, 'committed') .. column_of(claims, AMOUNT_FORMAT, 'refunded')
  if claims[1].own_quota then
    columns, packed = columns + WITH_QUOTAS, packed .. column_of(claims, QUOTA_FORMAT, 'own_quota')
  end
  return columns, packed .. write_life(record) .. column_of(claims, AMOUNT_FORMAT, 'due') .. column_of(claims, AMOUNT_FORMAT, 'locked')
end

-- The bytes of a record whose claims are tables.
local function record_bytes(record)
  local claims, columns, column_bytes = record.claims, 0, ''
  if record.format == LIVING_FORMAT then
    columns, column_bytes = life_bytes(record)
  else
    -- What is only held has nothing else to say.
    if record.state ~= HELD then columns, column_bytes = columns_of(record) end
    if claims[1] and claims[1].own_quota then
      columns, column_bytes = columns + WITH_QUOTAS, column_bytes .. column_of(claims, QUOTA_FORMAT, 'own_quota')
    end
  end
  if record.claim_bytes then
    return pack_struct(RECORD_FORMAT, record.format, record.state, record.paged, record.epoch, record.deadline, record.forget, record.digest,
      record.suffix, record.plan, #record.what, record.what, #record.quantities, record.quantities, #record.settled, record.settled,
      columns, record.spans, #claims) .. record.claim_bytes .. column_bytes .. record.rest
  end
  local count, packed_spans, spans = #claims, number_claims(claims)
  return pack_struct(record_format(spans, count), record.format, record.state, record.paged, record.epoch, record.deadline, record.forget, record.digest,
    record.suffix, record.plan, #record.what, record.what, #record.quantities, record.quantities, #record.settled, record.settled,
    columns, spans, count, packed_spans, unpack(claim_numbers, 1, count * CLAIM_WIDTH)) .. column_bytes .. record.rest
end

local function remembered_table(i)
  local claim = {
    place = 0, window = false, number = 0, span = false, charge = 0, committed = 0, refunded = 0, own_quota = false, due = 0, locked = 0,
  }
  remembered_tables[i] = claim
  return claim
end

-- Reads a record. The one before it is not read any more.
local function parse_record(packed)
  local record, at = read_record(packed)
  local count, columns = record.claims, record.columns
  local spans, numbers = at, nil
  numbers, at = read_flat(CLAIM_FORMAT, CLAIM_WIDTH, count, packed, at + record.spans * SPAN_BYTES)
  -- What was charged does not change any more.
  record.claim_bytes = sub(packed, spans, at - 1)
  local claims, from, first_span = remembered, 0, sub(packed, spans, spans + SPAN_BYTES - 1)
  for i = 1, count do
    local claim, span, charge = remembered_tables[i] or remembered_table(i), first_span, numbers[from + 4]
    if numbers[from + 3] > 1 then
      local at = spans + (numbers[from + 3] - 1) * SPAN_BYTES
      span = sub(packed, at, at + SPAN_BYTES - 1)
    end
    claim.place, claim.number, claim.span, claim.charge = numbers[from + 1], numbers[from + 2], span, charge
    claim.window, claim.committed, claim.refunded, claim.own_quota = nil, committed_unsaid(record, charge), 0, false
    claims[i], from = claim, from + CLAIM_WIDTH
  end
  for i = count + 1, #claims do claims[i] = nil end
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
  if record.format == LIVING_FORMAT then
    local life
    life, at = read_life(packed, at)
    record.made_at, record.sequence, record.on_expiry = life.made_at, life.sequence, life.on_expiry
    record.named, record.added, record.extensions, record.settled_what = life.named, life.added, life.extensions, life.settled_what
    column(AMOUNT_FORMAT, 'due')
    column(AMOUNT_FORMAT, 'locked')
  end
  record.claims, record.rest = claims, sub(packed, at)
  return record
end

-- The record that a script makes, whose table the next call uses again.
local made = {
  format = FORMAT, state = 0, paged = 0, epoch = 0, deadline = 0, forget = 0, digest = '', suffix = '', plan = '', what = '', quantities = '', settled = '',
  claims = false, rest = '', made_at = false, sequence = 0, on_expiry = GIVES_BACK, named = '', added = '', extensions = '',
  settled_what = '',
}

-- A record of what the call does, which has no event and no deadline yet.
local function new_record(led, once, state, plan_digest, claims, forget_at)
  made.state, made.epoch, made.forget, made.claims = state, led.memory and led.memory.epoch or 0, forget_at, claims
  made.digest, made.suffix, made.plan = once.digest, once.suffix, plan_digest
  made.format, made.made_at, made.rest = FORMAT, false, state == HELD and pack_struct(MADE_FORMAT, led.time) or ''
  return made
end

-- The record under this field; else nil and the reason: it is unknown or forgotten, or a later version has written it.
local function load_record(led, field)
  local packed = known_field(led, field)
  if not packed then return nil, 'RESERVATION_NOT_FOUND' end
  if byte(packed) > LIVING_FORMAT then return nil, 'FORMAT_UNKNOWN' end
  local record = parse_record(packed)
  record.field = field
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
  if record.state >= TRACKED or record.suffix ~= settle.suffix or record.plan ~= settle.plan then return nil, 'RESERVATION_NOT_FOUND' end
  return record
end

-- What the claims hold, as parts of deadlines.
local held_parts = {}

local function parts_of(claims)
  local parts, at = held_parts, 1
  for i = 1, #claims do
    parts[at], parts[at + 1] = claims[i].number, claims[i].charge
    at = at + PART_WIDTH
  end
  for i = at, #parts do parts[i] = nil end
  return parts
end

-- The same of a reservation with a `life`: what of it was not committed so far. It is a new list.
local function parts_of_life(record)
  local parts, counts = {}, record.on_expiry == COUNTS_UP and COUNTS or 0
  for i, claim in ipairs(record.claims) do
    parts[2 * i - 1], parts[2 * i] = claim.number + counts, max(claim.charge - claim.committed, 0)
  end
  return parts
end

-- The claim's window; false if it is kept no longer.
local function window_of(led, claim)
  local window = claim.window
  if window == nil then
    -- Nearly always the counters are still in the order of the record's plan.
    if not led.windows and led.time < led.current_until and number_at(led, claim.place) == claim.number then
      window = window_at(led, claim.place)
    else
      window = kept_window(led, claim.number) or false
    end
    claim.window = window
  end
  return window
end

-- Gives back what the reservation holds before its deadline. Returns the bucket to write with it, if there is one.
local function end_hold(led, record)
  local claims, parts = record.claims, record.format == LIVING_FORMAT and parts_of_life(record) or parts_of(record.claims)
  for i = 1, #claims do
    local window = window_of(led, claims[i])
    -- Never less than nothing, whatever somebody has deleted by hand.
    if window then window.held = max(window.held - parts[2 * i], 0) end
  end
  return remove_deadline(led, record.deadline, record.paged == 1, parts)
end

-- When the reservation was made. One without that time is of an earlier version, and was made less than an hour before its deadline.
local function made_at(record)
  return record.made_at or #record.rest >= MADE_BYTES and unpack_struct(MADE_FORMAT, record.rest)
    or max(record.deadline - LONGEST_HOLD, 0)
end

local SETTLEMENT_BYTES = 6

-- Notes with which writing of the memory the reservation is committed, where a reset is told from it by that.
local function note_settlement(led, record)
  if record.format == LIVING_FORMAT then
    record.sequence = led.memory.sequence + 1
  elseif led.format ~= FORMAT then
    record.rest = pack_struct(MADE_FORMAT, made_at(record)) .. pack_struct(SETTLEMENT_FORMAT, led.memory.sequence + 1)
      .. sub(record.rest, MADE_BYTES + SETTLEMENT_BYTES + 1)
  end
end

-- Whether the window was reset since the reservation was committed. Needs windows that are unfolded.
local function is_reset_since(window, record)
  if window.reset == 0 then return false end
  local has_sequence = #record.rest >= MADE_BYTES + SETTLEMENT_BYTES
  local sequence = record.sequence or has_sequence and unpack_struct(SETTLEMENT_FORMAT, record.rest, MADE_BYTES + 1) or 0
  return sequence <= window.reset
end

-- What a request id has done: nil if it is new; false and the reason if it came with another body or RPC, or a later version has written it;
-- else its record. `state` is that of the records of the RPC: HELD, TRACKED or EXTENDED. For an Extend it is the record of its reservation, and
-- then what each claim was charged.
local function recall(led, once, state)
  if once.has_id == 0 then return nil end
  local record, reason = load_record(led, once.field)
  local found, digest, costs = record and record.state, record and record.digest, nil
  if found == EXTENDED then
    local suffix = record.suffix
    costs = {}
    for i = 1, #record.claims do costs[i] = record.claims[i].charge end
    record, reason = load_record(led, record.what)
    if record and (record.state >= TRACKED or record.suffix ~= suffix) then record = nil end
  elseif found and found < TRACKED then
    found = HELD
  end
  if not record then
    if reason == 'FORMAT_UNKNOWN' then return false, reason end
    return nil
  end
  if found ~= state or digest ~= once.digest then return false, 'REQUEST_ID_REUSED' end
  return record, costs
end
