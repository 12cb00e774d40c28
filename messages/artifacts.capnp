@0xcef06e40a19f5e20;
# Artifacts: `artifacts/store` on the control node holds the cluster's artifacts; whoever reads fetches chunk by chunk (bulk lane) and
# checks each against its digest. Content first, name last: a manifest is accepted only when all its chunks are there. Writing the same
# content twice is not an error.

using Cxx = import "/capnp/c++.capnp";
using A = import "annotations.capnp";
using R = import "resources.capnp";
$Cxx.namespace("falaj::messages");

struct ArtifactInfo {
  digest @0 :Text;  # the artifact's name: SHA-256 over content digest and metadata, hex; empty in a PutManifest: the store says it
  bytes @1 :UInt64;
  mediaType @2 :Text;
  owner @3 :R.Owner;
  chunks @4 :List(ChunkInfo);
  createdNs @5 :Int64;
  purpose @6 :Text;
  content @7 :Text;  # SHA-256 of the content, hex
}

struct ChunkInfo {
  digest @0 :Text;
  bytes @1 :UInt32;
}

struct PutChunk $A.verb("artifacts.write") {
  digest @0 :Text;
  # Reply: Empty when it is on disk.
  content @1 :Data;  # at most limits::kChunkBytes
}

struct PutManifest $A.verb("artifacts.write") {
  # Reply: ArtifactInfo. not_found names the first chunk that is missing.
  info @0 :ArtifactInfo;
}

struct GetManifest $A.verb("artifacts.read") {
  # Reply: ArtifactInfo. An artifact made for a purpose is given to whoever names it.
  digest @0 :Text;
}

struct GetChunk $A.verb("artifacts.read") {
  # Reply: Chunk.
  digest @0 :Text;
}

struct Chunk {
  content @0 :Data;
}
