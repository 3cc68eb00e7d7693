#!lua flags=no-writes
-- reservations_list: some live holds of an owner: those that a part of one memory has, or those of given fields.
--
-- A listing reads the old memory and then the young one, each by a cursor of HSCAN, which returns what stays in a hash all the while. A memory
-- keeps its key, and what is in it, when the two change places: so the listing names a memory by its number. The old one is only read.
--
-- KEYS: state, memory 1, memory 2
-- ARGV: list_call
-- Answers: reservations, fault
-- uses: base formats each price ledger windows memory deadlines record begin reservations

-- What the name of a record takes.
local FIELD_BYTES = 16

local asked = read_list_call(ARGV[1])
local led, failed = begin(0)
if not led then return failed end

local memory, number, is_last, cursor = led.memory, asked.memory, asked.is_last, asked.cursor
local holds = {}

-- Takes the holds of these fields that are live. `known` has what is remembered of them. Returns a fault if a later version has written
-- one of them.
local function take_live(fields)
  for i = 1, #fields do
    local packed = known[fields[i]]
    -- Most of what is remembered was settled, as the state says, which follows the format.
    if packed and (byte(packed) > LIVING_FORMAT or byte(packed, 2) == HELD) then
      local record, reason = load_record(led, fields[i])
      if reason == 'FORMAT_UNKNOWN' then return fault(reason) end
      if record and state_of(record, led.time) == STATE_HELD then
        holds[#holds + 1] = reservation_bytes(led, fields[i], record)
      end
    end
  end
end

-- The names of records among what HSCAN has returned, and their values.
local function records_of(page)
  local fields, values = {}, {}
  for i = 1, #page, 2 do
    if #page[i] == FIELD_BYTES then fields[#fields + 1], values[#values + 1] = page[i], page[i + 1] end
  end
  return fields, values
end

-- Reads a part of the young memory into `known`. Returns its fields.
local function from_young(page)
  local fields, values = records_of(page)
  led.undone = undone(led, call('HGET', young_key(led), 'u'))
  for i = 1, #fields do note(led, fields[i], values[i]) end
  return fields
end

-- The same of the old memory. What the young one says goes before it.
local function from_old(page)
  local fields, values = records_of(page)
  for first = 1, #fields, CHUNK do
    local last = min(first + CHUNK - 1, #fields)
    local young = call('HMGET', young_key(led), 'u', unpack(fields, first, last))
    led.undone = undone(led, young[1])
    for i = first, last do
      local field, value = fields[i], young[i - first + 2]
      if led.undone[field] ~= nil then value = led.undone[field] end
      known[field] = value or values[i]
    end
  end
  return fields
end

-- Reads a part of the memory with this number. Returns the fields of records that it has, and the next cursor.
local function read_part()
  local scanned = call('HSCAN', KEYS[STATE_KEY + number], cursor, 'COUNT', format_text('%d', asked.count))
  local read = number == led.young and from_young or from_old
  return read(scanned[2]), scanned[1]
end

local fields = {}
if led.live == 0 or not memory then
  -- Nothing is held: there is nothing to look for.
  number = 0
elseif asked.fields ~= '' then
  for at = 1, #asked.fields, FIELD_BYTES do fields[#fields + 1] = sub(asked.fields, at, at + FIELD_BYTES - 1) end
  know(led, fields)
else
  if number == 0 then
    local has_old = memory.old_expires > led.time
    number, is_last, cursor = has_old and 3 - led.young or led.young, has_old and 0 or 1, '0'
  end
  fields, cursor = read_part()
  if cursor == '0' then
    number, is_last = is_last == 0 and 3 - number or 0, 1
  end
end
failed = take_live(fields)
if failed then return failed end
return write_reservations({ kind = RESERVATIONS_KIND, memory = number, is_last = is_last, cursor = cursor, count = #holds }) .. concat(holds)
