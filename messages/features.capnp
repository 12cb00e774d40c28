@0x934419bb4e2e479c;
# Features. Any actor or principal asks `features/front` of any node; it knows from the ClusterView which shard holds a partition
# (stable_hash(entity) mod 256), checks the purpose, and asks `features/shard/<node>`. A row is acknowledged when it is on disk. An
# unknown outcome (unreachable, deadline) may be sent again: the same row written twice is one row. Principals talk to the front only:
# messages to shards carry no verb, so that none but nodes may send them, and purpose, tenant and audit are settled in one place.

using Cxx = import "/capnp/c++.capnp";
using A = import "annotations.capnp";
using R = import "resources.capnp";
$Cxx.namespace("falaj::messages");

struct Value {
  union {
    missing @0 :Void;
    float32 @1 :Float32;
    float64 @2 :Float64;
    int64 @3 :Int64;
    bool @4 :Bool;
    string @5 :Text;
  }
}

struct Row {
  entity @0 :Text;
  eventTimeNs @1 :Int64;  # 0: now
  values @2 :List(Value); # in the order of the view's fields
}

struct PutRows $A.verb("features.write") {
  view @0 :Text;
  tenant @1 :Text = "default";
  rows @2 :List(Row);
}

struct PutRowsReply {
  written @0 :UInt64;  # rows that are on disk now, or were there already with an equal or newer event time
}

struct GetFeatures $A.verb("features.read") {
  # The purpose is that of the message's scope. Reply: Features.
  view @0 :Text;
  tenant @1 :Text = "default";
  entities @2 :List(Text);
  fields @3 :List(Text);  # empty: all
}

enum RowStatus {
  present @0;
  notFound @1;
  expired @2;
}

struct FeatureRow {
  entity @0 :Text;
  status @1 :RowStatus;
  eventTimeNs @2 :Int64;
  values @3 :List(Value);  # as `fields` of Features; empty unless present
}

struct Features {
  fields @0 :List(R.FeatureField);
  rows @1 :List(FeatureRow);  # in the order asked
}

struct DeleteEntity $A.verb("features.erase") {
  # Reply: RowCount, the rows erased.
  view @0 :Text;
  tenant @1 :Text = "default";
  entity @2 :Text;
}

struct ShardPut {
  # features/front -> features/shard: only rows of partitions that the shard holds, event times set. Reply: PutRowsReply, when on disk.
  view @0 :Text;
  tenant @1 :Text = "default";
  rows @2 :List(Row);
}

struct ShardGet {
  # features/front -> features/shard. Reply: Features, in the order asked.
  view @0 :Text;
  tenant @1 :Text = "default";
  entities @2 :List(Text);
  fields @3 :List(Text);  # empty: all
}

struct ShardErase {
  # features/front -> features/shard. Reply: RowCount (0 or 1).
  view @0 :Text;
  tenant @1 :Text = "default";
  entity @2 :Text;
}

struct ShardCount {
  # features/front -> features/shard: rows in the partitions that it holds. Reply: RowCount.
  view @0 :Text;
  tenant @1 :Text = "default";
}

struct ScanPartition {
  # features/front -> features/shard, in key order, page by page. Reply: ScanPage.
  view @0 :Text;
  tenant @1 :Text = "default";
  partition @2 :UInt16;
  after @3 :Text;
  limit @4 :UInt32 = 256;
}

struct ScanPage {
  rows @0 :List(Row);
  more @1 :Bool;
}

struct CountRows $A.verb("features.count") {
  view @0 :Text;
  tenant @1 :Text = "default";
}

struct RowCount {
  rows @0 :UInt64;
}

struct CreateSnapshot $A.verb("features.snapshot") {
  # Reads every row of the view that has not expired, in the order of partition and entity, into a content-addressed artifact.
  # The same rows give the same digest. Reply: SnapshotInfo. Needs a purpose.
  view @0 :Text;
  tenant @1 :Text = "default";
}

struct SnapshotInfo {
  digest @0 :Text;     # of the artifact's manifest
  rows @1 :UInt64;
  view @2 :R.FeatureView;
  createdNs @3 :Int64;
}

struct SnapshotHeader {
  # First message of the artifact's content (stream framing); then SnapshotBlocks until the end.
  formatVersion @0 :UInt32 = 1;
  view @1 :R.FeatureView;
}

struct SnapshotBlock {
  rows @0 :List(Row);
}
