// Every bound in one place, with the arithmetic that relates them. A knob an operator may turn is in messages/config.capnp;
// what is here is a constant because nobody has yet had a reason to turn it.
#pragma once
#include <chrono>
#include <cstddef>
#include <cstdint>

namespace falaj::limits {

using namespace std::chrono_literals;

// --- messages -------------------------------------------------------------------------------------------------------
constexpr std::size_t kMessageBytesMax = 16U << 20;                   // one message, its segment table included; larger data is chunked
constexpr std::size_t kChunkBytes = 1U << 20;                         // size of a piece of a large thing on the bulk lane
constexpr std::size_t kSegmentsMax = 64;                              // a frame that claims more is refused before it is read
constexpr int kNestingMax = 64;                                       // pointer depth of a message from outside
constexpr std::size_t kTraversalWordsMax = kMessageBytesMax / 8 * 4;  // reads of one message from outside (Cap'n Proto amplification)
constexpr std::size_t kEnvelopeBytesMax = 4096;                       // header message in front of each body
static_assert(kChunkBytes + kEnvelopeBytesMax < kMessageBytesMax);

// --- mailboxes ------------------------------------------------------------------------------------------------------
constexpr std::size_t kMailboxControl = 4096;
constexpr std::size_t kMailboxNormal = 1024;
constexpr std::size_t kMailboxBulk = 64;
constexpr std::size_t kMailboxBulkBytes = 64U << 20;
constexpr std::size_t kMessagesPerTurn = 32;  // fairness: an actor gives its thread back after so many
constexpr std::size_t kDeadLetters = 256;     // ring of the last ones, for each node
constexpr std::size_t kAsksPerActor = 65536;  // outstanding asks one actor may have
static_assert(kMailboxBulk * kChunkBytes <= kMailboxBulkBytes);

// --- links ----------------------------------------------------------------------------------------------------------
constexpr std::size_t kSendWindowBytes = 32U << 20;      // unsent bytes for each peer and lane; beyond it sends are refused
constexpr std::size_t kUnauthenticatedBytesMax = 16384;  // what a peer may make us hold before its certificate is checked
constexpr auto kHandshakeTimeout = 5s;
constexpr auto kHeartbeatEvery = 100ms;
constexpr auto kPeerSilenceMax = 900ms;  // upper bound on suspicion whatever phi says
static_assert(kHeartbeatEvery * 5 < kPeerSilenceMax);
constexpr auto kLinkRest = 3s;            // quiet for so long, and waited for by nobody: no heartbeats until somebody has something to say
constexpr auto kLookBeforeSleep = 100us;  // by an IO thread in busy times: about what it takes to be woken twice
constexpr auto kReconnectMin = 50ms;
constexpr auto kReconnectMax = 2s;

// --- time -----------------------------------------------------------------------------------------------------------
constexpr auto kAskDefault = 5s;
constexpr auto kShutdown = 10s;  // hard deadline of a node's stop; then who still lives is printed

// --- HTTP -----------------------------------------------------------------------------------------------------------
constexpr std::size_t kHttpHeaderBytesMax = 16384;
constexpr std::size_t kHttpBodyBytesMax = 64U << 20;
constexpr std::size_t kHttpConnectionsMax = 1024;
constexpr auto kHttpIdle = 60s;

// --- features -------------------------------------------------------------------------------------------------------
constexpr std::uint16_t kPartitions = 256;
constexpr std::size_t kCsvFieldBytesMax = 1U << 16;
constexpr std::size_t kCsvColumnsMax = 4096;
constexpr std::size_t kRowsPerBatch = 512;

}  // namespace falaj::limits
