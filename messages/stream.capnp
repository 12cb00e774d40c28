@0xeb2a6db6ad6ea983;
# Streams: bulk data from one actor to another, no faster than the other takes it (runtime/host/stream.hpp has both ends).
#
# Who talks to whom: the sender asks the receiver whatever message begins such a stream there; the reply is StreamOpened, which names the
# inlet, an actor that lives for this one stream. It is asked AwaitStream, whose answer is the end of the stream, and then for each
# piece StreamChunk, whose reply is a credit: never more pieces or bytes may be without one than StreamOpened says. The last message is a
# StreamChunk with `last` set and no content; when the receiver has made something of it all, it answers AwaitStream.
# Ordering: chunks are numbered from 0. A chunk refused as `overloaded` was not taken and is sent again under its number; any other refusal
# is the end of the stream, and so is a number that comes twice. The inlet puts in order what came out of order.
# Ownership: numbers belong to the sender; a chunk's content is the sender's to keep until its credit.
# A lost connection means: the stream has ended at both ends (`unreachable`), and what was not answered is unknown.
# Whoever asks the inlet must be the actor that opened the stream: the envelope's `from` is the same throughout. A program that is no node
# reaches the inlets of the node that it is linked to.

using Cxx = import "/capnp/c++.capnp";
using A = import "annotations.capnp";
using E = import "envelope.capnp";
$Cxx.namespace("falaj::messages");

# --- receiver -> sender ---------------------------------------------------------------------------------------------------------

struct StreamOpened {
  # The reply to the message that opens a stream.
  inlet @0 :E.Address;
  items @1 :UInt32;  # chunks without a credit at most, the last one included
  bytes @2 :UInt64;  # their content at most
}

# --- sender -> inlet ------------------------------------------------------------------------------------------------------------

struct AwaitStream $A.verb("streams.write") {
  # Asked once, right after opening, with the deadline of the whole stream. Reply: StreamAnswer, when the receiver is done. A refusal is the
  # end of the stream before that: by the receiver, or because it is gone.
}

struct StreamChunk $A.verb("streams.write") {
  # Reply: StreamCredit, when the receiver has taken it.
  sequence @0 :UInt64;
  content @1 :Data;
  last @2 :Bool;
}

struct StreamCredit {
  taken @0 :UInt64;  # all chunks with smaller numbers were taken: a credit makes up for those before it
}

struct AbortStream $A.verb("streams.write") {
  # A tell: the sender ends the stream, and why.
  reason @0 :E.ErrorInfo;
}

struct StreamAnswer {
  # What the receiver's finish() gave: a message in stream framing, of that type.
  typeId @0 :UInt64;
  body @1 :Data;
}

# --- receiver -> its own inlet; none but the receiver may send these ----------------------------------------------------------------

struct TakeChunk {}  # Reply: the next StreamChunk, as it came.

struct FinishStream {
  answer @0 :StreamAnswer;
}

struct DropStream {
  reason @0 :E.ErrorInfo;
}
