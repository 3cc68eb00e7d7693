-- life: reservations that are extended, committed in part, or count at their deadlines. Needs base, formats, price, ledger, windows, memory,
-- deadlines, record.
--
-- Such a reservation has a record of format 2, and so has one that was committed as another event. `committed` of a claim is what partial commits
-- have counted so far, and after the final commit what that has counted. `due` is what a final commit counts that names nothing. `locked` is what of
-- the committed amount was counted before a reset of its window: that is never given back. `settled_what` is the event as it was committed, if a
-- commit has replaced some of its metadata.

-- How long a reservation can last from when it was made.
local LONGEST_LIFE = 86400000

-- Makes the record of a reservation that was not committed one of format 2.
local function begin_life(record)
  if record.format == LIVING_FORMAT then return end
  record.made_at = made_at(record)
  record.format, record.sequence, record.on_expiry, record.named, record.added = LIVING_FORMAT, 0, GIVES_BACK, '', ''
  record.extensions, record.settled_what = '', ''
  record.rest = sub(record.rest, MADE_BYTES + 1)
  for _, claim in ipairs(record.claims) do
    claim.committed, claim.refunded, claim.due, claim.locked = 0, 0, claim.charge, 0
  end
end

-- Whether the event was committed with other metadata than it was reserved with. Its claims are then those of both.
local function was_changed(record)
  return record.format == LIVING_FORMAT and record.settled_what ~= ''
end

-- What the reservation has counted by a claim: by its commits, or by its deadline.
local function counted_so_far(record, claim, state)
  if record.format ~= LIVING_FORMAT then return 0 end
  if state == STATE_EXPIRED and record.on_expiry == COUNTS_UP then return max(claim.committed, claim.charge) end
  return claim.committed
end

-- What the reservation still holds by a claim.
local function held_so_far(record, claim, state)
  if state ~= STATE_HELD then return 0 end
  if record.format ~= LIVING_FORMAT then return claim.charge end
  return max(claim.charge - claim.committed, 0)
end

-- What of that was counted before the latest reset of the window. Needs windows that are unfolded, if some of them may have been reset.
local function locked_so_far(record, claim, window, state)
  if not window or (window.reset or 0) == 0 or record.sequence > window.reset then return claim.locked end
  -- What the deadline has counted after the reset can be given back.
  if state == STATE_EXPIRED and record.deadline > window.reset_at then return claim.committed end
  return counted_so_far(record, claim, state)
end

-- Reads all that is known of the windows. The counters stay arranged as they are.
local function unfold_arranged(led)
  local current_until = led.current_until
  unfold(led)
  led.current_until = current_until
end

-- Notes what was counted before resets, before anything else of the record changes. The record is yet to be written, with the next sequence.
local function lock_counted(led, record, state)
  if led.format == WIDE_FORMAT then unfold_arranged(led) end
  for _, claim in ipairs(record.claims) do
    claim.locked = locked_so_far(record, claim, window_of(led, claim), state)
  end
  record.sequence = led.memory.sequence + 1
  if record.extensions ~= '' then led.extensions, led.extended = record.extensions, record.field end
end

-- Counts `to` in place of `from`, which the reservation has counted by this claim so far, and of which some may have been refunded. Returns what
-- cannot be given back.
local function recount(led, claim, from, to)
  local window = window_of(led, claim)
  if not window then return 0 end
  note_used(led, window)
  local before, after = max(from - claim.refunded, 0), max(to - claim.refunded, 0)
  if after >= before then
    -- EXACT: in this order no sum passes 2^53.
    window.used = window.used + (after - before)
    return 0
  end
  local back = min(before - after, window.used, max(before - claim.locked, 0))
  window.used = window.used - back
  return before - after - back
end

-- Gives back so much of what commits have counted by this claim. What only the deadline has counted cannot be refunded. Returns how much came back.
local function refund_counted(led, claim, amount)
  local unlocked = max(claim.committed - claim.refunded - claim.locked, 0)
  local back = amount - recount(led, claim, claim.committed, claim.committed - amount)
  -- What was refunded in vain is not locked any more, so that a late release can give back all that the deadline has counted.
  claim.locked = claim.locked - max(amount - unlocked, 0)
  return back
end

-- Counts these amounts in place of what partial commits and the deadline have counted so far. Returns whether some of that cannot be given back.
local function count_finally(led, record, amounts, state)
  lock_counted(led, record, state)
  local is_short = false
  for i, claim in ipairs(record.claims) do
    claim.unapplied = recount(led, claim, counted_so_far(record, claim, state), amounts[i])
    claim.locked = min(claim.locked, amounts[i])
    is_short = is_short or claim.unapplied > 0
  end
  return is_short
end

-- The fault of a group whose counter would pass its maximum, or nil. `charges` are what the reservation will have counted, and `holds` whether it
-- goes on holding the rest.
local function beyond_most(led, record, groups, charges, state, holds)
  for i, claim in ipairs(record.claims) do
    local window, most = window_of(led, claim), groups and groups[claim.place].max_units or MAX
    if window then
      local from, held = counted_so_far(record, claim, state), held_so_far(record, claim, state)
      local new_held = holds and max(claim.charge - charges[i], 0) or 0
      most = most - window.used - (window.held - min(held, window.held)) - new_held + from
    end
    if charges[i] > most then return fault('OUT_OF_RANGE', claim.place, '', record.plan) end
  end
end

-- When the reservation ends if it holds so much longer from now.
local function later_deadline(led, record, ttl_ms)
  local asked, last = led.time + ttl_ms, made_at(record) + LONGEST_LIFE
  return max(record.deadline, ceil(min(asked, last) / TENTH_MS) * TENTH_MS)
end

-- What the reservation holds, as parts of its deadline, before it changes.
local function parts_now(record)
  if record.format == LIVING_FORMAT then return parts_of_life(record) end
  local parts = {}
  for i, claim in ipairs(record.claims) do parts[2 * i - 1], parts[2 * i] = claim.number, claim.charge end
  return parts
end

-- Holds what the record says now until this deadline. `before` is what it has held. Its windows take in the difference.
local function hold_anew(led, record, before, deadline)
  local after = parts_now(record)
  for i, claim in ipairs(record.claims) do
    local window = window_of(led, claim)
    if window then window.held = max(window.held + (after[2 * i] - before[2 * i]), 0) end
  end
  local is_paged = move_deadline(led, record.deadline, record.paged == 1, before, deadline, after)
  record.forget = record.forget + deadline - record.deadline
  record.deadline, record.paged = deadline, is_paged and 1 or 0
end

-- Writes the record of a reservation that goes on, with its buckets and perhaps another field, and all else of the script.
local function write_living(led, settle, record, hold_key, is_held, name, value)
  local more = {}
  for bucket_field, bucket in pairs(led.moved_buckets or NOTHING) do more[#more + 1], more[#more + 2] = bucket_field, bucket end
  write_fields(led, record.forget, settle.field, record_bytes(record), name, value, more)
  -- For people who look with redis-cli; no script reads it.
  if is_held then
    call('SET', hold_key, (unpack_message(record.what)), 'PX', format_text('%d', record.deadline - led.time))
  else
    call('DEL', hold_key)
  end
  write_corrected(led)
  save_ledger(led)
end

-- The values that the measure counts, where Extend has added to them: `added` on top of what was reserved, which is the default where the event says
-- nothing.
local function with_added(measure, values, added)
  local own = {}
  for place, value in pairs(values) do own[place] = value end
  for i = 1, #measure, 4 do
    local place = measure[i]
    local more = added[place]
    if more then
      local value = own[place]
      if value ~= true then own[place] = plus(value or measure[i + 3] or 0, more) end
    end
  end
  return own
end

-- The charge by the first of the measures that applies to what was reserved, to what Extend has added, and to `actual`, which names totals; as
-- `first_price`.
local function first_price_of_life(measures, reserved, added, actual)
  local missing
  for i = 1, #measures do
    local measure = measures[i]
    if measure == EVENTS then return 1, EVENTS end
    local values = with_added(measure, reserved, added)
    replace_values(values, actual)
    local charge, wrong = first_price({ measure }, values, nil, next(actual) and actual or nil)
    if charge then return charge, measure end
    if type_of(wrong) == 'table' or values[wrong] == true then return nil, wrong end
    missing = missing or wrong
  end
  return nil, missing
end
