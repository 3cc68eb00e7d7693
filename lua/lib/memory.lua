-- memory: what is remembered beside the state, in two hashes. Needs base, formats, ledger; its keys follow that of the state.
--
-- One memory is young and is written to. The other one is old, is only read, and expires as a whole once all that it holds is forgotten:
-- nothing has to be purged. When it has expired and the young one has been written for long enough, they change places. What the young
-- one says goes before what the old one says of the same field.
--
-- A script writes the memory once, before the state, and with the sequence that the state will have then. The field `u` says what this
-- write has replaced. If the state has a smaller sequence, the script failed in between: then what it has left counts as it was before,
-- and the next script that writes the memory puts it back (ONCE, EXACT).

local STATE_KEY = 1

-- For how long the young memory is written before the two change places.
local GENERATION = 900000

-- The expiry of a memory is ahead of what it needs, so that most calls need not move it.
local AHEAD = 120000

-- The longest time for which one call can hold.
local LONGEST_HOLD = 3600000

-- Below the limit for the arguments of one call.
local CHUNK = 1000

-- No fields.
local NOTHING = {}

-- What the last write of the young memory has replaced, if that did not happen: a value or false, by field.
local function undone(led, packed)
  if not packed then return NOTHING end
  local sequence, count, at = unpack_struct(UNDO_FORMAT, packed)
  if sequence <= led.memory.sequence then return NOTHING end
  local fields = {}
  for _ = 1, count do
    local field
    field, at = read_undo_field(packed, at)
    fields[field.field] = field.was == 1 and field.before
  end
  return fields
end

local function young_key(led)
  return KEYS[led.k + STATE_KEY + led.young]
end

local function old_key(led)
  return KEYS[led.k + STATE_KEY + 3 - led.young]
end

-- Notes what the memories say of a field: the young one, as it was before a write that did not happen, and else the old one.
local function note(led, name, value)
  if led.undone and led.undone[name] ~= nil then value = led.undone[name] end
  if not value and led.memory and led.memory.old_expires > led.time then
    value = call('HGET', old_key(led), name)
    if value then
      -- The young one does not have it, and an undo must not put it there.
      led.from_old = led.from_old or {}
      led.from_old[name] = true
    end
  end
  known[name] = value or false
end

-- Reads these fields into `known`, by their names: the value, or false if there is none.
local function know(led, names)
  local memory, unknown = led.memory, {}
  for i = 1, #names do
    if known[names[i]] == nil then unknown[#unknown + 1] = names[i] end
  end
  local values = NOTHING
  if unknown[1] and memory then
    values = call('HMGET', young_key(led), 'u', unpack(unknown))
    led.undone, led.young_is_there = undone(led, values[1]), values[1] and true
  end
  for i = 1, #unknown do note(led, unknown[i], values[i + 1]) end
end

local function known_field(led, name)
  local value = known[name]
  if value ~= nil then return value end
  if led.memory then
    local values = call('HMGET', young_key(led), 'u', name)
    led.undone, led.young_is_there = undone(led, values[1]), values[1] and true
    note(led, name, values[2])
  else
    note(led, name, false)
  end
  return known[name]
end

-- Puts back what a script has left that failed before it wrote the state.
local function restore(led)
  if not led.memory then return end
  for field, before in pairs(led.undone) do
    if before then call('HSET', young_key(led), field, before) else call('HDEL', young_key(led), field) end
  end
end

-- Sees to it that there is a young memory to write to. Whether it is a new one. All that Redis may still have of a young one that has
-- expired is forgotten. Where there was no state, somebody may have left another one's memories.
local function renew(led)
  local memory, now = led.memory, led.time
  if not memory then
    led.young = 1
    call('UNLINK', young_key(led), old_key(led))
    led.memory = { sequence = 0, since = now, young_expires = 0, old_expires = 0, epoch = 0, corrected = 0 }
  elseif memory.young_expires <= now then
    memory.since, memory.young_expires = now, 0
  elseif memory.old_expires <= now and now >= memory.since + GENERATION then
    -- Nothing of it may go before what the other one says of the same field.
    call('UNLINK', old_key(led))
    led.young = 3 - led.young
    memory.since, memory.old_expires, memory.young_expires = now, memory.young_expires, 0
  else
    return false
  end
  return true
end

-- What the young memory says of a field before it is written: a value, or false if there is none.
local function said_before(led, name, is_renewed)
  return not is_renewed and not (led.from_old and led.from_old[name]) and known[name]
end

local EXTENSION_BYTES = 16

-- Copies these fields of 16 bytes each from the old memory to the young one. They do not change, so that no undo needs to know of it.
local function keep_extensions(led, packed)
  for from = 1, #packed, EXTENSION_BYTES * CHUNK do
    local names, copies = {}, {}
    for at = from, min(from + EXTENSION_BYTES * CHUNK, #packed) - 1, EXTENSION_BYTES do
      names[#names + 1] = sub(packed, at, at + EXTENSION_BYTES - 1)
    end
    local values = call('HMGET', old_key(led), unpack(names))
    for i = 1, #names do
      if values[i] then copies[#copies + 1], copies[#copies + 2] = names[i], values[i] end
    end
    if copies[1] then call('HSET', young_key(led), unpack(copies)) end
  end
end

-- Writes one or two fields of the memory, which are remembered until `forget_at`, and `more`: names and values. The state is yet to be written. The
-- reservation at the field `led.extended` takes its ids of Extend, `led.extensions`, along into another memory.
local function write_fields(led, forget_at, name, value, other_name, other_value, more)
  known_field(led, name)
  if other_name then known_field(led, other_name) end
  for i = 1, more and #more or 0, 2 do known_field(led, more[i]) end
  restore(led)
  local is_renewed = renew(led)
  local memory, key = led.memory, young_key(led)
  memory.sequence = memory.sequence + 1
  local before = said_before(led, name, is_renewed)
  local undo = pack_struct(UNDO_OF_ONE_FORMAT, memory.sequence, (other_name and 2 or 1) + (more and #more / 2 or 0), #name, name,
    before and 1 or 0, before and #before or 0, before or '')
  if other_name then
    before = said_before(led, other_name, is_renewed)
    undo = undo .. pack_struct(UNDO_FIELD_FORMAT, #other_name, other_name, before and 1 or 0, before and #before or 0, before or '')
  end
  for i = 1, more and #more or 0, 2 do
    before = said_before(led, more[i], is_renewed)
    undo = undo .. pack_struct(UNDO_FIELD_FORMAT, #more[i], more[i], before and 1 or 0, before and #before or 0, before or '')
  end
  if led.extensions and (is_renewed or led.from_old and led.from_old[led.extended]) then keep_extensions(led, led.extensions) end
  if more and more[1] then
    if other_name then more[#more + 1], more[#more + 2] = other_name, other_value end
    call('HSET', key, name, value, 'u', undo, unpack(more))
  elseif other_name then
    call('HSET', key, name, value, other_name, other_value, 'u', undo)
  else
    call('HSET', key, name, value, 'u', undo)
  end
  local is_later = forget_at > memory.young_expires
  if is_later then memory.young_expires = forget_at + AHEAD end
  -- A clock that was ahead may have made Redis drop the key.
  if is_later or not led.young_is_there then call('PEXPIREAT', key, memory.young_expires) end
end

-- ONE-CLOCK: after a wrong clock no deadline of a hold can be trusted, and the memories would expire too late. ONCE: what was remembered before it is
-- remembered as long as before, also if the wrong time has spent most of that. SLACK is for that, as for the state.
local function correct_memory(led)
  local memory, now = led.memory, led.time
  if not memory then return end
  memory.epoch, memory.corrected = (memory.epoch + 1) % 256, now
  memory.since = min(memory.since, now)
  local function sooner(expires)
    return min(expires, now + max(expires - led.stored_time, 0) + SLACK)
  end
  memory.young_expires, memory.old_expires = sooner(memory.young_expires), sooner(memory.old_expires)
  led.memory_corrected = true
end

-- The memories expire when the state says that they do.
local function write_corrected(led)
  if not led.memory_corrected then return end
  local memory = led.memory
  call('PEXPIREAT', young_key(led), memory.young_expires)
  if memory.old_expires > 0 then call('PEXPIREAT', old_key(led), memory.old_expires) end
end
