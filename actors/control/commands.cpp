#include "actors/control/commands.hpp"

#include <algorithm>

#include "messages/control_internal.capnp.h"
#include "runtime/base/fault.hpp"
#include "runtime/base/format.hpp"

namespace falaj::control {
namespace {

using messages::CommandRecord;

constexpr std::string_view kPrefix = "command/";
constexpr auto kLookAgain = std::chrono::milliseconds(5);

std::string key_of(const Scope& scope) {
  storage::Sha256 hash;
  hash.update(scope.principal).update(std::string_view("\0", 1)).update(scope.idempotency_key);
  return std::string(kPrefix) + hash.finish().hex();
}

Result<View<CommandRecord>> open_command(const storage::KeyValue& item) {
  FALAJ_ASSIGN(const auto message, message_from_bytes(TypeId(capnp::typeId<CommandRecord>()), item.value));
  return message.open<CommandRecord>();
}

}  // namespace

Bytes CommandBook::digest(TypeId type, const Scope& scope, ByteView content) {
  const auto sum = storage::Sha256().update(format("{:x}\n{}\n", type.value(), scope.tenant)).update(content).finish();
  return {sum.bytes.begin(), sum.bytes.end()};
}

Status CommandBook::load() {
  FALAJ_ASSIGN(auto listing, store_.list(kPrefix));
  std::ranges::sort(listing.items, {}, &storage::KeyValue::modified);
  for (const auto& item : listing.items) {
    auto record = open_command(item);
    if (!record) return within(item.key, record.error());
    if (text((*record)->getActor()) != actor_) continue;
    entries_.push_back({item.key, WallTime{(*record)->getAtNs()}, item.value.size()});
    bytes_ += item.value.size();
  }
  return {};
}

Result<std::optional<CommandBook::Answered>> CommandBook::find(const std::string& key, ByteView content) const {
  FALAJ_ASSIGN(const auto item, store_.get(key));
  if (!item) return std::nullopt;
  FALAJ_ASSIGN(const auto record, open_command(*item));
  if (!std::ranges::equal(bytes(record->getContent()), content)) {
    return error(ErrorCode::conflict, "this idempotency key stands for another command; take a new key for a new command");
  }
  FALAJ_ASSIGN(auto answer, message_from_bytes(TypeId(record->getAnswerType()), bytes(record->getAnswer())));
  return Answered{std::move(answer), item->modified};
}

Task<Result<CommandBook::Turn>> CommandBook::admit_plain() { co_return Turn(); }

Task<Result<CommandBook::Turn>> CommandBook::admit_keyed(Context& ctx, ScopeRef scope, Result<Bytes> content) {
  if (!content) co_return content.error();
  if (scope->idempotency_key.size() > kIdempotencyKeyBytesMax)
    co_return invalid(format("an idempotency key of {} bytes; at most {}", scope->idempotency_key.size(), kIdempotencyKeyBytesMax));
  Turn turn;
  const auto key = key_of(*scope);
  while (running_.contains(key)) co_await ctx.sleep(kLookAgain);
  auto before = find(key, *content);
  if (!before) co_return before.error();
  if (*before && !fault::planted("command-again")) {
    ctx.metrics().counter("falaj_commands_repeated_total", "Commands that were answered again, not carried out again").add();
    turn.before_ = std::move(*before);
    co_return turn;
  }
  running_.insert(key);
  turn.book_ = this;
  turn.key_ = key;
  turn.content_ = std::move(*content);
  co_return turn;
}

CommandBook::Turn::Turn(Turn&& other) noexcept
    : book_(std::exchange(other.book_, nullptr)),
      key_(std::move(other.key_)),
      content_(std::move(other.content_)),
      before_(std::move(other.before_)),
      size_(other.size_),
      now_(other.now_),
      forgotten_(std::move(other.forgotten_)) {}

CommandBook::Turn::~Turn() {
  if (book_ != nullptr) book_->running_.erase(key_);
}

void CommandBook::Turn::keep(storage::Transaction& transaction, const Message& answer, WallTime now) {
  if (book_ == nullptr) return;
  const auto record = Message::build<CommandRecord>(
      [&](CommandRecord::Builder b) {
        b.setActor(book_->actor_);
        b.setContent(falaj::data(content_));
        b.setAtNs(now.unix_ns);
        b.setAnswerType(answer.type().value());
        b.setAnswer(falaj::data(answer.bytes()));
      },
      answer.bytes().size() / 8 + 24);
  size_ = record.bytes().size();
  now_ = now;
  forgotten_.clear();
  transaction.conditions.push_back({key_, Revision{}});
  transaction.writes.push_back({key_, to_bytes(as_text(record.bytes())), {}});
  std::size_t count = book_->entries_.size() + 1;
  std::size_t bytes = book_->bytes_ + size_;
  for (const auto& entry : book_->entries_) {
    const bool old = now.unix_ns - entry.at.unix_ns > book_->limits_.age.count();
    if (forgotten_.size() == book_->limits_.forgotten_at_once) break;
    if (!old && count <= book_->limits_.kept && bytes <= book_->limits_.bytes) break;
    transaction.writes.push_back({entry.key, std::nullopt, {}});
    forgotten_.push_back(entry.key);
    --count;
    bytes -= entry.size;
  }
}

void CommandBook::Turn::kept() {
  if (book_ == nullptr) return;
  auto& entries = book_->entries_;
  for (const auto& key : forgotten_) {  // another command may have been faster
    if (entries.empty() || entries.front().key != key) continue;
    book_->bytes_ -= entries.front().size;
    entries.pop_front();
  }
  entries.push_back({key_, now_, size_});
  book_->bytes_ += size_;
}

bool CommandBook::Turn::overtaken() const {
  if (book_ == nullptr) return false;
  const auto item = book_->store_.get(key_);
  return item && *item;
}

}  // namespace falaj::control
