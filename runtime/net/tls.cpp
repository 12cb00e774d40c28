#include "runtime/net/tls.hpp"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <algorithm>

#include "runtime/base/format.hpp"

namespace falaj::net::tls {

std::string last_error() {
  const unsigned long code = ERR_get_error();
  ERR_clear_error();
  if (code == 0) return "no detail";
  const char* reason = ERR_reason_error_string(code);
  return reason != nullptr ? reason : format("OpenSSL error {:x}", code);
}

Error error_of(ErrorCode code, std::string_view what) { return error(code, format("{}: {}", what, last_error())); }

namespace {

Bio memory(std::string_view text) { return Bio(BIO_new_mem_buf(text.data(), static_cast<int>(text.size()))); }

std::string taken(BIO* bio) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio, &data);
  return {data, static_cast<std::size_t>(size)};
}

// A PEM of a key that asks for a pass phrase must fail, not read the terminal.
int no_password(char*, int, int, void*) { return -1; }

Result<WallTime> wall_time(const ASN1_TIME* time) {
  std::tm parts{};
  if (ASN1_TIME_to_tm(time, &parts) != 1) return invalid("certificate: unreadable validity");
  return WallTime{static_cast<std::int64_t>(timegm(&parts)) * 1'000'000'000};
}

Result<SpiffeId> principal_of(X509* certificate) {
  using Names = std::unique_ptr<GENERAL_NAMES, Deleter<GENERAL_NAMES_free>>;
  const Names names(static_cast<GENERAL_NAMES*>(X509_get_ext_d2i(certificate, NID_subject_alt_name, nullptr, nullptr)));
  std::string uri;
  int found = 0;
  for (int i = 0; names && i < sk_GENERAL_NAME_num(names.get()); ++i) {
    const GENERAL_NAME* name = sk_GENERAL_NAME_value(names.get(), i);
    if (name->type != GEN_URI) continue;
    ++found;
    const auto* text = name->d.uniformResourceIdentifier;
    uri.assign(reinterpret_cast<const char*>(ASN1_STRING_get0_data(text)), static_cast<std::size_t>(ASN1_STRING_length(text)));
  }
  if (found != 1) return invalid(format("certificate: {} URI names, exactly one SPIFFE id is needed", found));
  return SpiffeId::parse(uri);
}

}  // namespace

Result<Certificate> read_certificate(std::string_view pem) {
  const Bio bio = memory(pem);
  Certificate certificate(PEM_read_bio_X509(bio.get(), nullptr, no_password, nullptr));
  if (!certificate) return error_of(ErrorCode::invalid, "certificate: not PEM of X.509");
  return certificate;
}

Result<Key> read_private_key(std::string_view pem) {
  const Bio bio = memory(pem);
  Key key(PEM_read_bio_PrivateKey(bio.get(), nullptr, no_password, nullptr));
  if (!key) return error_of(ErrorCode::invalid, "private key: not PEM of a key without pass phrase");
  return key;
}

Result<std::string> to_pem(X509* certificate) {
  const Bio bio(BIO_new(BIO_s_mem()));
  if (PEM_write_bio_X509(bio.get(), certificate) != 1) return error_of(ErrorCode::failed, "certificate: cannot write PEM");
  return taken(bio.get());
}

Result<std::string> to_pem(EVP_PKEY* key) {
  const Bio bio(BIO_new(BIO_s_mem()));
  if (PEM_write_bio_PKCS8PrivateKey(bio.get(), key, nullptr, nullptr, 0, nullptr, nullptr) != 1)
    return error_of(ErrorCode::failed, "key: cannot write PEM");
  return taken(bio.get());
}

std::string fingerprint(X509* certificate) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned size = 0;
  if (X509_digest(certificate, EVP_sha256(), digest, &size) != 1) return {};
  return hex(ByteView(digest, size));
}

std::string serial(X509* certificate) {
  const ASN1_INTEGER* number = X509_get0_serialNumber(certificate);
  return hex(ByteView(ASN1_STRING_get0_data(number), static_cast<std::size_t>(ASN1_STRING_length(number))));
}

Result<CertificateInfo> certificate_info(X509* certificate) {
  CertificateInfo info;
  FALAJ_ASSIGN(info.principal, principal_of(certificate));
  if (X509_check_ca(certificate) != 0) return invalid(format("certificate of {}: an authority's, not a principal's", info.principal.uri()));
  if ((X509_get_key_usage(certificate) & KU_DIGITAL_SIGNATURE) == 0) {
    return invalid(format("certificate of {}: its key usage does not allow signing", info.principal.uri()));
  }
  FALAJ_ASSIGN(info.validity.not_before, wall_time(X509_get0_notBefore(certificate)));
  FALAJ_ASSIGN(info.validity.not_after, wall_time(X509_get0_notAfter(certificate)));
  info.serial = serial(certificate);
  info.fingerprint = fingerprint(certificate);
  return info;
}

namespace {

constexpr std::size_t kTicketsPerHandshake = 3;  // one for each lane; OpenSSL sends one more with each that is used
constexpr long kTicketSeconds = 3600;
constexpr std::size_t kTicketsKept = 4;

// One: we keep the ticket.
int take_ticket(SSL* session, SSL_SESSION* ticket) {
  auto* where = static_cast<std::vector<Ticket>*>(SSL_get_app_data(session));
  if (where == nullptr || where->size() >= kTicketsKept) return 0;
  where->emplace_back(ticket);
  return 1;
}

Status allow_resumption(SSL_CTX* context, X509* authority) {
  unsigned char scope[EVP_MAX_MD_SIZE];
  unsigned size = 0;
  if (X509_digest(authority, EVP_sha256(), scope, &size) != 1 || SSL_CTX_set_session_id_context(context, scope, size) != 1)
    return error_of(ErrorCode::failed, "TLS: no session scope");
  SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
  SSL_CTX_sess_set_new_cb(context, take_ticket);
  SSL_CTX_set_timeout(context, kTicketSeconds);
  SSL_CTX_set_num_tickets(context, kTicketsPerHandshake);
  return {};
}

}  // namespace

void keep_tickets(SSL* session, std::vector<Ticket>& where) { SSL_set_app_data(session, &where); }

Result<std::shared_ptr<SSL_CTX>> make_context(const Identity& identity, PeerCertificate peer) {
  FALAJ_ASSIGN(const auto certificate, read_certificate(identity.certificate_pem));
  FALAJ_ASSIGN(const auto key, read_private_key(identity.key_pem));
  FALAJ_ASSIGN(const auto authority, read_certificate(identity.authority_pem));
  if (X509_check_private_key(certificate.get(), key.get()) != 1) {
    return error_of(ErrorCode::invalid,
                    "identity: the private key does not belong to the certificate; give the pair that was issued together");
  }
  const Key authority_key(X509_get_pubkey(authority.get()));
  if (!authority_key || X509_verify(certificate.get(), authority_key.get()) != 1) {
    return error_of(ErrorCode::invalid, "identity: the certificate was not issued by the given authority");
  }
  std::shared_ptr<SSL_CTX> context(SSL_CTX_new(TLS_method()), SSL_CTX_free);
  if (!context) return error_of(ErrorCode::failed, "TLS: no context");
  SSL_CTX* c = context.get();
  SSL_CTX_set_min_proto_version(c, TLS1_3_VERSION);
  SSL_CTX_set_max_proto_version(c, TLS1_3_VERSION);
  // With AES instructions AES-128-GCM is the fastest of the three, and as strong as the P-256 keys beside it.
  SSL_CTX_set_ciphersuites(c, "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256");
  SSL_CTX_set_options(c, SSL_OP_NO_COMPRESSION | SSL_OP_NO_RENEGOTIATION);
  if (peer == PeerCertificate::required) {
    FALAJ_TRY(allow_resumption(c, authority.get()));
  } else {
    SSL_CTX_set_session_cache_mode(c, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_num_tickets(c, 0);
    SSL_CTX_set_options(c, SSL_OP_NO_TICKET);
  }
  SSL_CTX_set_mode(c, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  SSL_CTX_set_max_cert_list(c, 16384);
  SSL_CTX_set_verify(c, SSL_VERIFY_PEER | (peer == PeerCertificate::required ? SSL_VERIFY_FAIL_IF_NO_PEER_CERT : 0), nullptr);
  SSL_CTX_set_verify_depth(c, 1);
  if (SSL_CTX_use_certificate(c, certificate.get()) != 1 || SSL_CTX_use_PrivateKey(c, key.get()) != 1 ||
      X509_STORE_add_cert(SSL_CTX_get_cert_store(c), authority.get()) != 1 || SSL_CTX_add_client_CA(c, authority.get()) != 1) {
    return error_of(ErrorCode::invalid, "TLS: identity refused");
  }
  // A node that joins knows only the authority's fingerprint: show it the certificate too.
  if (peer == PeerCertificate::optional && SSL_CTX_add1_chain_cert(c, authority.get()) != 1)
    return error_of(ErrorCode::invalid, "TLS: authority refused");
  return context;
}

Result<Session> make_session(SSL_CTX* context, Side side, WallTime now) {
  Session session(SSL_new(context));
  if (!session) return error_of(ErrorCode::failed, "TLS: no session");
  X509_VERIFY_PARAM_set_time(SSL_get0_param(session.get()), static_cast<std::time_t>(now.unix_ns / 1'000'000'000));
  if (side == Side::client) {
    SSL_set_connect_state(session.get());
  } else {
    SSL_set_accept_state(session.get());
  }
  return session;
}

HandshakeFailure handshake_failure(SSL* session) {
  const long verdict = SSL_get_verify_result(session);
  const unsigned long code = ERR_peek_error();
  const int reason = ERR_GET_REASON(code);
  HandshakeFailure failure{"protocol", last_error()};
  if (verdict != X509_V_OK) failure.detail = X509_verify_cert_error_string(verdict);
  switch (verdict) {
    case X509_V_OK:
      break;
    case X509_V_ERR_CERT_HAS_EXPIRED:
      failure.label = "expired";
      return failure;
    case X509_V_ERR_CERT_NOT_YET_VALID:
      failure.label = "not_yet_valid";
      return failure;
    default:
      failure.label = "untrusted";
      return failure;
  }
  switch (reason) {
    case SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE:
      failure.label = "no_certificate";
      break;
    case SSL_R_UNSUPPORTED_PROTOCOL:
    case SSL_R_TLSV1_ALERT_PROTOCOL_VERSION:
      failure.label = "version";
      break;
    case SSL_R_SSLV3_ALERT_CERTIFICATE_EXPIRED:
      failure.label = "own_expired";
      break;
    case SSL_R_TLSV1_ALERT_UNKNOWN_CA:
    case SSL_R_SSLV3_ALERT_BAD_CERTIFICATE:
    case SSL_R_SSLV3_ALERT_CERTIFICATE_UNKNOWN:
    case SSL_R_TLSV13_ALERT_CERTIFICATE_REQUIRED:
      failure.label = "own_refused";
      break;
    default:
      break;
  }
  return failure;
}

}  // namespace falaj::net::tls
