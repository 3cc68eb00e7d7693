-- begin: how every operation of an owner begins. Needs base, formats, each, ledger, memory, deadlines.
--
-- KEYS of every such script begin with the state and the two memories.

local STATE_KEY, MEMORY_1_KEY, MEMORY_2_KEY, HOLD_KEY = 1, 2, 3, 4

-- What `basis` says of the plan: this one, none, or one that the catalog does not have.
local IN_FORCE, UNKNOWN_PLAN = 1, 2

-- How many holds of one owner may be live.
local MOST_HOLDS = 10000

-- The ledger at Redis's time, with what is due given back. Else nil and the fault: a later version has written the state.
local function begin(k)
  local key = KEYS[k + STATE_KEY]
  local led = open_ledger(key, call('GET', key))
  if not led then return nil, fault('FORMAT_UNKNOWN') end
  led.memory_keys = { KEYS[k + MEMORY_1_KEY], KEYS[k + MEMORY_2_KEY] }
  -- Fields of the memories, as far as somebody has asked for them.
  led.known, led.young_known = {}, {}
  if led.was_wrong or led.deadlines ~= '' then give_back_due(led) end
  return led
end
