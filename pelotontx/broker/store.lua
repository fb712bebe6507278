-- Stores entries in a list, each maybe with a key that lives as long as the entry is of use.
-- KEYS: the list, then a timeout key for each entry or for none.
-- ARGV: the list's cap (0 = none), the least life of the list in ms, then the timeout of each
--       timeout key in ms, then each entry.
-- Returns how many were stored: the first ones, as many as the cap had room for. Nothing of the
-- others is left behind.
local timeouts = #KEYS - 1
local cap = tonumber(ARGV[1])
local length = redis.call('LLEN', KEYS[1])
local room = #ARGV - 2 - timeouts
if cap > 0 and length + room > cap then
  room = cap - length
  if room <= 0 then
    return 0
  end
end

local life = tonumber(ARGV[2])
for i = 1, math.min(timeouts, room) do
  local timeout = ARGV[2 + i]
  redis.call('SET', KEYS[1 + i], timeout, 'PX', timeout)
  life = math.max(life, 2 * tonumber(timeout))
end
redis.call('LPUSH', KEYS[1], unpack(ARGV, 3 + timeouts, 2 + timeouts + room))

-- A list that nobody serves goes away by itself. One without an expiry that holds entries belongs
-- to a server that sets none: it stays so.
local left = redis.call('PTTL', KEYS[1])
if left < life and (left >= 0 or length == 0) then
  redis.call('PEXPIRE', KEYS[1], life)
end
return room
