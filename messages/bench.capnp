@0x888bcecc6584aa9e;
# What `falaj bench` sends: between its own actors, in one process or between two that it starts itself. No cluster knows these
# messages; a lost connection ends the measurement.

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("falaj::messages");

struct Ball {
  # Passed on with `left` one less, until it is 0.
  left @0 :UInt64;
  stamp @1 :UInt64;
}

struct Parcel {
  # A payload. An ask is answered with Tally once all parcels before it have been counted, or with the parcel itself (`echo`).
  echo @0 :Bool;
  data @1 :Data;
}

struct Tally {
  messages @0 :UInt64;
  bytes @1 :UInt64;
}
