-- prelude: reads what a user has, for the lines of tests/it/verify.rs that break it, and writes it back as scripts would.
--
-- KEYS: subscription, ledger, memory, agenda
-- ARGV: what the user's keys begin with
--
-- `live`, `committed` and `released` are fields of the memory. Values are tables of these positions, whatever their order in bytes:
-- `led` is { time, live, due, forget, memory, plan, groups, opened }, and `expires`; a window { unit, period, anchor, start, end, kept,
-- used, held, number }; a record { state, deadline, forget, request id, event, nil, claims, late }; a claim { group, label, unit,
-- quota, hard, start, end, window, charge, nil, committed, refunded }, and `measures`; of a track with what was not applied at 10.
-- What scripts never write is asked for by `more`, `again` and `after_terms`.

local NEVER, FORGETTING = 9007199254740991, 1e14
local subscription, ledger, memory, agenda = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local pack, unpack_struct = struct.pack, struct.unpack
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local function read_ledger(packed)
  local it, count, at, more = { [7] = {} }
  it[1], it[2], it[3], it[4], it[5], it.expires, it[8], it[6], count, at = unpack_struct('<I6I2I7I7I7I7I4Bc0H', packed)
  local function window()
    local w = {}
    w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8], w[9], more, at = unpack_struct('<BBi7I6I7I7I7I7I4B', packed, at)
    return w
  end
  for _ = 1, count do
    local id
    id, at = unpack_struct('<Bc0', packed, at)
    local windows = {}
    repeat windows[#windows + 1] = window() until more == 0
    it[7][id] = windows
  end
  return it
end
local function ledger_bytes(it)
  local bytes, count = '', 0
  local function window(w, more)
    bytes = bytes .. pack('<BBi7I6I7I7I7I7I4B', w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8], w[9], more)
  end
  local function group(id, windows)
    count = count + 1
    bytes = bytes .. pack('<Bc0', #id, id)
    for i, w in ipairs(windows) do window(w, i == 1 and windows.more or (windows[i + 1] and 1 or 0)) end
  end
  for id, windows in pairs(it[7]) do group(id, windows) end
  if it.again then group(it.again, it[7][it.again]) end
  return pack('<I6I2I7I7I7I7I4Bc0H', it[1], it[2], it[3], it[4], it[5], it.expires, it[8], #it[6], it[6], count) .. bytes
end
local function read_claims(packed, at, second)
  local claims = {}
  while at <= #packed do
    local it, terms = {}
    it[9], it[second], it[12], it[6], it[7], it[8], terms, it.measures, at = unpack_struct('<I7I7I7I6I7I4Hc0I4c0', packed, at)
    it[1], it[3], it[4], it[5], it[2] = unpack_struct('<Bc0Bi7BHc0', terms)
    claims[#claims + 1] = it
  end
  return claims
end
local function claims_bytes(claims, second)
  local bytes = ''
  for _, it in ipairs(claims) do
    local terms = pack('<Bc0Bi7BHc0', #it[1], it[1], it[3], it[4], it[5], #it[2], it[2]) .. (it.after_terms or '')
    bytes = bytes .. pack('<I7I7I7I6I7I4', it[9], it[second], it[12], it[6], it[7], it[8])
      .. pack('<Hc0I4c0', #terms, terms, #it.measures, it.measures)
  end
  return bytes
end
local function get(field)
  local packed = redis.call('HGET', memory, field)
  if string.sub(field, 1, 1) == 'r' then
    local it, at = {}
    it[1], it[8], it[2], it[3], it[4], it[5], at = unpack_struct('<BBI6I6Bc0I4c0', packed)
    it[7] = read_claims(packed, at, 11)
    return it
  end
  local it = { cmsgpack.unpack(packed) }
  if it[1] == 'track' then it[5] = read_claims(it[5], 1, 10) end
  return it
end
local function put(field, it)
  local packed
  if string.sub(field, 1, 1) == 'r' then
    packed = pack('<BBI6I6Bc0I4c0', it[1], it[8], it[2], it[3], #it[4], it[4], #it[5], it[5]) .. claims_bytes(it[7], 11)
  elseif it[1] == 'track' then
    packed = cmsgpack.pack(it[1], it[2], it[3], it[4], claims_bytes(it[5], 10))
  else
    packed = cmsgpack.pack(unpack(it))
  end
  redis.call('HSET', memory, field, packed)
end
local led = read_ledger(redis.call('GET', ledger))
local sub = cmsgpack.unpack(redis.call('GET', subscription))
local tokens, calls, cycle = led[7].tokens, led[7].calls, led[7].cycle
local function save() redis.call('SET', ledger, ledger_bytes(led), 'KEEPTTL') end
local function save_sub() redis.call('SET', subscription, cmsgpack.pack(sub)) end
local by_state = {}
for _, field in ipairs(redis.call('HKEYS', memory)) do
  if string.sub(field, 1, 1) == 'r' then by_state[get(field)[1]] = field end
end
local live, committed, released = by_state[1], by_state[2], by_state[3]
local hold = ARGV[1] .. 'hold:' .. string.sub(live, 2)
local function number(it) return string.format('%.0f', it) end
local function score(field, at) redis.call('ZADD', agenda, number(at), field) end
local function edit(field, change) local value = get(field) change(value) put(field, value) end
local function claim(field, at, to) edit(field, function(it) it[field == 'qt1' and 5 or 7][1][at] = to end) end
