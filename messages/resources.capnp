@0xf598c798a8eaf2c9;
# What users declare and the control plane keeps: `falaj apply -f FILE.toml` reads a ResourceFile, the control store holds one
# Resource for each (kind, tenant, name), the admin API shows it as JSON. Reconciled level-triggered: what is wanted is stored
# first, then made so. Keys in TOML are snake_case.

using Cxx = import "/capnp/c++.capnp";
using A = import "annotations.capnp";
$Cxx.namespace("falaj::messages");

struct ResourceFile $A.doc("One file may declare any number of resources") {
  featureView @0 :List(FeatureView);
  job @1 :List(TrainingJob);
  deployment @2 :List(Deployment);
}

struct Resource {
  union {
    featureView @0 :FeatureView;
    job @1 :TrainingJob;
    deployment @2 :Deployment;
  }
}

struct Owner {
  # Carried by every resource. Defaults: the tenant "default", no restriction of residency.
  tenant @0 :Text = "default";
  residency @1 :Text;  # ISO 3166 code of where data may lie and be processed, e.g. "ae"; empty: anywhere
}

# --- feature views ---------------------------------------------------------------------------------------------------

enum FieldType {
  float32 @0;
  float64 @1;
  int64 @2;
  bool @3;
  string @4;
}

struct FeatureField {
  name @0 :Text $A.required;
  type @1 :FieldType $A.required;
  personal @2 :Bool $A.doc("personal data: each read is written to the audit log");
  required @3 :Bool $A.doc("a missing value is an error; otherwise it is stored as missing");
}

struct FeatureView {
  name @0 :Text $A.required;
  owner @1 :Owner;
  entity @2 :Text $A.required $A.doc("the column that names the entity");
  field @3 :List(FeatureField) $A.required;
  ttlSeconds @4 :UInt64 $A.doc("older rows read as missing; 0: never") $A.range((min = 0, max = 3153600000));
  purposes @5 :List(Text) $A.required $A.doc("a read must name one of these");
  eventTime @6 :Text $A.doc("column with the event time (RFC 3339 or Unix seconds); empty: time of ingest");
}

# --- training jobs -----------------------------------------------------------------------------------------------------

struct ModelSpec {
  family @0 :Text = "wide_deep" $A.oneOf(["linear", "mlp", "wide_deep", "onnx", "boosted_trees", "cnn", "resnet", "transformer", "gpt"]);
  hidden @1 :List(UInt32) $A.doc("sizes of the hidden layers; cnn, resnet: channels of each stage; transformer, gpt: of each block; empty: the family's default");
  activation @2 :Text = "relu" $A.oneOf(["relu", "tanh", "sigmoid", "gelu"]);
  embedding @3 :UInt32 = 0 $A.doc("wide_deep: width of a category; transformer, gpt: of each column; 0: the family's default") $A.range((min = 0, max = 1024));
  dropout @4 :Float32 = 0 $A.range((min = 0, max = 0.9));
  onnx @5 :Text $A.doc("family onnx: model name in the registry, as NAME or NAME:VERSION");
  trees @6 :TreesSpec $A.doc("family boosted_trees");
  image @7 :List(UInt32) $A.doc("cnn, resnet: channels, rows and columns; the numeric fields are its pixels, in that order");
  heads @8 :UInt32 = 0 $A.doc("transformer, gpt: heads of attention, which divide `embedding`; 0: 4") $A.range((min = 0, max = 64));
  vocabulary @9 :UInt32 = 0 $A.doc("gpt: numeric fields are tokens 0 to vocabulary - 1; 0: the fields are strings, of one vocabulary") $A.range((min = 0, max = 65536));
  tied @10 :Bool $A.doc("gpt: the table of tokens also gives the logits; the label's classes must be tokens");
  dropoutNodes @11 :Bool $A.doc("onnx: its Dropout nodes drop while training; otherwise they pass everything");
  batchStatistics @12 :Bool $A.doc("onnx: BatchNormalization by the statistics of each micro-shard, moving its running ones; otherwise those are kept");
}

struct TreesSpec {
  # Gradient-boosted trees. They are grown by one worker; of the job's other settings seed, patience (in rounds), fractions and folds count,
  # of optimizer, epochs and batches none.
  rounds @0 :UInt32 = 200 $A.doc("a tree each; with C > 2 classes, C trees each") $A.range((min = 1, max = 100000));
  leaves @1 :UInt32 = 31 $A.doc("of a tree, at most") $A.range((min = 2, max = 4096));
  learningRate @2 :Float64 = 0.1 $A.range((min = 1e-9, max = 10));
  rowsMin @3 :UInt32 = 20 $A.doc("rows of a leaf, at least") $A.range((min = 1, max = 67108864));
  hessianMin @4 :Float64 = 0.001 $A.doc("sum of second derivatives of a leaf, at least") $A.range((min = 0, max = 1e12));
  l2 @5 :Float64 = 0 $A.doc("pulls leaves towards 0") $A.range((min = 0, max = 1e12));
  gainMin @6 :Float64 = 0 $A.doc("what a split must gain") $A.range((min = 0, max = 1e30));
  columnShare @7 :Float64 = 1 $A.doc("of the columns, drawn anew for each tree") $A.range((min = 1e-6, max = 1));
  rowShare @8 :Float64 = 1 $A.doc("of the training rows, drawn anew for each round") $A.range((min = 1e-6, max = 1));
  bins @9 :UInt32 = 255 $A.doc("values of a column that are told apart, at most") $A.range((min = 2, max = 255));
}

struct OptimizerSpec {
  name @0 :Text = "adamw" $A.oneOf(["adamw", "adam", "sgd", "lamb"]);
  learningRate @1 :Float64 = 0.01 $A.range((min = 0, max = 10));
  weightDecay @2 :Float64 = 0.01 $A.range((min = 0, max = 100));
  beta1 @3 :Float64 = 0.9 $A.range((min = 0, max = 1));
  beta2 @4 :Float64 = 0.999 $A.range((min = 0, max = 1));
  epsilon @5 :Float64 = 1e-8 $A.range((min = 0, max = 1));
  momentum @6 :Float64 = 0.9 $A.doc("of sgd") $A.range((min = 0, max = 1));
  schedule @7 :Text = "constant" $A.oneOf(["constant", "cosine", "step", "plateau"]);
  warmupSteps @8 :UInt32 = 0;
  clipNorm @9 :Float64 = 0 $A.doc("gradient clipping by global norm; 0: off") $A.range((min = 0, max = 1e9));
  nesterov @10 :Bool $A.doc("of sgd with momentum");
  every @11 :UInt32 = 0 $A.doc("schedule step: steps between drops of the rate");
  gamma @12 :Float64 = 0.1 $A.doc("schedules step and plateau: factor of a drop") $A.range((min = 1e-6, max = 1));
  plateauEpochs @13 :UInt32 = 10 $A.doc("schedule plateau: epochs without a better loss (of the validation rows, if there are any) that are borne");
}

struct GateSpec {
  # A version gets the alias `production` only if all hold on its held-out rows.
  minAuc @0 :Float64 = 0 $A.range((min = 0, max = 1));
  minAccuracy @1 :Float64 = 0 $A.range((min = 0, max = 1));
  maxAucDrop @2 :Float64 = 1 $A.doc("against the present production version, measured on the same snapshot") $A.range((min = 0, max = 1));
  maxRmse @3 :Float64 = inf;
}

struct TrainingJob {
  name @0 :Text $A.required;
  owner @1 :Owner;
  view @2 :Text $A.required;
  label @3 :Text $A.required;
  positive @4 :Text $A.doc("the label's value that counts as positive; empty: regression if the label is a number, else all classes");
  exclude @5 :List(Text);
  model @6 :ModelSpec;
  optimizer @7 :OptimizerSpec;
  epochs @8 :UInt32 = 30 $A.range((min = 1, max = 1000000));
  globalBatch @9 :UInt32 = 64 $A.range((min = 1, max = 1000000));
  microShards @10 :UInt32 = 8 $A.doc("fixed parts of each global batch; their gradients are summed in order in deterministic mode") $A.range((min = 1, max = 1024));
  workers @11 :UInt32 = 1 $A.doc("family boosted_trees: 1") $A.range((min = 1, max = 1024));
  seed @12 :UInt64 = 1;
  deterministic @13 :Bool = true;
  testFraction @14 :Float64 = 0.2 $A.doc("held out, stratified, never trained on") $A.range((min = 0, max = 0.9));
  validationFraction @15 :Float64 = 0.1 $A.doc("of the rest, for early stopping") $A.range((min = 0, max = 0.9));
  patience @16 :UInt32 = 0 $A.doc("epochs without a better validation loss before it stops; 0: never");
  folds @17 :UInt32 = 0 $A.doc("cross-validation before the final fit; 0 or 1: none") $A.range((min = 0, max = 100));
  checkpointEverySteps @18 :UInt32 = 50 $A.range((min = 1, max = 1000000));
  registerAs @19 :Text $A.doc("model name in the registry; empty: the job's name");
  purpose @20 :Text $A.required $A.doc("must be one that the view allows");
  gate @21 :GateSpec;
  snapshot @22 :Text $A.doc("digest of a snapshot to train on; empty: one is made when the job starts");
  precision @23 :Text = "f32" $A.doc("bf16: products and convolutions take their operands rounded to bfloat16; sums and parameters stay f32") $A.oneOf(["f32", "bf16"]);
  threads @24 :UInt32 = 1 $A.doc("of each worker; 0: as many as its machine has. The trained model does not depend on it") $A.range((min = 0, max = 256));
  freeze @25 :List(Text) $A.doc("parameters that are not trained, by name; a name may end in *");
  loss @26 :Text = "mse" $A.doc("of a regression, for the label in its standard deviations; classes have cross-entropy") $A.oneOf(["mse", "l1", "huber"]);
  huberDelta @27 :Float64 = 1 $A.doc("loss huber: where it turns from squares to lines, in standard deviations of the label") $A.range((min = 1e-9, max = 1e9));
  notFinite @28 :Text = "stop" $A.doc("a step whose gradient is no number ends the run, or is left out and counted") $A.oneOf(["stop", "skip"]);
}

# --- deployments ---------------------------------------------------------------------------------------------------------

struct Deployment {
  name @0 :Text $A.required $A.doc("the model name that clients use");
  owner @1 :Owner;
  model @2 :Text $A.required $A.doc("model in the registry");
  version @3 :UInt64 $A.doc("0: the version that the alias names");
  alias @4 :Text = "production";
  replicas @5 :UInt32 = 1 $A.range((min = 1, max = 256));
  maxBatch @6 :UInt32 = 64 $A.range((min = 1, max = 4096));
  maxDelayUs @7 :UInt32 = 0 $A.doc("longest time a request waits for others to share its batch") $A.range((min = 0, max = 1000000));
  queueMax @8 :UInt32 = 512 $A.range((min = 1, max = 65536));
  view @9 :Text $A.doc("feature view for predictions by entity key");
  purpose @10 :Text $A.doc("the purpose of such reads");
  threads @11 :UInt32 = 1 $A.doc("of each replica; 0: as many as its machine has. The answers do not depend on it") $A.range((min = 0, max = 256));
  precision @12 :Text = "f32" $A.doc("bf16: products and convolutions by known weights take their operands rounded to bfloat16") $A.oneOf(["f32", "bf16"]);
}
