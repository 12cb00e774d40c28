// OpenSSL for the .cpp files of this box only: owners, errors as Results, and the one way in which a TLS context is made.
#pragma once
#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include <memory>
#include <string>
#include <string_view>

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
// TLS 1.3 only; no session tickets, no resumption (each handshake checks the certificate); trusts the identity's authority only.
// `invalid` when the key does not belong to the certificate, or the certificate is not of the authority.
Result<std::shared_ptr<SSL_CTX>> make_context(const Identity& identity, PeerCertificate peer);
// A session on it whose certificates are judged at `now`.
Result<Session> make_session(SSL_CTX* context, Side side, WallTime now);
// Why a handshake failed, in few words that can label a metric: "expired", "untrusted", "no_certificate", "protocol"...
struct HandshakeFailure {
  std::string_view label;
  std::string detail;
};
HandshakeFailure handshake_failure(SSL* session);

}  // namespace falaj::net::tls
