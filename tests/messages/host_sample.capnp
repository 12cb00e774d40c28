@0xd7b1c8a2e9f04c13;
# Messages that only the tests of the host use.

using Rules = import "/messages/annotations.capnp";
using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("falaj::sample");

struct Add {
  by @0 :Int64;
  sequence @1 :UInt64;
}

struct Total {
  value @0 :Int64;
  sequence @1 :UInt64;
}

struct GetTotal $Rules.verb("sample.read") {
}

struct Do {
  # What a test wants an actor to do; the words are the test's.
  what @0 :Text;
  number @1 :Int64;
}

struct Large {
  bytes @0 :Data;
}
