#include "runtime/net/http/message.hpp"

#include <algorithm>
#include <ctime>

#include "runtime/base/format.hpp"

namespace falaj::net {
namespace {

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  const char lower = static_cast<char>(c | 0x20);
  return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
}

// The Date header costs more than the rest of a small response: once a second is enough.
std::string_view date_now(WallTime now) {
  thread_local std::int64_t second = -1;
  thread_local char text[40];
  const std::int64_t wanted = now.unix_ns / 1'000'000'000;
  if (wanted != second) {
    const auto time = static_cast<std::time_t>(wanted);
    std::tm parts{};
    gmtime_r(&time, &parts);
    std::strftime(text, sizeof text, "%a, %d %b %Y %H:%M:%S GMT", &parts);
    second = wanted;
  }
  return text;
}

// A line break in a value would begin a header of the value's own choosing.
void append_clean(std::string& out, std::string_view value) {
  for (const char c : value) out += c == '\r' || c == '\n' || c == '\0' ? ' ' : c;
}

}  // namespace

bool same_header(std::string_view a, std::string_view b) noexcept {
  const auto lower = [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c | 0x20) : c; };
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [&](char x, char y) { return lower(x) == lower(y); });
}

Result<std::string> percent_decoded(std::string_view text, bool plus) {
  std::string out;
  out.reserve(text.size());
  for (std::size_t i = 0; i < text.size(); ++i) {
    char c = text[i];
    if (c == '+' && plus) c = ' ';
    if (c == '%') {
      const int high = i + 1 < text.size() ? hex_digit(text[i + 1]) : -1;
      const int low = i + 2 < text.size() ? hex_digit(text[i + 2]) : -1;
      if (high < 0 || low < 0) return invalid("target: a '%' without two hex digits");
      c = static_cast<char>(high * 16 + low);
      i += 2;
    }
    if (c == '\0') return invalid("target: a NUL character");
    out += c;
  }
  return out;
}

Status split_target(HttpRequest& request) {
  std::string_view target = request.target;
  if (target.starts_with("http://") || target.starts_with("https://")) {  // absolute form, as proxies send it
    const auto slash = target.find('/', target.find("//") + 2);
    target = slash == std::string_view::npos ? "/" : target.substr(slash);
  }
  target = target.substr(0, target.find('#'));
  const auto mark = target.find('?');
  if (mark != std::string_view::npos) request.query = target.substr(mark + 1);
  if (target.empty() || (target.front() != '/' && target != "*")) return invalid("target: must begin with '/'");
  FALAJ_ASSIGN(request.path, percent_decoded(target.substr(0, mark), false));
  return {};
}

std::string_view reason_phrase(unsigned status) noexcept {
  switch (status) {
    case 200:
      return "OK";
    case 201:
      return "Created";
    case 202:
      return "Accepted";
    case 204:
      return "No Content";
    case 206:
      return "Partial Content";
    case 301:
      return "Moved Permanently";
    case 302:
      return "Found";
    case 304:
      return "Not Modified";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 408:
      return "Request Timeout";
    case 409:
      return "Conflict";
    case 411:
      return "Length Required";
    case 413:
      return "Content Too Large";
    case 415:
      return "Unsupported Media Type";
    case 422:
      return "Unprocessable Content";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 500:
      return "Internal Server Error";
    case 501:
      return "Not Implemented";
    case 502:
      return "Bad Gateway";
    case 503:
      return "Service Unavailable";
    case 504:
      return "Gateway Timeout";
    case 507:
      return "Insufficient Storage";
    default:
      return "Status";
  }
}

std::string response_head(const HttpResponse& response, std::string_view server, bool keep_alive, bool http_1_0, WallTime now) {
  const bool bodiless = response.status == 204 || response.status == 304 || response.status < 200;
  std::string head;
  head.reserve(256);
  head += "HTTP/1.1 ";
  head += std::to_string(response.status);
  head += ' ';
  head += reason_phrase(response.status);
  head += "\r\n";
  if (!server.empty()) {
    head += "Server: ";
    append_clean(head, server);
    head += "\r\n";
  }
  head += "Date: ";
  head += date_now(now);
  head += "\r\n";
  if (!bodiless) {
    if (!response.content_type.empty()) {
      head += "Content-Type: ";
      append_clean(head, response.content_type);
      head += "\r\n";
    }
    head += "Content-Length: ";
    head += std::to_string(response.body.size());
    head += "\r\n";
  }
  for (const auto& [name, value] : response.headers) {
    append_clean(head, name);
    head += ": ";
    append_clean(head, value);
    head += "\r\n";
  }
  if (!keep_alive) {
    head += "Connection: close\r\n";
  } else if (http_1_0) {
    head += "Connection: keep-alive\r\n";
  }
  head += "\r\n";
  return head;
}

// --- http.hpp ---

std::string_view HttpRequest::header(std::string_view name) const noexcept {
  for (const auto& [key, value] : headers) {
    if (same_header(key, name)) return value;
  }
  return {};
}

std::optional<std::string> HttpRequest::query_value(std::string_view name) const {
  std::string_view rest = query;
  while (!rest.empty()) {
    const auto end = rest.find('&');
    const auto pair = rest.substr(0, end);
    rest = end == std::string_view::npos ? std::string_view() : rest.substr(end + 1);
    const auto equals = pair.find('=');
    const auto key = percent_decoded(pair.substr(0, equals), true);
    if (!key.has_value() || *key != name) continue;
    auto value = percent_decoded(equals == std::string_view::npos ? std::string_view() : pair.substr(equals + 1), true);
    if (value.has_value()) return std::move(value).value();
  }
  return std::nullopt;
}

std::string_view HttpRequest::bearer_token() const noexcept {
  auto value = header("Authorization");
  if (value.size() < 8 || !same_header(value.substr(0, 7), "bearer ")) return {};
  value.remove_prefix(7);
  while (!value.empty() && value.front() == ' ') value.remove_prefix(1);
  while (!value.empty() && value.back() == ' ') value.remove_suffix(1);
  return value;
}

HttpResponse HttpResponse::json(unsigned status, std::string_view text) { return {status, "application/json", {}, to_bytes(text)}; }
HttpResponse HttpResponse::text(unsigned status, std::string_view text) {
  return {status, "text/plain; charset=utf-8", {}, to_bytes(text)};
}

HttpResponder& HttpResponder::operator=(HttpResponder&& other) noexcept {
  if (this != &other) {
    HttpResponder dropped(std::move(*this));  // answers 500 if it was still open
    reply_ = std::move(other.reply_);
  }
  return *this;
}

HttpResponder::~HttpResponder() {
  if (reply_) respond(HttpResponse::json(500, R"({"error":"the request was dropped by the server"})"));
}

void HttpResponder::respond(HttpResponse response) {
  const auto reply = std::exchange(reply_, nullptr);
  if (reply) reply->reply(std::move(response));
}

}  // namespace falaj::net
