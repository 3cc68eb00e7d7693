-- agenda: what comes due by itself, in one sorted set per user. Needs base, ledger, record.
--
-- Members are fields of the memory hash: 'r' and a reservation's nonce, or 'q' and a request id. A live hold's score is its
-- deadline; everything that is only remembered scores FORGETTING + the time to forget it. So one ZADD moves an entry from
-- the first half to the second, and the first entry of all is the earliest live deadline.

local FORGETTING = 100000000000000

-- How many forgotten entries one call clears away: more than a call adds, so that they never pile up.
local PURGE = 64

-- Below the limit for the arguments of one call.
local CHUNK = 1000

-- NO-LEAK: gives back exactly what the claims hold, in the windows that are still kept. Where somebody has deleted a ledger and not the
-- rest, its windows may hold less than that: never less than nothing.
local function give_back(led, claims)
  for i = 1, #claims do
    local claim = claims[i]
    local w = kept_window(led, claim[C_ID], claim[C_WINDOW])
    if w then w[HELD] = max(w[HELD] - claim[C_CHARGE], 0) end
  end
end

local function give_back_all(led)
  for _, windows in pairs(led.groups) do
    for i = 1, #windows do windows[i][HELD] = 0 end
  end
  led.live, led.due = 0, NEVER
end

-- ONE-CLOCK: where a time that was wrong has let a hold lapse before its deadline, the record says so from now on. Otherwise a commit would
-- be in time, and give back once more.
local function lapse_remembered(led, agenda_key, memory_key, moves)
  local fields = call('ZRANGEBYSCORE', agenda_key, FORGETTING, '+inf')
  for from = 1, #fields, CHUNK do
    local to = min(from + CHUNK - 1, #fields)
    local records = call('HMGET', memory_key, unpack(fields, from, to))
    for i = 1, to - from + 1 do
      local field = fields[from + i - 1]
      local record = records[i] and sub(field, 1, 1) == 'r' and read_record(records[i])
      if record and lapse_early(led, record) then
        moves.records[#moves.records + 1] = { field, record }
        moves[#moves + 1] = FORGETTING + record[R_FORGET]
        moves[#moves + 1] = field
        led.forget = min(led.forget, record[R_FORGET])
      end
    end
  end
end

-- NO-LEAK: works out in memory what is due to come back. Returns the agenda entries to move, and in `records` the records that
-- change, and in `expired` whether agenda and memory have expired; nil if nothing was due. Whoever writes the ledger writes both with `write_lapsed`.
local function give_back_due(led, agenda_key, memory_key)
  local now = led.time
  if led.due > now and not led.was_wrong then return nil end
  -- ONE-CLOCK: no deadline that was set by a clock that was wrong can be trusted. All holds lapse.
  local due = call('ZRANGEBYSCORE', agenda_key, '-inf', led.was_wrong and '(1e14' or now)
  local moves = { records = {}, lapsed = #due }
  if led.was_wrong then lapse_remembered(led, agenda_key, memory_key, moves) end
  for from = 1, #due, CHUNK do
    local to = min(from + CHUNK - 1, #due)
    local records = call('HMGET', memory_key, unpack(due, from, to))
    for i = 1, to - from + 1 do
      local field, forget_at = due[from + i - 1], now
      -- A record that somebody deleted by hand holds nothing, and must not stop the others.
      if records[i] then
        local record = read_record(records[i])
        give_back(led, record[R_CLAIMS])
        if lapse_early(led, record) then moves.records[#moves.records + 1] = { field, record } end
        forget_at = record[R_FORGET]
      end
      moves[#moves + 1] = FORGETTING + forget_at
      moves[#moves + 1] = field
      if forget_at < led.forget then led.forget = forget_at end
    end
  end
  led.live = max(led.live - #due, 0)
  -- The agenda expires a while after its last entry is to be forgotten, whether or not anybody has asked since the holds were due:
  -- then nothing is live.
  moves.expired = #due == 0 and led.live > 0 and call('EXISTS', agenda_key) == 0
  if led.was_wrong or moves.expired then
    give_back_all(led)
  else
    local first = call('ZRANGEBYSCORE', agenda_key, '(' .. format('%d', now), '(1e14', 'WITHSCORES', 'LIMIT', 0, 1)
    led.due = first[2] and tonumber(first[2]) or NEVER
  end
  return moves
end

local function write_lapsed(led, agenda_key, memory_key, moves)
  if not moves then return end
  -- The memory expires at the same time. Redis may still have it, if its clock was ahead when this script or another one has asked for the
  -- agenda: a reservation that has lapsed there must not be committed in time when the clock is set right.
  if moves.expired then
    call('DEL', memory_key)
    led.memory, led.forget = 0, NEVER
  end
  for from = 1, #moves, CHUNK do
    call('ZADD', agenda_key, unpack(moves, from, min(from + CHUNK - 1, #moves)))
  end
  for i = 1, #moves.records do write_record(memory_key, unpack(moves.records[i])) end
  lapsed_holds = (lapsed_holds or 0) + moves.lapsed
end

-- The earliest live deadline, or nil. What is due has been given back.
local function earliest_deadline(led, agenda_key)
  if led.live == 0 then return nil end
  local first = call('ZRANGEBYSCORE', agenda_key, '(' .. format('%d', led.time), '(1e14', 'WITHSCORES', 'LIMIT', 0, 1)
  return first[2] and tonumber(first[2])
end

-- Notes that the entry is to be forgotten at `forget_at`.
local function remember(led, agenda_key, field, forget_at)
  call('ZADD', agenda_key, format('%d', FORGETTING + forget_at), field)
  if forget_at < led.forget then led.forget = forget_at end
end

-- Deletes entries and what they stand for. ONCE: the request id of a forgotten call may have become another call's since, and is
-- then left alone. Returns how many entries of the agenda are gone, and how many fields of the memory.
local function forget(agenda_key, memory_key, past, now)
  local values = call('HMGET', memory_key, unpack(past))
  local fields = {}
  for i = 1, #past do
    local value = values[i]
    if sub(past[i], 1, 1) == 'r' then
      fields[#fields + 1] = past[i]
      local _, request_id = nil, ''
      if value then _, _, _, _, request_id = unpack_struct(RECORD_FORMAT, value) end
      local packed = request_id ~= '' and call('HGET', memory_key, 'q' .. request_id)
      if packed then
        local kind, _, nonce = unpack_message(packed)
        if kind == 'reserve' and 'r' .. nonce == past[i] then fields[#fields + 1] = 'q' .. request_id end
      end
    elseif value then
      local kind, _, _, forget_at = unpack_message(value)
      if kind == 'track' and forget_at <= now then fields[#fields + 1] = past[i] end
    end
  end
  local gone = #fields > 0 and call('HDEL', memory_key, unpack(fields)) or 0
  return call('ZREM', agenda_key, unpack(past)), gone
end

-- Makes memory and agenda expire after the last entry, and clears away some of what is forgotten. Comes before the ledger is
-- written, and after everything else.
--
-- A key that has become empty is gone, and its expiry with it. It is not touched again: on a cluster's master whose slot is
-- leaving, a script is stopped by a key that is not there, after all that it has written.
local function tidy_memory(led, agenda_key, memory_key, last_forget)
  local now = led.time
  -- The expiry only ever moves later; ahead by some minutes, so that most calls need not move it.
  if last_forget > led.memory then
    led.memory = last_forget + 600000
    call('PEXPIREAT', memory_key, led.memory)
    call('PEXPIREAT', agenda_key, led.memory)
  end
  if led.forget <= now then
    local past = call('ZRANGEBYSCORE', agenda_key, FORGETTING, FORGETTING + now, 'LIMIT', 0, PURGE)
    local entries, fields = call('ZCARD', agenda_key), call('HLEN', memory_key)
    if #past > 0 then
      local gone_entries, gone_fields = forget(agenda_key, memory_key, past, now)
      entries, fields = entries - gone_entries, fields - gone_fields
    end
    local first = entries > 0 and call('ZRANGEBYSCORE', agenda_key, FORGETTING, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
    led.forget = first and first[2] and tonumber(first[2]) - FORGETTING or NEVER
    if entries == 0 or fields == 0 then led.memory = 0 end
  end
end
