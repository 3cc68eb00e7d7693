-- prelude: reads what a user has, for the lines of tests/it/verify.rs that break it, and writes it back as scripts would. The library of
-- the formats stands before it.
--
-- KEYS: state, memory 1, memory 2
-- ARGV: what the keys of holds begin with; the fields of the request ids r1, r2, t1 and t2, as the key of a hold names them, and as bytes
--
-- `led` is the state: `head`, `memory`, `terms`, and lists of `schedules`, `counters`, `deadlines` (each with its `parts`) and `windows`
-- (each with its own `counter`, if it has one), `subscription`, and `rest`. `save` writes it. `edit` changes a record: its fields, and
-- lists of `span`, `claim`, and the columns `committed`, `refunded` and `quota`.

local NEVER = 281474976710655
local state, hold_prefix = KEYS[1], ARGV[1]
local hold, live, committed, live_request, tracked, refund = hold_prefix .. ARGV[2], ARGV[6], ARGV[7], ARGV[6], ARGV[8], ARGV[9]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function several(read, count, packed, at)
  local list = {}
  for i = 1, count do list[i], at = read(packed, at) end
  return list, at
end

local function parse_state(packed)
  local it, at, windows = {}
  it.head, at = read_head(packed)
  local head = it.head
  it.memory, at = read_memory(packed, at)
  if head.subscribed > 0 then it.terms, at = read_terms(packed, at) end
  it.schedules, at = several(read_schedule, head.schedules, packed, at)
  it.counters, at = several(head.live > 0 and read_counter or read_idle_counter, head.groups, packed, at)
  it.deadlines = {}
  local ends = at + head.deadlines
  while at < ends do
    local deadline
    deadline, at = read_deadline(packed, at)
    deadline.list, at = several(read_part, deadline.parts, packed, at)
    deadline.size, at = unpack_struct(DEADLINE_END_FORMAT, packed, at)
    it.deadlines[#it.deadlines + 1] = deadline
  end
  windows, at = read_windows(packed, at)
  it.windows = {}
  for i = 1, windows.count do
    local window
    window, at = read_window(packed, at)
    if window.place == 0 then window.counter, at = read_counter(packed, at) end
    it.windows[i] = window
  end
  it.subscription, at = read_subscription(packed, at)
  it.rest = string.sub(packed, at)
  return it
end

local function state_bytes(it)
  local head, parts, deadlines = it.head, { '' }, {}
  local function add(bytes) parts[#parts + 1] = bytes end
  add(write_memory(it.memory))
  if it.terms then add(write_terms(it.terms)) end
  for _, schedule in ipairs(it.schedules) do add(write_schedule(schedule)) end
  for _, counter in ipairs(it.counters) do
    counter.held = counter.held or 0
    add(head.live > 0 and write_counter(counter) or write_idle_counter(counter))
  end
  for _, deadline in ipairs(it.deadlines) do
    deadline.parts = #deadline.list
    local bytes = { write_deadline(deadline) }
    for _, part in ipairs(deadline.list) do bytes[#bytes + 1] = write_part(part) end
    bytes = table.concat(bytes)
    deadlines[#deadlines + 1] = bytes .. write_deadline_end({ size = #bytes + 2 })
  end
  deadlines = table.concat(deadlines)
  add(deadlines)
  add(write_windows({ count = #it.windows }))
  for _, window in ipairs(it.windows) do
    add(write_window(window))
    if window.counter then add(write_counter(window.counter)) end
  end
  add(write_subscription(it.subscription))
  add(it.rest)
  head.schedules, head.groups, head.deadlines = #it.schedules, #it.counters, #deadlines
  parts[1] = write_head(head)
  return table.concat(parts)
end

local led = parse_state(redis.call('GET', state))
local memory = KEYS[1 + led.head.young]
local function save() redis.call('SET', state, state_bytes(led), 'KEEPTTL') end

-- The counter of a group's window, and its schedule; the first is the current one.
local function counter(group, which)
  local place = 0
  for _, window in ipairs(led.windows) do
    if window.group == group then
      place = place + 1
      if place == (which or 1) then return window.counter or led.counters[window.place], window end
    end
  end
end
local function schedule(group, which) return led.schedules[counter(group, which).schedule] end
-- A schedule of its own, as windows may share one.
local function own_schedule(group, which)
  local own = {}
  for name, value in pairs(schedule(group, which)) do own[name] = value end
  led.schedules[#led.schedules + 1] = own
  counter(group, which).schedule = #led.schedules
  return own
end

local function get(field)
  local packed = redis.call('HGET', memory, field)
  local it, at = read_record(packed)
  -- Its table is that of the record before.
  it.as_is, it.committed, it.refunded, it.quota = nil, nil, nil, nil
  it.span, at = several(read_span, it.spans, packed, at)
  it.claim, at = several(read_claim, it.claims, packed, at)
  local columns = it.columns % 4
  if columns >= 1 then it.committed, at = several(read_amount, it.claims, packed, at) end
  if columns >= 2 then it.refunded, at = several(read_amount, it.claims, packed, at) end
  if it.columns >= 4 then it.quota, at = several(read_quota, it.claims, packed, at) end
  return it
end
local function put(field, it)
  it.spans, it.claims = #it.span, #it.claim
  if not it.as_is then it.columns = (it.refunded and 2 or it.committed and 1 or 0) + (it.quota and 4 or 0) end
  local parts = { write_record(it) }
  for _, span in ipairs(it.span) do parts[#parts + 1] = write_span(span) end
  for _, claim in ipairs(it.claim) do parts[#parts + 1] = write_claim(claim) end
  for _, name in ipairs({ 'committed', 'refunded', 'quota' }) do
    for _, value in ipairs(it[name] or {}) do
      parts[#parts + 1] = name == 'quota' and write_quota(value) or write_amount(value)
    end
  end
  redis.call('HSET', memory, field, table.concat(parts))
end
local function edit(field, change)
  local it = get(field)
  change(it)
  put(field, it)
end
local released
for _, field in ipairs(redis.call('HKEYS', memory)) do
  if #field == 16 and get(field).state == 4 then released = field end
end
local function units(...)
  local list = {}
  for i, value in ipairs({ ... }) do list[i] = { units = value } end
  return list
end
