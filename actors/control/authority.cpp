#include "actors/control/authority.hpp"

#include <algorithm>

#include "actors/governance/audit.hpp"
#include "messages/control_internal.capnp.h"
#include "messages/envelope.capnp.h"
#include "runtime/base/format.hpp"

namespace falaj::control {
namespace {

using namespace messages;
using falaj::ErrorCode;
using falaj::Lane;

std::string token_key(const net::JoinToken& token) { return "token/" + token.id(); }

class Authority final : public ActorOf<Authority> {
 public:
  static constexpr std::string_view kType = "control/authority";
  static void handlers(Handlers<Authority>& on) {
    on.message<SignWorker>(&Authority::sign_worker);
    on.message<CreateToken>(&Authority::create_token);
    on.message<Join>(&Authority::join);
    on.message<RevokePrincipal>(&Authority::revoke);
  }
  explicit Authority(AuthorityOptions options) : options_(std::move(options)) {}

 private:
  void sign_worker(Context& ctx, Msg<SignWorker> m) {
    // The sender's node is what its link authenticated.
    const auto node = text(m->getNode());
    if (m.from().address().node != node_id(node))
      return m.refuse(error(ErrorCode::denied, "a node can ask for its own workers' certificates only"));
    const auto worker = net::SpiffeId::worker(options_.authority->cluster(), node, m->getIndex());
    if (!worker) return m.refuse(worker.error());
    const auto certificate = options_.authority->sign(as_text(bytes(m->getCertificateRequest())), *worker,
                                                      net::Validity::from(ctx.wall(), options_.worker_lifetime));
    if (!certificate) return m.refuse(certificate.error());
    m.reply(Message::build<Signed>([&](Signed::Builder b) { b.setCertificate(data(as_bytes(*certificate))); }, 256));
  }

  Task<> create_token(Context& ctx, Msg<CreateToken> m) {
    if (options_.join_address.empty()) {
      co_return m.refuse(
          error(ErrorCode::unimplemented, "this cluster's gateway has no HTTPS address; set `https` in the gateway node's config.toml"));
    }
    const auto lifetime = m->getLifetimeSeconds();
    if (lifetime < 1 || lifetime > 7 * 86400) co_return m.refuse(invalid("lifetime_seconds must be between 1 and 604800"));
    if (const auto wanted = text(m->getNode()); !wanted.empty()) {
      if (const auto named = net::SpiffeId::node(options_.authority->cluster(), wanted); !named) co_return m.refuse(named.error());
    }
    const WallTime expires{ctx.wall().unix_ns + static_cast<std::int64_t>(lifetime) * 1'000'000'000};
    const auto token =
        net::JoinToken::make(options_.authority->cluster(), options_.join_address, options_.authority->fingerprint(), expires);
    if (!token) co_return m.refuse(token.error());
    const auto record = Message::build<OpenToken>([&](OpenToken::Builder b) {
      b.setExpiresNs(expires.unix_ns);
      b.setNode(m->getNode());
      b.setRoles(m->getRoles());
      b.setCreatedBy(m.scope() ? m.scope()->principal : "node/" + ctx.node_name());
    });
    auto audited = governance::audit_ask(
        ctx, governance::record_of(m.scope(), m.trace(), ctx.node_name(), "cluster.join", "token " + token->id().substr(0, 12)));
    if (const auto done = co_await std::move(audited); !done) co_return m.refuse(done.error());
    auto* store = options_.store;
    auto write = ctx.blocking([store, key = token_key(*token), bytes = Bytes(record.bytes().begin(), record.bytes().end())] {
      return store->put(key, bytes, Revision(0));
    });
    const auto done = co_await write;
    if (!done) co_return m.refuse(done.error());
    m.reply(Message::build<Token>([&](Token::Builder b) {
      b.setToken(token->encode());
      b.setExpiresNs(expires.unix_ns);
    }));
  }

  Task<> join(Context& ctx, Msg<Join> m) {
    auto outcome = co_await admit(ctx, m);
    auto record =
        governance::record_of(m.scope(), m.trace(), ctx.node_name(), "cluster.join", format("node/{}", text(m->getNode()).substr(0, 64)));
    record.allowed = outcome.has_value();
    if (!outcome) record.reason = outcome.error().message;
    auto audited = governance::audit_ask(ctx, std::move(record));
    if (const auto done = co_await std::move(audited); !done) co_return m.refuse(done.error());
    if (!outcome) co_return m.refuse(outcome.error());
    m.reply(std::move(outcome).value());
  }

  Task<> revoke(Context& ctx, Msg<RevokePrincipal> m) {
    const auto path = std::string(text(m->getPrincipal()));
    const auto who = net::SpiffeId::parse(format("spiffe://{}/{}", options_.authority->cluster(), path));
    if (!who || who->kind() == net::PrincipalKind::worker)
      co_return m.refuse(invalid(format("'{}': give node/NAME, person/NAME or service/NAME", path.substr(0, 200))));
    if (who->kind() == net::PrincipalKind::node && who->name() == options_.control_node)
      co_return m.refuse(invalid(format("'{}' is the control node, which tells the others; make a new cluster instead", path)));
    const auto until = ctx.wall();
    const auto entry = net::RevocationList::entry(*who, until);
    auto audited = governance::audit_ask(ctx, governance::record_of(m.scope(), m.trace(), ctx.node_name(), "cluster.revoke", path));
    if (const auto done = co_await std::move(audited); !done) co_return m.refuse(done.error());
    auto* store = options_.store;
    auto write = ctx.blocking([store, key = "revoked/" + path, value = to_bytes(entry)] { return store->put(key, value); });
    const auto done = co_await write;
    if (!done) co_return m.refuse(done.error());
    auto told = ctx.ask<Empty>(ctx.find("control/membership"), Message::build<RevocationsChanged>(), {.lane = Lane::control});
    const auto published = co_await told;
    if (!published) co_return m.refuse(published.error());  // stored all the same: with the next view at the latest
    // Certificates know seconds only: a new one that is asked for upon this answer must be of a later one.
    constexpr std::int64_t kSecond = 1'000'000'000;
    const auto later = (until.unix_ns / kSecond + 1) * kSecond - ctx.wall().unix_ns;
    if (later > 0) co_await ctx.sleep(Duration(std::min(later, kSecond)));
    m.reply(Message::build<Revoked>([&](Revoked::Builder b) { b.setEntry(entry); }));
  }

  Task<Result<Message>> admit(Context& ctx, const Msg<Join>& m) {
    const auto token = net::JoinToken::decode(text(m->getToken()));
    if (!token) co_return token.error();
    const auto key = token_key(*token);
    const auto stored = options_.store->get(key);
    if (!stored) co_return stored.error();
    if (!*stored) co_return error(ErrorCode::denied, "the token is unknown or was used already; make a new one with `falaj token`");
    const auto message = message_from_bytes(TypeId(capnp::typeId<OpenToken>()), (*stored)->value);
    if (!message) co_return message.error();
    const auto open = message->open<OpenToken>();
    if (!open) co_return open.error();
    if (ctx.wall().unix_ns > (*open)->getExpiresNs())
      co_return error(ErrorCode::denied, "the token has expired; make a new one with `falaj token`");
    const auto wanted = text((*open)->getNode());
    if (!wanted.empty() && wanted != text(m->getNode()))
      co_return error(ErrorCode::denied, format("the token is for a node named '{}'", wanted));
    if ((*open)->getRoles().size() == 0 && m->getRoles().size() == 0) co_return invalid("the token gives no roles; name them with --roles");
    const auto who = net::SpiffeId::node(options_.authority->cluster(), text(m->getNode()));
    if (!who) co_return who.error();
    const auto certificate =
        options_.authority->sign(as_text(bytes(m->getCertificateRequest())), *who, net::Validity::from(ctx.wall(), options_.node_lifetime));
    if (!certificate) co_return certificate.error();
    // Used up before it is answered, with compare-and-set: of two that show it, one gets in.
    auto* store = options_.store;
    auto write = ctx.blocking([store, key, revision = (*stored)->modified] { return store->erase(key, revision); });
    const auto used = co_await write;
    if (!used) co_return error(ErrorCode::denied, "the token was used already; make a new one with `falaj token`");
    co_return Message::build<Joined>(
        [&](Joined::Builder b) {
          b.setCertificate(data(as_bytes(*certificate)));
          b.setAuthority(data(as_bytes(options_.authority->certificate_pem())));
          b.setCluster(options_.authority->cluster());
          b.setControl(options_.control_address);
          b.setControlNode(options_.control_node);
          b.setRights(options_.rights);
          b.setRoles((*open)->getRoles());
        },
        1024);
  }

  AuthorityOptions options_;
};

}  // namespace

ChildSpec authority(AuthorityOptions options) {
  ChildSpec spec;
  spec.id = "control/authority";
  spec.name = spec.id;
  spec.make = [options = std::move(options)] { return std::make_unique<Authority>(options); };
  return spec;
}

}  // namespace falaj::control
