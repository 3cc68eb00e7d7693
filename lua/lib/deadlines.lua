-- deadlines: what comes back by itself, and when. Needs base, formats, ledger, windows, memory.
--
-- NO-LEAK: the state says what is held until which deadline, so that giving it back needs nothing else. Deadlines are whole tenths of a second.
-- The first ones stand in the state by themselves. Beyond EXACT_BYTES a new deadline goes to a page, which stands for all deadlines of
-- PAGE_MS with the sum of what they hold. A page's deadlines are buckets in the memory. Only the page that is due in part needs them: a
-- page that is due as a whole gives back its sum.
--
-- Parts are a flat list: the number of a window, an amount, and so on. Where COUNTS is added to the number, the amount counts as used when it
-- comes back.

local EXACT_BYTES = 2048
local EXACT_KIND, PAGE_KIND = 0, 1
local PART_WIDTH, PART_BYTES, DEADLINE_BYTES, END_BYTES = 2, 11, 11, 2

local function bucket_name(deadline)
  return pack_struct('<c1I6', 'd', deadline)
end

local function page_of(deadline)
  return ceil(deadline / PAGE_MS) * PAGE_MS
end

-- Adds the parts to a list of them, or takes them off it.
local function add_parts(list, parts, sign)
  local searched = 1
  for i = 1, #parts, 2 do
    local balance, at = parts[i], nil
    -- They nearly always stand in the same order.
    if list[searched] == balance then
      at = searched
    else
      for j = 1, #list, 2 do
        if list[j] == balance then
          at = j
          break
        end
      end
    end
    if at then
      list[at + 1] = max(list[at + 1] + sign * parts[i + 1], 0)
      searched = at + 2
    elseif sign > 0 then
      list[#list + 1], list[#list + 2] = balance, parts[i + 1]
    end
  end
end

local function read_parts(packed, count, at)
  return read_flat(PART_FORMAT, PART_WIDTH, count, packed, at)
end

-- What ends an entry, by the number of its parts.
local ends = {}

local function end_of(count)
  local packed = ends[count]
  if not packed then
    packed = pack_struct(DEADLINE_END_FORMAT, DEADLINE_BYTES + PART_BYTES * count + END_BYTES)
    ends[count] = packed
  end
  return packed
end

local function entry_bytes(at_ms, kind, holds, parts)
  local count = #parts / 2
  return pack_struct(DEADLINE_FORMAT, at_ms, kind, holds, count) .. write_flat(PART_FORMAT, PART_WIDTH, count, parts) .. end_of(count)
end

-- Where the entry of this time and kind stands: its offset, that of the one after it, its holds and the number of its parts. If there is
-- none, where it would stand.
local function find_entry(led, at_ms, kind)
  local packed = led.deadlines
  local size = #packed
  if size == 0 then return 1, 1 end
  -- A new deadline is nearly always the last one.
  local at = size - unpack_struct(DEADLINE_END_FORMAT, packed, size - END_BYTES + 1) + 1
  local last_at, last_kind = unpack_struct(DEADLINE_FORMAT, packed, at)
  if at_ms > last_at or (at_ms == last_at and kind > last_kind) then return size + 1, size + 1 end
  if at_ms < last_at or kind < last_kind then at = 1 end
  while at <= size do
    local entry_at, entry_kind, holds, count, after = unpack_struct(DEADLINE_FORMAT, packed, at)
    local next_at = after + PART_BYTES * count + END_BYTES
    if entry_at == at_ms and entry_kind == kind then return at, next_at, holds, count end
    if entry_at > at_ms or (entry_at == at_ms and entry_kind > kind) then return at, at end
    at = next_at
  end
  return at, at
end

local function put_entry(led, from, to, entry)
  local packed = led.deadlines
  if from > #packed then
    led.deadlines = packed .. entry
  else
    led.deadlines = sub(packed, 1, from - 1) .. entry .. sub(packed, to)
  end
end

-- Adds a hold to the entry of this time and kind, or takes it off it.
local function change_entry(led, at_ms, kind, parts, sign)
  local from, to, holds, count = find_entry(led, at_ms, kind)
  if from == to then
    -- Somebody has deleted a state and not the rest.
    if sign < 0 then return end
    if kind == PAGE_KIND then led.pages = led.pages + 1 end
    return put_entry(led, from, to, entry_bytes(at_ms, kind, 1, parts))
  end
  holds = holds + sign
  if holds == 0 then
    if kind == PAGE_KIND then led.pages = led.pages - 1 end
    return put_entry(led, from, to, '')
  end
  local sums = read_parts(led.deadlines, count, from + DEADLINE_BYTES)
  add_parts(sums, parts, sign)
  put_entry(led, from, to, entry_bytes(at_ms, kind, holds, sums))
end

-- The fields of the memory that say the same of a page's deadline: name and value.
local function change_bucket(led, deadline, parts, sign)
  local name = bucket_name(deadline)
  local packed, sums, holds = led.moved_buckets and led.moved_buckets[name] or known_field(led, name), {}, 0
  if packed then
    local count, at
    holds, count, at = unpack_struct(BUCKET_FORMAT, packed)
    sums = read_parts(packed, count, at)
  end
  add_parts(sums, parts, sign)
  local count = #sums / 2
  return name, pack_struct(BUCKET_FORMAT, max(holds + sign, 0), count) .. write_flat(PART_FORMAT, PART_WIDTH, count, sums)
end

-- Holds the parts until the deadline. Returns whether it is in a page, and then the bucket to write.
local function add_deadline(led, deadline, parts)
  led.live = led.live + 1
  if #led.deadlines >= EXACT_BYTES then
    local from, to = find_entry(led, deadline, EXACT_KIND)
    if from == to then
      change_entry(led, page_of(deadline), PAGE_KIND, parts, 1)
      return true, change_bucket(led, deadline, parts, 1)
    end
  end
  change_entry(led, deadline, EXACT_KIND, parts, 1)
  return false
end

-- Holds them no longer. Returns the bucket to write, name and value, if there is one.
local function remove_deadline(led, deadline, is_paged, parts)
  led.live = max(led.live - 1, 0)
  if not is_paged then
    change_entry(led, deadline, EXACT_KIND, parts, -1)
    return nil
  end
  change_entry(led, page_of(deadline), PAGE_KIND, parts, -1)
  return change_bucket(led, deadline, parts, -1)
end

-- Holds other parts until another deadline. Returns whether that is in a page. `led.moved_buckets` are the buckets to write, by their names.
local function move_deadline(led, deadline, is_paged, parts, to, new_parts)
  led.moved_buckets = {}
  local name, bucket = remove_deadline(led, deadline, is_paged, parts)
  if name then led.moved_buckets[name] = bucket end
  is_paged, name, bucket = add_deadline(led, to, new_parts)
  if is_paged then led.moved_buckets[name] = bucket end
  return is_paged
end

local function give_back(led, parts)
  for i = 1, #parts, 2 do
    local number, amount, counts = parts[i], parts[i + 1], false
    if number >= COUNTS then number, counts = number - COUNTS, true end
    local window = kept_window(led, number)
    if window then
      -- Never less than nothing, whatever somebody has deleted by hand.
      window.held = max(window.held - amount, 0)
      if counts then
        note_used(led, window)
        window.used = min(window.used + amount, MAX)
      end
    end
  end
end

-- The buckets of a page after one time and up to another: deadline, holds, count of parts, the value and where the parts begin.
local function buckets_of(led, page, after, until_ms)
  local names, deadlines = {}, {}
  local first = max(page - PAGE_MS, after)
  for deadline = floor(first / TENTH_MS) * TENTH_MS + TENTH_MS, min(page, until_ms), TENTH_MS do
    names[#names + 1], deadlines[#deadlines + 1] = bucket_name(deadline), deadline
  end
  if names[1] then know(led, names) end
  local buckets = {}
  for i = 1, #names do
    local packed = known[names[i]]
    if packed then
      local holds, count, at = unpack_struct(BUCKET_FORMAT, packed)
      if holds > 0 then buckets[#buckets + 1] = { deadline = deadlines[i], holds = holds, parts = read_parts(packed, count, at) } end
    end
  end
  return buckets
end

-- Gives back what of the pages is due before all of the page is. What was due when the state was written is not in it any more.
local function give_back_buckets(led)
  local now, at = led.time, 1
  while at <= #led.deadlines do
    local page, kind, holds, count, after = unpack_struct(DEADLINE_FORMAT, led.deadlines, at)
    if page - PAGE_MS >= now then return end
    local next_at = after + PART_BYTES * count + END_BYTES
    local buckets = kind == PAGE_KIND and buckets_of(led, page, led.stored_time, now) or NOTHING
    if buckets[1] then
      local due, due_holds = {}, 0
      for i = 1, #buckets do
        add_parts(due, buckets[i].parts, 1)
        due_holds = due_holds + buckets[i].holds
      end
      give_back(led, due)
      led.lapsed, led.live = led.lapsed + due_holds, max(led.live - due_holds, 0)
      local left, entry = holds - due_holds, ''
      if left > 0 then
        local sums = read_parts(led.deadlines, count, after)
        add_parts(sums, due, -1)
        entry = entry_bytes(page, PAGE_KIND, left, sums)
      else
        led.pages = led.pages - 1
      end
      put_entry(led, at, next_at, entry)
      next_at = at + #entry
    end
    at = next_at
  end
end

-- NO-LEAK: works out in memory what is due to come back, and how many holds that were. Whoever writes the ledger writes it.
local function give_back_due(led)
  local packed, now, at = led.deadlines, led.time, 1
  -- Resets that a wrong clock has dated are dated anew.
  if led.was_wrong and led.format == WIDE_FORMAT then unfold(led) end
  -- ONE-CLOCK: no deadline that was set by a clock that was wrong can be trusted. All holds lapse.
  while at <= #packed do
    local at_ms, kind, holds, count, after = unpack_struct(DEADLINE_FORMAT, packed, at)
    if at_ms > now and not led.was_wrong then break end
    local parts
    parts, at = read_parts(packed, count, after)
    at = at + END_BYTES
    give_back(led, parts)
    led.lapsed, led.live = led.lapsed + holds, max(led.live - holds, 0)
    if kind == PAGE_KIND then led.pages = led.pages - 1 end
  end
  if at > 1 then led.deadlines = sub(packed, at) end
  if led.was_wrong then correct_memory(led) end
  if led.pages > 0 then give_back_buckets(led) end
end

-- The earliest live deadline, or nil. What is due has been given back.
local function earliest_deadline(led)
  local at, earliest = 1, NEVER
  while at <= #led.deadlines do
    local at_ms, kind, _, count, after = unpack_struct(DEADLINE_FORMAT, led.deadlines, at)
    if at_ms - PAGE_MS >= earliest then break end
    if kind == EXACT_KIND then
      earliest = min(earliest, at_ms)
    else
      local bucket = buckets_of(led, at_ms, led.time, at_ms)[1]
      -- Without its buckets a page is due as a whole.
      earliest = min(earliest, bucket and bucket.deadline or at_ms)
    end
    at = after + PART_BYTES * count + END_BYTES
  end
  return earliest < NEVER and earliest or nil
end
