@0xe45ce5f6f9d9c5f7;
# The model registry: `mlops/registry` on the control node. A version is immutable but for its gate verdict and its metadata; an alias
# names one version. The alias `production` is given only through the gate.

using Cxx = import "/capnp/c++.capnp";
using A = import "annotations.capnp";
using R = import "resources.capnp";
$Cxx.namespace("falaj::messages");

struct Metric {
  name @0 :Text;
  value @1 :Float64;
}

struct Lineage {
  snapshot @0 :Text;  # digest
  job @1 :Text;
  run @2 :Text;
  seed @3 :UInt64;
  build @4 :Text;     # of the falaj binary
  rows @5 :UInt64;
  weightsDigest @6 :Text;
  view @7 :Text;
  label @8 :Text;
  jobSpec @9 :R.TrainingJob;
}

struct Verdict {
  passed @0 :Bool;
  reasons @1 :List(Text);  # each rule with its figure
  champion @2 :UInt64;     # version compared against; 0: none
  decidedNs @3 :Int64;
  decidedBy @4 :Text;
}

struct ModelVersionInfo {
  model @0 :Text;
  version @1 :UInt64;
  owner @2 :R.Owner;
  artifact @3 :Text;  # digest of the ONNX file
  lineage @4 :Lineage;
  metrics @5 :List(Metric);  # on held-out rows: auc, accuracy, log_loss, ...
  createdNs @6 :Int64;
  createdBy @7 :Text;
  verdict @8 :Verdict;
  aliases @9 :List(Text);
}

struct RegisterVersion $A.verb("models.write") {
  # Reply: ModelVersionInfo. The same artifact and lineage again give the same version.
  info @0 :ModelVersionInfo;
}

struct GetVersion $A.verb("models.read") {
  model @0 :Text;
  tenant @1 :Text = "default";
  version @2 :UInt64;  # 0: by alias
  alias @3 :Text;      # empty, and version 0: the newest
}

struct ListModels $A.verb("models.read") {
  tenant @0 :Text = "default";
  model @1 :Text;  # empty: all
}

struct ModelList {
  versions @0 :List(ModelVersionInfo);
}

struct SetAlias $A.verb("models.promote") {
  # Reply: ModelVersionInfo. `production`: refused with the verdict's reasons when the gate says no; the verdict is stored either way.
  model @0 :Text;
  tenant @1 :Text = "default";
  alias @2 :Text;
  version @3 :UInt64;
}
