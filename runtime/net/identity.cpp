#include "runtime/net/identity.hpp"

#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <sys/stat.h>

#include "runtime/base/format.hpp"
#include "runtime/net/tls.hpp"

namespace falaj::net {
namespace {

constexpr std::int64_t kSecond = 1'000'000'000;
constexpr std::int64_t kEarly = 300 * kSecond;

Result<tls::Key> new_key() {
  tls::Key key(EVP_EC_gen("P-256"));
  if (!key) return tls::error_of(ErrorCode::failed, "key: cannot make one");
  return key;
}

Status add_extension(X509* certificate, X509* issuer, int what, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx_nodb(&context);
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, &context, what, value.c_str());
  if (extension == nullptr) return tls::error_of(ErrorCode::failed, format("certificate: extension '{}'", value));
  const int added = X509_add_ext(certificate, extension, -1);
  X509_EXTENSION_free(extension);
  if (added != 1) return tls::error_of(ErrorCode::failed, "certificate: extension");
  return {};
}

Status set_name(X509_NAME* name, std::string_view text) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(text.data());
  if (X509_NAME_add_entry_by_txt(name, "O", MBSTRING_UTF8, reinterpret_cast<const unsigned char*>("Falaj"), -1, -1, 0) != 1) {
    return tls::error_of(ErrorCode::failed, "certificate: name");
  }
  // A common name holds at most 64 characters; the SPIFFE id is what counts.
  const int size = static_cast<int>(std::min<std::size_t>(text.size(), 64));
  if (X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_UTF8, bytes, size, -1, 0) != 1)
    return tls::error_of(ErrorCode::failed, "certificate: name");
  return {};
}

// What a leaf and an authority have in common: version, random serial, validity, key.
Result<tls::Certificate> blank(EVP_PKEY* key, const Validity& validity) {
  tls::Certificate certificate(X509_new());
  if (!certificate || X509_set_version(certificate.get(), 2) != 1) return tls::error_of(ErrorCode::failed, "certificate");
  FALAJ_ASSIGN(auto serial, random_bytes(16));
  serial[0] = static_cast<std::uint8_t>((serial[0] & 0x7fU) | 0x40U);  // positive, and always 16 bytes long
  using Number = std::unique_ptr<BIGNUM, tls::Deleter<BN_free>>;
  const Number number(BN_bin2bn(serial.data(), static_cast<int>(serial.size()), nullptr));
  if (!number || BN_to_ASN1_INTEGER(number.get(), X509_get_serialNumber(certificate.get())) == nullptr) {
    return tls::error_of(ErrorCode::failed, "certificate: serial");
  }
  if (validity.not_after <= validity.not_before) return invalid("certificate: it would end before it begins");
  const auto begin = static_cast<std::time_t>(validity.not_before.unix_ns / kSecond);
  const auto end = static_cast<std::time_t>(validity.not_after.unix_ns / kSecond);
  if (ASN1_TIME_set(X509_getm_notBefore(certificate.get()), begin) == nullptr ||
      ASN1_TIME_set(X509_getm_notAfter(certificate.get()), end) == nullptr || X509_set_pubkey(certificate.get(), key) != 1) {
    return tls::error_of(ErrorCode::failed, "certificate: validity");
  }
  return certificate;
}

Result<std::string> authority_cluster(X509* certificate) {
  using Names = std::unique_ptr<GENERAL_NAMES, tls::Deleter<GENERAL_NAMES_free>>;
  const Names names(static_cast<GENERAL_NAMES*>(X509_get_ext_d2i(certificate, NID_subject_alt_name, nullptr, nullptr)));
  if (names && sk_GENERAL_NAME_num(names.get()) == 1) {
    const GENERAL_NAME* name = sk_GENERAL_NAME_value(names.get(), 0);
    if (name->type == GEN_URI) {
      const auto* text = name->d.uniformResourceIdentifier;
      const std::string_view uri(reinterpret_cast<const char*>(ASN1_STRING_get0_data(text)),
                                 static_cast<std::size_t>(ASN1_STRING_length(text)));
      if (uri.starts_with("spiffe://") && SpiffeId::node(uri.substr(9), "x").has_value()) return std::string(uri.substr(9));
    }
  }
  return invalid("ca.crt: not the authority of a cluster (no spiffe://<cluster> in it)");
}

}  // namespace

Validity Validity::from(WallTime now, Duration lifetime) {
  return {WallTime{now.unix_ns - kEarly}, WallTime{now.unix_ns + lifetime.count()}};
}

WallTime Validity::issued() const { return WallTime{not_before.unix_ns + kEarly}; }

Result<CertificateInfo> parse_certificate(std::string_view pem) {
  FALAJ_ASSIGN(const auto certificate, tls::read_certificate(pem));
  return tls::certificate_info(certificate.get());
}

Result<std::string> certificate_fingerprint(std::string_view pem) {
  FALAJ_ASSIGN(const auto certificate, tls::read_certificate(pem));
  return tls::fingerprint(certificate.get());
}

Result<SigningRequest> make_signing_request(const SpiffeId& who) {
  FALAJ_ASSIGN(const auto key, new_key());
  const tls::Request request(X509_REQ_new());
  if (!request || X509_REQ_set_pubkey(request.get(), key.get()) != 1) return tls::error_of(ErrorCode::failed, "signing request");
  FALAJ_TRY(set_name(X509_REQ_get_subject_name(request.get()), who.path()));
  if (X509_REQ_sign(request.get(), key.get(), EVP_sha256()) == 0) return tls::error_of(ErrorCode::failed, "signing request");
  const tls::Bio bio(BIO_new(BIO_s_mem()));
  if (PEM_write_bio_X509_REQ(bio.get(), request.get()) != 1) return tls::error_of(ErrorCode::failed, "signing request");
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio.get(), &data);
  FALAJ_ASSIGN(auto key_pem, tls::to_pem(key.get()));
  return SigningRequest{std::string(data, static_cast<std::size_t>(size)), std::move(key_pem)};
}

struct CertificateAuthority::State {
  std::string cluster;
  std::string pem;
  std::string fingerprint;
  tls::Certificate certificate;
  tls::Key key;

  Result<std::string> certify(EVP_PKEY* whose, const SpiffeId& who, const Validity& validity) const {
    if (who.cluster() != cluster) return invalid(format("'{}' is not of cluster '{}'", who.uri(), cluster));
    FALAJ_ASSIGN(const auto leaf, blank(whose, validity));
    X509* c = leaf.get();
    FALAJ_TRY(set_name(X509_get_subject_name(c), who.path()));
    if (X509_set_issuer_name(c, X509_get_subject_name(certificate.get())) != 1)
      return tls::error_of(ErrorCode::failed, "certificate: issuer");
    FALAJ_TRY(add_extension(c, certificate.get(), NID_basic_constraints, "critical,CA:FALSE"));
    FALAJ_TRY(add_extension(c, certificate.get(), NID_key_usage, "critical,digitalSignature"));
    FALAJ_TRY(add_extension(c, certificate.get(), NID_ext_key_usage, "serverAuth,clientAuth"));
    FALAJ_TRY(add_extension(c, certificate.get(), NID_subject_alt_name, "URI:" + who.uri()));
    FALAJ_TRY(add_extension(c, certificate.get(), NID_subject_key_identifier, "hash"));
    FALAJ_TRY(add_extension(c, certificate.get(), NID_authority_key_identifier, "keyid:always"));
    if (X509_sign(c, key.get(), EVP_sha256()) == 0) return tls::error_of(ErrorCode::failed, "certificate: signing");
    return tls::to_pem(c);
  }
};

CertificateAuthority::CertificateAuthority(std::unique_ptr<State> state) : state_(std::move(state)) {}
CertificateAuthority::CertificateAuthority(CertificateAuthority&&) noexcept = default;
CertificateAuthority& CertificateAuthority::operator=(CertificateAuthority&&) noexcept = default;
CertificateAuthority::~CertificateAuthority() = default;

Result<CertificateAuthority> CertificateAuthority::create(std::string_view cluster, const Validity& validity) {
  FALAJ_TRY(SpiffeId::node(cluster, "x"));  // checks the cluster's name
  auto state = std::make_unique<State>();
  state->cluster = cluster;
  FALAJ_ASSIGN(state->key, new_key());
  FALAJ_ASSIGN(state->certificate, blank(state->key.get(), validity));
  X509* c = state->certificate.get();
  FALAJ_TRY(set_name(X509_get_subject_name(c), format("authority of {}", cluster)));
  if (X509_set_issuer_name(c, X509_get_subject_name(c)) != 1) return tls::error_of(ErrorCode::failed, "authority");
  FALAJ_TRY(add_extension(c, c, NID_basic_constraints, "critical,CA:TRUE,pathlen:0"));
  FALAJ_TRY(add_extension(c, c, NID_key_usage, "critical,keyCertSign,cRLSign"));
  FALAJ_TRY(add_extension(c, c, NID_subject_alt_name, format("URI:spiffe://{}", cluster)));
  FALAJ_TRY(add_extension(c, c, NID_subject_key_identifier, "hash"));
  if (X509_sign(c, state->key.get(), EVP_sha256()) == 0) return tls::error_of(ErrorCode::failed, "authority: signing");
  FALAJ_ASSIGN(state->pem, tls::to_pem(c));
  state->fingerprint = tls::fingerprint(c);
  return CertificateAuthority(std::move(state));
}

Result<CertificateAuthority> CertificateAuthority::load(const std::filesystem::path& directory) {
  auto state = std::make_unique<State>();
  FALAJ_ASSIGN(state->pem, read_text_file(directory / "ca.crt"));
  FALAJ_ASSIGN(const auto key_pem, read_text_file(directory / "ca.key"));
  FALAJ_ASSIGN(state->certificate, tls::read_certificate(state->pem));
  FALAJ_ASSIGN(state->key, tls::read_private_key(key_pem));
  FALAJ_ASSIGN(state->cluster, authority_cluster(state->certificate.get()));
  if (X509_check_private_key(state->certificate.get(), state->key.get()) != 1) {
    return tls::error_of(ErrorCode::invalid, format("{}: ca.key does not belong to ca.crt", directory.string()));
  }
  state->fingerprint = tls::fingerprint(state->certificate.get());
  return CertificateAuthority(std::move(state));
}

Status CertificateAuthority::save(const std::filesystem::path& directory) const {
  std::error_code code;
  std::filesystem::create_directories(directory, code);
  if (code) return failed(format("{}: {}", directory.string(), code.message()));
  if (std::filesystem::exists(directory / "ca.key", code) || std::filesystem::exists(directory / "ca.crt", code)) {
    return error(ErrorCode::conflict, format("{}: holds an authority already; choose another directory", directory.string()));
  }
  FALAJ_ASSIGN(const auto key_pem, tls::to_pem(state_->key.get()));
  FALAJ_TRY(write_private_file(directory / "ca.key", key_pem));
  return write_private_file(directory / "ca.crt", state_->pem);
}

Result<Credentials> CertificateAuthority::issue(const SpiffeId& who, const Validity& validity) const {
  FALAJ_ASSIGN(const auto key, new_key());
  Credentials made;
  FALAJ_ASSIGN(made.certificate_pem, state_->certify(key.get(), who, validity));
  FALAJ_ASSIGN(made.key_pem, tls::to_pem(key.get()));
  return made;
}

Result<std::string> CertificateAuthority::sign(std::string_view text, const SpiffeId& who, const Validity& validity) const {
  if (text.size() > 16384) return invalid("signing request: larger than any honest one");
  const tls::Bio bio(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
  const bool pem = text.starts_with("-----");
  const tls::Request request(pem ? PEM_read_bio_X509_REQ(bio.get(), nullptr, nullptr, nullptr) : d2i_X509_REQ_bio(bio.get(), nullptr));
  if (!request) return tls::error_of(ErrorCode::invalid, "signing request: not PKCS #10 as PEM or DER");
  EVP_PKEY* key = X509_REQ_get0_pubkey(request.get());
  if (key == nullptr || X509_REQ_verify(request.get(), key) != 1) {
    return tls::error_of(ErrorCode::invalid, "signing request: not signed by its own key");
  }
  char group[80] = "";
  if (EVP_PKEY_is_a(key, "EC") != 1 || EVP_PKEY_get_group_name(key, group, sizeof group, nullptr) != 1 ||
      std::string_view(group) != "prime256v1")
    return invalid("signing request: only EC P-256 keys are certified");
  return state_->certify(key, who, validity);
}

const std::string& CertificateAuthority::cluster() const noexcept { return state_->cluster; }
const std::string& CertificateAuthority::certificate_pem() const noexcept { return state_->pem; }
const std::string& CertificateAuthority::fingerprint() const noexcept { return state_->fingerprint; }

Result<Identity> load_identity(const std::filesystem::path& certificate, const std::filesystem::path& key,
                               const std::filesystem::path& authority) {
  Identity identity;
  FALAJ_ASSIGN(identity.certificate_pem, read_text_file(certificate));
  FALAJ_ASSIGN(identity.key_pem, read_text_file(key));
  FALAJ_ASSIGN(identity.authority_pem, read_text_file(authority));
  return identity;
}

IdentityFiles::IdentityFiles(std::filesystem::path certificate, std::filesystem::path key, std::filesystem::path authority)
    : files_{std::move(certificate), std::move(key), std::move(authority)} {}

std::array<IdentityFiles::Stamp, 3> IdentityFiles::look() const {
  std::array<Stamp, 3> stamps;
  for (std::size_t i = 0; i < files_.size(); ++i) {
    struct stat now{};
    if (::stat(files_[i].c_str(), &now) != 0) continue;
    stamps[i] = {now.st_mtim.tv_sec * std::int64_t{1'000'000'000} + now.st_mtim.tv_nsec, now.st_size, now.st_ino};
  }
  return stamps;
}

Result<Identity> IdentityFiles::load() {
  seen_ = look();  // first: what is written while we read is read again
  return load_identity(files_[0], files_[1], files_[2]);
}

Result<std::optional<Identity>> IdentityFiles::load_if_changed() {
  if (look() == seen_) return std::optional<Identity>();
  FALAJ_ASSIGN(auto identity, load());
  return std::optional<Identity>(std::move(identity));
}

}  // namespace falaj::net
