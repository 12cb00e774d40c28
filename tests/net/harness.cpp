#include "tests/net/harness.hpp"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

namespace falaj::net::testing {

TempDir::TempDir() {
  std::string pattern = (std::filesystem::temp_directory_path() / "falaj-net-XXXXXX").string();
  path_ = ::mkdtemp(pattern.data());
}
TempDir::~TempDir() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

TestCluster::TestCluster(std::string cluster_name)
    : name_(std::move(cluster_name)),
      authority(CertificateAuthority::create(name_, Validity::from(clock.wall(), std::chrono::hours(24))).value()) {}

Identity TestCluster::identity(const SpiffeId& who, Duration lifetime) const {
  auto made = authority.issue(who, Validity::from(clock.wall(), lifetime)).value();
  return {made.certificate_pem, made.key_pem, authority.certificate_pem(), {}};
}

void Recorder::on_peer_up(const PeerInfo& peer) {
  const std::scoped_lock lock(mutex);
  up_.insert(peer.name);
  events.push_back({format("up {}/{}", peer.name, peer.incarnation.value()), ErrorCode::failed});
  changed.notify_all();
}

void Recorder::on_message(const PeerInfo& peer, Lane lane, const Header&, Message body) {
  {
    const std::scoped_lock lock(mutex);
    if (!up_.contains(peer.name)) ++strays;
  }
  if (also) also(peer, lane, body);
  auto text = text_of(body);
  const std::scoped_lock lock(mutex);
  messages.push_back({peer.name, lane, std::move(text)});
  changed.notify_all();
}

void Recorder::on_peer_down(const PeerInfo& peer, const Error& reason) {
  const std::scoped_lock lock(mutex);
  up_.erase(peer.name);
  events.push_back({format("down {}/{}: {}", peer.name, peer.incarnation.value(), reason.message), reason.code});
  changed.notify_all();
}

void Recorder::on_dial_failed(const PeerAddress& peer, const Error& reason) {
  const std::scoped_lock lock(mutex);
  events.push_back({format("dial {}: {}", peer.name, reason.message), reason.code});
  changed.notify_all();
}

bool Recorder::waits_for(const PeerInfo& peer) {
  const std::scoped_lock lock(mutex);
  return !needed || needed->contains(peer.name);
}

bool Recorder::wait(const std::function<bool(const Recorder&)>& condition, Duration patience) {
  constexpr auto kLook = 10ms;  // a condition may hang on more than the events recorded here, which wake us
  std::unique_lock lock(mutex);
  const Instant end = SystemClock().now() + patience;
  while (!condition(*this)) {
    if (SystemClock().now() >= end) return false;
    changed.wait_for(lock, kLook);
  }
  return true;
}

std::size_t Recorder::count(std::string_view prefix) const {
  std::size_t n = 0;
  for (const auto& event : events) n += event.what.starts_with(prefix) ? 1 : 0;
  return n;
}

bool Recorder::wait_up(std::string_view name, std::size_t times) {
  return wait([&](const Recorder& r) { return r.count(format("up {}/", name)) >= times; });
}

bool Recorder::wait_event(std::string_view part) {
  return wait([&](const Recorder& r) {
    for (const auto& event : r.events) {
      if (event.what.find(part) != std::string::npos) return true;
    }
    return false;
  });
}

bool Recorder::wait_messages(std::size_t count) {
  return wait([&](const Recorder& r) { return r.messages.size() >= count; });
}

TestNode::TestNode(const TestCluster& cluster, const std::string& node, std::uint64_t incarnation,
                   const std::function<void(LinkOptions&)>& change)
    : name(node) {
  LinkOptions options;
  options.cluster = cluster.name_;
  options.name = node;
  options.incarnation = Incarnation(incarnation);
  options.silence_max = std::chrono::seconds(30);  // a starved test machine is not a dead peer
  options.seed = stable_hash(node) + incarnation;
  if (change) change(options);
  if (options.identity.certificate_pem.empty()) options.identity = cluster.node(node);
  links = Links::create(std::move(options), clock, registry, seen).value();
  port = links->listen("127.0.0.1", 0).value();
}

Message text_message(std::string_view text) {
  return Message::build<messages::ErrorInfo>(
      [&](messages::ErrorInfo::Builder info) { info.setMessage(capnp::Text::Reader(std::string(text).c_str(), text.size())); },
      text.size() / 8 + 16);
}

std::string text_of(const Message& message) {
  const auto opened = message.open<messages::ErrorInfo>();
  return opened.has_value() ? std::string(falaj::text((*opened)->getMessage())) : "unreadable: " + opened.error().message;
}

Bytes envelope_for(const Message& body, messages::Kind kind) {
  const auto message = Message::build<messages::Envelope>([&](messages::Envelope::Builder envelope) {
    envelope.setKind(kind);
    envelope.setTypeId(body.type().value());
  });
  return {message.bytes().begin(), message.bytes().end()};
}

Status TestNode::send(const std::string& to, Lane lane, std::string_view text) const {
  const auto body = text_message(text);
  return links->send(node_id(to), lane, envelope_for(body), body);
}

std::uint64_t TestNode::handshakes(bool resumed) {
  return registry.counter("falaj_link_handshakes_total", "TLS handshakes of links that succeeded.", {{"resumed", resumed ? "yes" : "no"}})
      .value();
}

RawPeer::RawPeer(std::uint16_t port) {
  fd_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const timeval limit{20, 0};
  ::setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  if (::connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) reset();
}

RawPeer::RawPeer(std::uint16_t port, const Identity& identity) : RawPeer(port) {
  auto* context = SSL_CTX_new(TLS_client_method());
  context_ = context;
  if (!identity.certificate_pem.empty()) {
    BIO* bio = BIO_new_mem_buf(identity.certificate_pem.data(), static_cast<int>(identity.certificate_pem.size()));
    X509* certificate = PEM_read_bio_X509(bio, nullptr, nullptr, nullptr);
    BIO_free(bio);
    bio = BIO_new_mem_buf(identity.key_pem.data(), static_cast<int>(identity.key_pem.size()));
    EVP_PKEY* key = PEM_read_bio_PrivateKey(bio, nullptr, nullptr, nullptr);
    BIO_free(bio);
    SSL_CTX_use_certificate(context, certificate);
    SSL_CTX_use_PrivateKey(context, key);
    X509_free(certificate);
    EVP_PKEY_free(key);
  }
  SSL* ssl = SSL_new(context);
  SSL_set_fd(ssl, fd_);
  if (SSL_connect(ssl) == 1) {
    ssl_ = ssl;
  } else {
    SSL_free(ssl);
  }
}

RawPeer::~RawPeer() {
  SSL_free(static_cast<SSL*>(ssl_));
  SSL_CTX_free(static_cast<SSL_CTX*>(context_));
  if (fd_ >= 0) ::close(fd_);
}

std::string RawPeer::serial() const {
  if (!connected()) return {};
  X509* shown = SSL_get1_peer_certificate(static_cast<SSL*>(ssl_));
  const ASN1_INTEGER* number = X509_get0_serialNumber(shown);
  auto text = hex(ByteView(ASN1_STRING_get0_data(number), static_cast<std::size_t>(ASN1_STRING_length(number))));
  X509_free(shown);
  return text;
}

bool RawPeer::write(ByteView bytes) {
  return ssl_ != nullptr && SSL_write(static_cast<SSL*>(ssl_), bytes.data(), static_cast<int>(bytes.size())) > 0;
}

bool RawPeer::write_plain(ByteView bytes) {
  return ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size());
}

bool RawPeer::hello(const std::function<void(messages::Hello::Builder)>& fill) {
  const auto message = Message::build<messages::Hello>([&](messages::Hello::Builder hello) {
    hello.setWireVersion(messages::WIRE_VERSION);
    hello.setCluster("oasis");
    hello.setIncarnation(1);
    hello.setSession(7);
    fill(hello);
  });
  return write(message.bytes());
}

Message RawPeer::read_hello() {
  Bytes bytes;
  std::uint8_t buffer[4096];
  for (;;) {
    const int count = SSL_read(static_cast<SSL*>(ssl_), buffer, sizeof buffer);
    if (count <= 0) return {};
    bytes.insert(bytes.end(), buffer, buffer + count);
    if (bytes.size() < 8) continue;
    std::uint32_t words = 0;
    std::memcpy(&words, bytes.data() + 4, 4);
    const std::size_t size = 8 + 8ULL * words;
    if (bytes.size() >= size) return message_from_bytes(TypeId(capnp::typeId<messages::Hello>()), ByteView(bytes).first(size)).value();
  }
}

std::string RawPeer::read_all() {
  std::string all;
  char buffer[4096];
  for (;;) {
    const int count = ssl_ == nullptr ? 0 : SSL_read(static_cast<SSL*>(ssl_), buffer, sizeof buffer);
    if (count <= 0) return all;
    all.append(buffer, static_cast<std::size_t>(count));
  }
}

bool RawPeer::closed_by_peer() {
  std::uint8_t buffer[4096];
  for (;;) {
    if (ssl_ != nullptr) {
      const int count = SSL_read(static_cast<SSL*>(ssl_), buffer, sizeof buffer);
      if (count > 0) continue;
      return SSL_get_error(static_cast<SSL*>(ssl_), count) != SSL_ERROR_WANT_READ;
    }
    const auto count = ::recv(fd_, buffer, sizeof buffer, 0);
    if (count > 0) continue;
    return count == 0 || (errno != EAGAIN && errno != EWOULDBLOCK);
  }
}

void RawPeer::reset() {
  const linger hard{1, 0};
  ::setsockopt(fd_, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
  ::close(fd_);
  fd_ = -1;
}

}  // namespace falaj::net::testing
