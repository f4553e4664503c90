"""What Redis runs in one piece: recording a batch, labelling, erasing. Lua, sent once and called by its hash.

A value begins with a number, 16 hexadecimal digits: a decision's is its place in the order of all, a state's that of the
last decision in it. Who writes says what it read, and is told when that is no longer so. All keys have the same hash
tag, so that a Cluster keeps a batch on one node.
"""

from __future__ import annotations

NUMBER_BYTES = 16
"""Of the number before a value."""

RECORD = """
-- KEYS: counter, then per decision its key, then per decision its customer's index, then per state its key.
-- ARGV: decisions, states, milliseconds to keep decisions, to keep states; then per decision its transaction and its
-- entry; then the time in milliseconds; then per state the number it was read with ('' for none) and the new state.
-- Gives 0 when done, 1 when a decision exists already, 2 when a state has changed.
local nd, ns = tonumber(ARGV[1]), tonumber(ARGV[2])
for i = 1, nd do
  if redis.call('EXISTS', KEYS[1 + i]) == 1 then return 1 end
end
local first = 5 + 2 * nd
for j = 1, ns do
  if redis.call('GETRANGE', KEYS[1 + 2 * nd + j], 0, 15) ~= ARGV[first + 2 * j - 1] then return 2 end
end
local last = redis.call('INCRBY', KEYS[1], nd)
for i = 1, nd do
  redis.call('SET', KEYS[1 + i], string.format('%016x', last - nd + i) .. ARGV[4 + 2 * i], 'PX', ARGV[3])
  redis.call('ZREMRANGEBYSCORE', KEYS[1 + nd + i], '-inf', ARGV[5 + 2 * nd] - ARGV[3])
  redis.call('ZADD', KEYS[1 + nd + i], ARGV[5 + 2 * nd], ARGV[3 + 2 * i])
  redis.call('PEXPIRE', KEYS[1 + nd + i], ARGV[3])
end
local number = string.format('%016x', last)
for j = 1, ns do
  redis.call('SET', KEYS[1 + 2 * nd + j], number .. ARGV[first + 2 * j], 'PX', ARGV[4])
end
return 0
"""

LABEL = """
-- KEYS: counter, the decision's key, the terminal's. ARGV: the value that was read, the new one, the number that the
-- terminal's state was read with, the new state ('' to leave it). Gives 1 when done, 0 when something has changed.
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
if ARGV[4] ~= '' and redis.call('GETRANGE', KEYS[3], 0, 15) ~= ARGV[3] then return 0 end
redis.call('SET', KEYS[2], ARGV[2], 'KEEPTTL')
if ARGV[4] ~= '' then
  redis.call('SET', KEYS[3], string.format('%016x', redis.call('INCR', KEYS[1])) .. ARGV[4], 'KEEPTTL')
end
return 1
"""

ERASE = """
-- KEYS: the customer's index, the customer's state, when something was first erased. ARGV: what a decision's key begins
-- with, now, how many decisions to delete at most. Gives how many are left.
redis.call('DEL', KEYS[2])
redis.call('SET', KEYS[3], ARGV[2], 'NX')
for _, name in ipairs(redis.call('ZRANGE', KEYS[1], 0, ARGV[3] - 1)) do
  redis.call('DEL', ARGV[1] .. name)
  redis.call('ZREM', KEYS[1], name)
end
return redis.call('ZCARD', KEYS[1])
"""
