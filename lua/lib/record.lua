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

local CLAIM_WIDTH, SPAN_WIDTH = 4, 2

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

-- The bytes of a record whose claims are tables.
local function record_bytes(record)
  local claims, spans, known, numbers = record.claims, {}, {}, {}
  local count, columns = #claims, 0
  for i = 1, count do
    local claim = claims[i]
    local of_start = known[claim.start]
    local span = of_start and of_start[claim.ends]
    if not span then
      span = #spans / SPAN_WIDTH + 1
      spans[#spans + 1], spans[#spans + 2] = claim.start, claim.ends
      of_start = of_start or {}
      of_start[claim.ends], known[claim.start] = span, of_start
    end
    local at = (i - 1) * CLAIM_WIDTH
    numbers[at + 1], numbers[at + 2], numbers[at + 3], numbers[at + 4] = claim.group, claim.window, span, claim.charge
    if claim.refunded and claim.refunded > 0 then
      columns = WITH_REFUNDED
    elseif columns == 0 and claim.committed and claim.committed ~= committed_unsaid(record, claim.charge) then
      columns = WITH_COMMITTED
    end
  end
  local with_quotas = count > 0 and claims[1].quota ~= nil
  record.columns, record.spans, record.claims = columns + (with_quotas and WITH_QUOTAS or 0), #spans / SPAN_WIDTH, count
  local parts = {
    write_record(record), write_flat(SPAN_FORMAT, SPAN_WIDTH, record.spans, spans),
    write_flat(CLAIM_FORMAT, CLAIM_WIDTH, count, numbers),
  }
  record.claims = claims
  local function column(format, name)
    local values = {}
    for i = 1, count do values[i] = claims[i][name] end
    parts[#parts + 1] = write_flat(format, 1, count, values)
  end
  if columns >= WITH_COMMITTED then column(AMOUNT_FORMAT, 'committed') end
  if columns >= WITH_REFUNDED then column(AMOUNT_FORMAT, 'refunded') end
  if with_quotas then column(QUOTA_FORMAT, 'quota') end
  parts[#parts + 1] = record.rest
  return concat(parts)
end

local function parse_record(packed)
  local record, at = read_record(packed)
  local count, columns = record.claims, record.columns
  local spans, numbers
  spans, at = read_flat(SPAN_FORMAT, SPAN_WIDTH, record.spans, packed, at)
  numbers, at = read_flat(CLAIM_FORMAT, CLAIM_WIDTH, count, packed, at)
  local claims = {}
  for i = 1, count do
    local from = (i - 1) * CLAIM_WIDTH
    local span, charge = (numbers[from + 3] - 1) * SPAN_WIDTH, numbers[from + 4]
    claims[i] = {
      group = numbers[from + 1], window = numbers[from + 2], start = spans[span + 1], ends = spans[span + 2], charge = charge,
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
  if has_quotas then column(QUOTA_FORMAT, 'quota') end
  record.claims, record.rest = claims, sub(packed, at)
  return record
end

-- The record under this field, unless it is unknown or forgotten.
local function load_record(led, field)
  local packed = known_field(led, field)
  if not packed then return nil end
  local record = parse_record(packed)
  local memory = led.memory
  -- ONE-CLOCK: after a wrong clock no deadline that was set before can be trusted. The hold has lapsed when the clock was corrected.
  if record.state == HELD and record.epoch ~= memory.epoch and record.deadline > memory.corrected then
    record.forget = memory.corrected + record.forget - record.deadline
    record.deadline = memory.corrected
  end
  if led.time >= record.forget then return nil end
  return record
end

-- The reservation that the call is about, or nil.
local function load_reservation(led, settle)
  local record = load_record(led, settle.field)
  if not record or record.state == TRACKED then return nil end
  -- Another one had the same request id before, and is forgotten.
  if record.suffix ~= settle.suffix or record.plan ~= settle.plan then return nil end
  return record
end

-- What the claims hold, as parts of deadlines.
local function parts_of(claims)
  local parts = {}
  for i = 1, #claims do parts[2 * i - 1], parts[2 * i] = claims[i].window, claims[i].charge end
  return parts
end

-- Gives back what the reservation holds before its deadline. Returns the fields of the memory to write with it.
local function end_hold(led, record)
  local parts = parts_of(record.claims)
  give_back(led, parts)
  local name, bucket = remove_deadline(led, record.deadline, record.paged == 1, parts)
  return name and { name, bucket } or {}
end

-- What a request id has done: nil if it is new; false if it came with another body or RPC; else its record.
local function recall(led, once, is_track)
  if once.has_id == 0 then return nil end
  local record = load_record(led, once.field)
  if not record then return nil end
  if (record.state == TRACKED) ~= is_track or record.digest ~= once.digest then return false end
  return record
end
