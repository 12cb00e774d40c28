// OpenSSL for the .cpp files of this box only: owners, errors as Results, and the one way in which a TLS context is made.
#pragma once
#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/clock.hpp"
#include "runtime/base/result.hpp"
#include "runtime/net/identity.hpp"

namespace falaj::net::tls {

template <auto Free>
struct Deleter {
  template <class T>
  void operator()(T* object) const noexcept {
    Free(object);
  }
};
using Bio = std::unique_ptr<BIO, Deleter<BIO_free_all>>;
using Key = std::unique_ptr<EVP_PKEY, Deleter<EVP_PKEY_free>>;
using Certificate = std::unique_ptr<X509, Deleter<X509_free>>;
using Request = std::unique_ptr<X509_REQ, Deleter<X509_REQ_free>>;
using Context = std::unique_ptr<SSL_CTX, Deleter<SSL_CTX_free>>;
using Session = std::unique_ptr<SSL, Deleter<SSL_free>>;
using Ticket = std::unique_ptr<SSL_SESSION, Deleter<SSL_SESSION_free>>;

// The oldest error in this thread's OpenSSL queue, which is emptied.
std::string last_error();
Error error_of(ErrorCode code, std::string_view what);

Result<Certificate> read_certificate(std::string_view pem);
Result<Key> read_private_key(std::string_view pem);
Result<std::string> to_pem(X509* certificate);
Result<std::string> to_pem(EVP_PKEY* key);
std::string fingerprint(X509* certificate);
std::string serial(X509* certificate);
// Of a leaf: one SPIFFE URI SAN, no CA, may sign.
Result<CertificateInfo> certificate_info(X509* certificate);

enum class Side : unsigned char { client, server };
enum class PeerCertificate : unsigned char { required, optional };
// TLS 1.3 only; trusts the identity's authority only. Where a certificate is required, sessions are resumed by ticket, each with a fresh
// key exchange: the peer then is who it was, without its certificate being checked once more, so who accepts it looks at the certificate's
// dates and at revocations. A ticket is good for an hour, and for this context only: a new identity begins anew.
// `invalid` when the key does not belong to the certificate, or the certificate is not of the authority.
Result<std::shared_ptr<SSL_CTX>> make_context(const Identity& identity, PeerCertificate peer);
// A session on it whose certificates are judged at `now`.
Result<Session> make_session(SSL_CTX* context, Side side, WallTime now);
// Tickets that come over this client session, from within SSL_read, are put there.
void keep_tickets(SSL* session, std::vector<Ticket>& where);
// Why a handshake failed, in few words that can label a metric: "expired", "untrusted", "no_certificate", "protocol"...
struct HandshakeFailure {
  std::string_view label;
  std::string detail;
};
HandshakeFailure handshake_failure(SSL* session);

}  // namespace falaj::net::tls
