@0x878cd4a1ba81ef89;
# What the probes of a simulation say to one another (simulations/probe.cpp), to test the runtime's own promises while everything
# else goes on. Nodes only; never stored.
using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("falaj::messages");

struct Probe {
  # probe -> probe of another machine, as a tell or as an ask. Reply: ProbeReply.
  from @0 :Text;          # machine
  boot @1 :UInt64;        # its incarnation
  sequence @2 :UInt64;    # grows for each pair of machines and each boot
  target @3 :UInt64;      # incarnation that the message is for; 0: whichever
}

struct ProbeReply {
  boot @0 :UInt64;
  sequence @1 :UInt64;
}

struct ProbeFlood {
  # probe -> its own crowd: far more at once than fit into the mailbox. Reply: ProbeReply.
  sequence @0 :UInt64;
}

struct ProbeBreak {}  # the fragile child throws
