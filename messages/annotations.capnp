@0xd3a1f6c0b2e94701;
# Annotations that carry rules beside the schema they rule.

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("falaj::messages");

annotation verb @0x9b5c2de7a1f04802 (struct) :Text;
# The right a principal needs to send this message to an actor, e.g. "features.read". A message without a verb may be sent by nodes only.

annotation range @0xb0d7e3c4f5a64903 (field) :Range;
# For configuration and resources: numbers outside are refused with the range in the error. Floats are compared as given.

struct Range {
  min @0 :Float64 = -inf;
  max @1 :Float64 = inf;
}

annotation doc @0xe2f4a6b8c0d14a04 (field, struct) :Text;
# One line for --help and for errors.

annotation required @0xa7c9e1f3b5d74b05 (field) :Void;
# A configuration or resource file must give this field.

annotation oneOf @0xf8b1d3e5a7c94c06 (field) :List(Text);
# The words a Text field may hold.
