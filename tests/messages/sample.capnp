@0xe6a1b2c3d4e5f601;
# A schema for the tests of configuration and JSON: one field of each kind.

using Rules = import "/messages/annotations.capnp";
using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("falaj::sample");

enum Speed {
  veryFast @0;
  slow @1;
}

struct Optimizer {
  name @0 :Text $Rules.oneOf(["adamw", "sgd"]);
  learningRate @1 :Float64 = 0.001 $Rules.range((min = 0, max = 1));
  weightDecay @2 :Float32;
}

struct Sample {
  name @0 :Text $Rules.required $Rules.doc("what it is called");
  epochs @1 :UInt32 = 10 $Rules.range((min = 1, max = 1000));
  small @2 :Int8;
  large @3 :UInt64;
  enabled @4 :Bool = true;
  rate @5 :Float32;
  speed @6 :Speed;
  secret @7 :Data;
  tags @8 :List(Text) $Rules.oneOf(["red", "green", "blue"]);
  sizes @9 :List(UInt16) $Rules.range((min = 1));
  matrix @10 :List(List(Float64));
  optimizer @11 :Optimizer;
  fields @12 :List(FieldSpec);
  p99LimitMs @13 :Int64;

  model :union {
    none @14 :Void;
    linear @15 :Void;
    mlp :group {
      hidden @16 :List(UInt32);
      dropout @17 :Float64;
    }
    onnx @18 :Text;
  }
  inner @19 :Sample;
}

struct FieldSpec {
  name @0 :Text $Rules.required;
  union {
    number @1 :Void;
    categories @2 :List(Text);
    width @3 :UInt16;
  }
}
