@0xe4eb96da601961e6;
# Named locks: `shard/locks/<name>`. A lock is held by one owner until it is released or its time is over, and each grant has a token that is
# greater than those of all grants before. Whoever writes under a lock gives the token to what is written to, which refuses a smaller one: so
# an owner that was held up does no harm.
#
# A lock moves with its node's partitions when that node leaves. When a node dies, its locks die with it: each is free again, with greater tokens,
# and its owner keeps it by renewing, within a minute and before somebody else asks for it.
# Owners are told apart by their principal and the name that they give.

using Cxx = import "/capnp/c++.capnp";
using A = import "annotations.capnp";
$Cxx.namespace("falaj::messages");

struct AcquireLock $A.verb("locks.acquire") {
  # Reply: LockGrant; the same grant, prolonged, for who has the lock already. Conflict: somebody else has it, and had it all the time that
  # the question was ready to wait.
  owner @0 :Text;
  ttlMs @1 :UInt32 = 30000;  # 100 to 86,400,000
  waitMs @2 :UInt32;         # at most a minute; who waits longest is first
}

struct RenewLock $A.verb("locks.acquire") {
  # Reply: LockGrant. Gone: the lock is no longer the owner's.
  owner @0 :Text;
  token @1 :UInt64;
  ttlMs @2 :UInt32 = 30000;
}

struct ReleaseLock $A.verb("locks.acquire") {
  # Reply: Empty, also when the lock is free. Gone: it is somebody else's.
  owner @0 :Text;
  token @1 :UInt64;
}

struct GetLock $A.verb("locks.read") {}  # Reply: LockState.

struct LockGrant {
  token @0 :UInt64;
  ttlMs @1 :UInt32;
}

struct LockState {
  # Also what moves from node to node.
  held @0 :Bool;
  owner @1 :Text;
  principal @2 :Text;
  token @3 :UInt64;   # of the newest grant that is known
  leftMs @4 :UInt64;
  waiting @5 :UInt32;
}
