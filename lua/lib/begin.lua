-- begin: how every operation of an owner begins. Needs base, formats, each, ledger, memory, deadlines.
--
-- KEYS of every such script begin with the state and the two memories (see memory).

local HOLD_KEY = 4

-- What `basis` says of the plan: this one, none, or one that the catalog does not have.
local IN_FORCE, UNKNOWN_PLAN = 1, 2

-- How many holds of one owner may be live.
local MOST_HOLDS = 10000

-- The ledger at Redis's time, with what is due given back. Else nil and the fault: a later version has written the state.
local function begin(k)
  local key = KEYS[k + STATE_KEY]
  local led = open_ledger(key, call('GET', key))
  if not led then return nil, fault('FORMAT_UNKNOWN') end
  led.k = k
  if led.was_wrong or led.deadlines ~= '' then give_back_due(led) end
  return led
end
