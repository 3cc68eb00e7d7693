-- memory: what is remembered beside the state, in two hashes. Needs base, formats, ledger.
--
-- One memory is young and is written to. The other one is old, is only read, and expires as a whole once all that it holds is forgotten:
-- nothing has to be purged. When it has expired and the young one has been written for long enough, they change places. What the young
-- one says goes before what the old one says of the same field.
--
-- A script writes the memory once, before the state, and with the sequence that the state will have then. The field `u` says what this
-- write has replaced. If the state has a smaller sequence, the script failed in between: then what it has left counts as it was before,
-- and the next script that writes the memory puts it back (ONCE, EXACT).

-- For how long the young memory is written before the two change places.
local GENERATION = 900000

-- The expiry of a memory is ahead of what it needs, so that most calls need not move it.
local AHEAD = 120000

-- By how much longer memories are kept after a wrong clock: what was remembered before has at most that long to live.
local LONGEST_HOLD = 3600000

-- Below the limit for the arguments of one call.
local CHUNK = 1000

-- What the last write of the young memory has replaced, if that did not happen: a value or false, by field.
local function undone(led, packed)
  if not packed then return {} end
  local undo, at = read_undo(packed)
  if undo.sequence <= led.memory.sequence then return {} end
  local fields = {}
  for _ = 1, undo.count do
    local field
    field, at = read_undo_field(packed, at)
    fields[field.field] = field.was == 1 and field.before
  end
  return fields
end

local function young_key(led)
  return led.memory_keys[led.young]
end

local function old_key(led)
  return led.memory_keys[3 - led.young]
end

-- Reads these fields into `led.known`, by their names: the value, or false if there is none.
local function know(led, names)
  local known, unknown = led.known, {}
  for i = 1, #names do
    if known[names[i]] == nil then unknown[#unknown + 1] = names[i] end
  end
  local memory, now = led.memory, led.time
  if unknown[1] and memory and memory.young_expires > now then
    local asked = { 'u', unpack(unknown) }
    local values = call('HMGET', young_key(led), unpack(asked))
    led.undone, led.young_is_there = led.undone or undone(led, values[1]), values[1] and true
    for i = 1, #unknown do
      local name, before = unknown[i], led.undone[unknown[i]]
      if before ~= nil then known[name] = before else known[name] = values[i + 1] end
    end
  end
  -- What the young memory does not have, the old one may. Before it is written again there, it is not to be undone to that.
  local missing = {}
  for i = 1, #unknown do
    local name = unknown[i]
    led.young_known[name] = known[name] or false
    if not known[name] then missing[#missing + 1] = name end
  end
  if missing[1] and memory and memory.old_expires > now then
    local values = call('HMGET', old_key(led), unpack(missing))
    for i = 1, #missing do known[missing[i]] = values[i] end
  end
  for i = 1, #missing do known[missing[i]] = known[missing[i]] or false end
end

local function known_field(led, name)
  local value = led.known[name]
  if value == nil then
    know(led, { name })
    value = led.known[name]
  end
  return value
end

-- Puts back what a script has left that failed before it wrote the state.
local function restore(led)
  local memory = led.memory
  if not (memory and memory.young_expires > led.time) then return end
  if not led.undone then led.undone = undone(led, call('HGET', young_key(led), 'u')) end
  for field, before in pairs(led.undone) do
    if before then call('HSET', young_key(led), field, before) else call('HDEL', young_key(led), field) end
  end
end

-- Sees to it that there is a young memory to write to. A new one is empty, whatever somebody has left under its key.
local function renew(led)
  local memory, now = led.memory, led.time
  if not memory then
    call('UNLINK', led.memory_keys[1], led.memory_keys[2])
    led.young = 1
    led.memory = { sequence = 0, since = now, young_expires = 0, old_expires = 0, epoch = 0, corrected = 0 }
  elseif memory.young_expires <= now then
    call('UNLINK', young_key(led))
    memory.since, memory.young_expires = now, 0
    led.young_known, led.young_is_there = {}, false
  elseif memory.old_expires <= now and now >= memory.since + GENERATION then
    call('UNLINK', old_key(led))
    led.young = 3 - led.young
    memory.since, memory.old_expires, memory.young_expires = now, memory.young_expires, 0
    led.young_known, led.young_is_there = {}, false
  end
end

-- Writes fields of the memory that are remembered until `forget_at`: names and values, one after the other. The state is yet to be
-- written.
local function write_fields(led, fields, forget_at)
  local names = {}
  for i = 1, #fields, 2 do names[#names + 1] = fields[i] end
  know(led, names)
  restore(led)
  renew(led)
  local memory, key = led.memory, young_key(led)
  memory.sequence = memory.sequence + 1
  local undo = { write_undo({ sequence = memory.sequence, count = #names }) }
  for i = 1, #names do
    local before = led.young_known[names[i]]
    undo[i + 1] = write_undo_field({ field = names[i], was = before and 1 or 0, before = before or '' })
  end
  fields[#fields + 1], fields[#fields + 2] = 'u', concat(undo)
  call('HSET', key, unpack(fields))
  local is_later = forget_at > memory.young_expires
  if is_later then memory.young_expires = forget_at + AHEAD end
  -- A clock that was ahead may have made Redis drop the key.
  if is_later or not led.young_is_there then call('PEXPIREAT', key, memory.young_expires) end
end

-- ONE-CLOCK: after a wrong clock no deadline of a hold can be trusted, and the memories would expire too late.
local function correct_memory(led)
  local memory, now = led.memory, led.time
  if not memory then return end
  memory.epoch, memory.corrected = (memory.epoch + 1) % 256, now
  memory.since = min(memory.since, now)
  local function sooner(expires)
    return min(expires, now + max(expires - led.stored_time, 0) + LONGEST_HOLD)
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
