@0xb124c3871b0340ca;
# What storage/ writes down as Cap'n Proto. Nobody sends these as messages by themselves; a manifest travels between nodes as the
# bytes that ArtifactStore::encode gives, after the chunks it names. Numbers are never reused; a reader refuses a formatVersion it
# does not know.

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("falaj::messages");

struct ArtifactManifest {
  formatVersion @0 :UInt32;
  id @1 :Data;          # 32 bytes: the artifact's name; see storage/FORMATS.md
  digest @2 :Data;      # 32 bytes: SHA-256 of the whole content
  size @3 :UInt64;
  mediaType @4 :Text;
  tenant @5 :Text;
  purpose @6 :Text;
  residency @7 :Text;
  createdUnixNs @8 :Int64;
  chunks @9 :List(Chunk);

  struct Chunk {
    digest @0 :Data;    # 32 bytes: SHA-256 of the plaintext
    size @1 :UInt64;    # bytes of plaintext
  }
}
