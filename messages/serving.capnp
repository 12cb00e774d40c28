@0xe8b26ff6035e8b26;
# Serving. Any principal asks `serving/router` (on every gateway node) by Infer or Predict; the router asks one replica
# (`serving/replica/<deployment>/<index>`), and another when that one is lost: inference changes nothing, so it may be asked twice.
# Tensors are little-endian and row-major. Replicas refuse what is past its deadline.

using Cxx = import "/capnp/c++.capnp";
using A = import "annotations.capnp";
using F = import "features.capnp";
$Cxx.namespace("falaj::messages");

enum DataType {  # the Open Inference Protocol's names in lower case
  invalid @0;
  bool @1;
  uint8 @2;
  uint16 @3;
  uint32 @4;
  uint64 @5;
  int8 @6;
  int16 @7;
  int32 @8;
  int64 @9;
  fp16 @10;
  fp32 @11;
  fp64 @12;
  bytes @13;
  bf16 @14;
}

struct Tensor {
  name @0 :Text;
  type @1 :DataType;
  shape @2 :List(Int64);
  content @3 :Data;         # all but bytes
  strings @4 :List(Data);   # bytes
}

struct Infer $A.verb("serving.infer") {
  model @0 :Text;           # deployment
  version @1 :UInt64;       # 0: whichever it serves
  id @2 :Text;
  inputs @3 :List(Tensor);
  outputs @4 :List(Text);   # empty: all
  byEntity @5 :Bool;        # rows as stored for entities: gaps in them are told in PredictReply, and are no error
}

struct InferReply {
  model @0 :Text;
  version @1 :UInt64;
  id @2 :Text;
  outputs @3 :List(Tensor);
  queueNs @4 :UInt64;
  computeNs @5 :UInt64;
  rows @6 :UInt32;
  batchRows @7 :UInt32;     # of the run that these rows were part of
  unknown @8 :UInt32;       # categories of these rows that the model does not know, and took as missing
}

struct Predict $A.verb("serving.predict") {
  # By entity key: the router fetches the features first, under the purpose of the message's scope (or the deployment's own, when the
  # principal names none and the deployment has one). An entity that is not found is an error of that row.
  model @0 :Text;
  entities @1 :List(Text);
  id @2 :Text;
}

struct PredictReply {
  model @0 :Text;
  version @1 :UInt64;
  id @2 :Text;
  outputs @3 :List(Tensor);    # one row for each entity
  missing @4 :List(Text);      # entities without a present row: their values were all missing
}

struct DescribeModel $A.verb("serving.read") {
  model @0 :Text;
}

struct ModelDescription {
  model @0 :Text;
  versions @1 :List(UInt64);
  platform @2 :Text;
  inputs @3 :List(TensorInfo);
  outputs @4 :List(TensorInfo);
  maxBatch @5 :UInt32;
  ready @6 :Bool;
}

struct TensorInfo {
  name @0 :Text;
  type @1 :DataType;
  shape @2 :List(Int64);  # -1: any
}

# --- bearer tokens -------------------------------------------------------------------------------------------------------

struct TokenFile {
  # tokens.toml, beside rights.toml: whom the HTTP gateway takes the bearer of a token for.
  token @0 :List(TokenGrant);
}

struct TokenGrant {
  sha256 @0 :Text $A.required $A.doc("SHA-256 of the token in hex; the token itself is nowhere kept");
  principal @1 :Text $A.required $A.doc("path after the cluster's name, e.g. service/scoring");
  expires @2 :Text $A.doc("YYYY-MM-DD or YYYY-MM-DDTHH:MM:SSZ: from then on it is refused; empty: never");
}
