#include "actors/serving/gateway.hpp"

#include <charconv>
#include <map>

#include "actors/serving/oip.hpp"
#include "messages/control.capnp.h"
#include "messages/json.hpp"
#include "messages/serving.capnp.h"
#include "runtime/base/format.hpp"
#include "runtime/net/http.hpp"
#include "runtime/net/http/json_writer.hpp"
#include "runtime/net/links.hpp"

namespace falaj::serving {

using falaj::Scope;
using falaj::ScopeRef;
using net::HttpRequest;
using net::HttpResponder;
using net::HttpResponse;

namespace {

constexpr auto kRequestTimeout = std::chrono::seconds(5);
constexpr std::string_view kExtensions[] = {"binary_tensor_data", "model_configuration", "model_repository", "parameters", "statistics"};

// "/base/v2/models/m/versions/3/infer" -> {"models", "m", "versions", "3", "infer"}; the base path is passed over.
std::vector<std::string_view> segments_after(std::string_view path, std::string_view root) {
  std::vector<std::string_view> out;
  bool found = false;
  std::size_t at = 0;
  while (at < path.size()) {
    const auto end = std::min(path.find('/', at + 1), path.size());
    const auto segment = path.substr(at + 1, end - at - 1);
    if (found) {
      out.push_back(segment);
    } else if (segment == root) {
      found = true;
    }
    at = end;
  }
  if (!found) out.emplace_back();  // distinguishable from the root itself: one empty segment
  return out;
}

struct ModelPath {
  std::string_view model;
  std::uint64_t version = 0;
  std::string_view verb;  // "", "ready", "infer", "config", "stats"
};

std::optional<ModelPath> parse_model_path(const std::vector<std::string_view>& segments) {
  if (segments.size() < 2 || segments[0] != "models" || segments[1].empty()) return std::nullopt;
  ModelPath path{segments[1], 0, {}};
  std::size_t next = 2;
  if (segments.size() > next + 1 && segments[next] == "versions") {
    const auto digits = segments[next + 1];
    if (digits.empty() || std::from_chars(digits.data(), digits.data() + digits.size(), path.version).ptr != digits.data() + digits.size())
      return std::nullopt;
    next += 2;
  }
  if (segments.size() > next + 1) return std::nullopt;
  if (segments.size() == next + 1) path.verb = segments[next];
  return path;
}

HttpResponse not_found() { return HttpResponse::json(404, R"({"error":"Not Found"})"); }
HttpResponse wrong_method() { return HttpResponse::json(405, R"({"error":"Method Not Allowed"})"); }

}  // namespace

struct Gateway::State {
  GatewayOptions options;
  std::unique_ptr<net::HttpServer> clear;
  std::unique_ptr<net::HttpServer> tls;

  explicit State(GatewayOptions o) : options(std::move(o)) {}

  [[nodiscard]] ScopeRef scope_of(const HttpRequest& request) const {
    auto scope = std::make_shared<Scope>();
    scope->principal = request.principal ? request.principal->uri() : format("spiffe://{}/anonymous", options.cluster);
    scope->tenant = request.header("Falaj-Tenant");
    scope->purpose = request.header("Falaj-Purpose");
    scope->idempotency_key = request.header("Idempotency-Key");
    return scope;
  }

  // One ask to an actor of this node; `write` turns its reply into the response, on a host thread.
  template <class Reply, class Write>
  void ask(std::string_view actor, Message message, SendOptions send, HttpResponder responder, Write write) {
    if (send.timeout == Duration::zero()) send.timeout = kRequestTimeout;
    options.host->ask(options.host->find(actor), std::move(message), send,
                      [responder = std::move(responder), write = std::move(write)](Result<Message> answer) mutable {
                        if (!answer) return responder.respond(error_response(answer.error()));
                        const auto view = answer->open<Reply>();
                        if (!view) return responder.respond(error_response(view.error()));
                        responder.respond(write(**view));
                      });
  }

  SendOptions send_options(const HttpRequest& request, ScopeRef scope) const {
    SendOptions send;
    send.scope = std::move(scope);
    if (const auto parent = parse_traceparent(request.header("traceparent"))) send.trace = *parent;
    return send;
  }

  void infer(const HttpRequest& request, HttpResponder responder, const ModelPath& path) {
    static thread_local net::JsonReader reader;
    auto decoded = decode_infer(reader, request.body, request.header("Inference-Header-Content-Length"), path.model, path.version);
    if (!decoded) return responder.respond(error_response(decoded.error()));
    ask<messages::InferReply>(
        "serving/router", std::move(decoded->message), send_options(request, scope_of(request)), std::move(responder),
        [format = std::move(decoded->format)](messages::InferReply::Reader reply) { return encode_infer(reply, format); });
  }

  void predict(const HttpRequest& request, HttpResponder responder, std::string_view model) {
    net::JsonReader reader;
    const auto root = reader.parse(request.body);
    if (!root) return responder.respond(error_response(root.error()));
    std::vector<std::string> entities;
    const auto list = root->member("entities");
    const auto read = list ? list->flatten(entities, 4096) : Status(list.error());
    if (!read) return responder.respond(error_response(within("entities", read.error())));
    auto scope = scope_of(request);
    if (const auto purpose = root->find("purpose")) {
      const auto named = purpose->as_string();
      if (!named) return responder.respond(error_response(within("purpose", named.error())));
      auto fresh = std::make_shared<Scope>(*scope);
      fresh->purpose = *named;
      scope = std::move(fresh);
    }
    auto message = Message::build<messages::Predict>([&](messages::Predict::Builder b) {
      b.setModel(std::string(model));
      auto names = b.initEntities(static_cast<unsigned>(entities.size()));
      for (unsigned i = 0; i < entities.size(); ++i) names.set(i, entities[i]);
    });
    ask<messages::PredictReply>(
        "serving/router", std::move(message), send_options(request, std::move(scope)), std::move(responder),
        [](messages::PredictReply::Reader reply) {
          net::JsonWriter w;
          w.begin_object().key("model_name").string(text(reply.getModel())).key("model_version").string(std::to_string(reply.getVersion()));
          w.key("outputs").raw(encode_outputs_json(reply.getOutputs())).key("missing").begin_array();
          for (const auto entity : reply.getMissing()) w.string(text(entity));
          w.end_array().end_object();
          return HttpResponse::json(200, w.text());
        });
  }

  void describe(const HttpRequest& request, HttpResponder responder, const ModelPath& path) {
    auto message =
        Message::build<messages::DescribeModel>([&](messages::DescribeModel::Builder b) { b.setModel(std::string(path.model)); });
    auto send = send_options(request, scope_of(request));
    const bool ready = path.verb == "ready";
    if (ready) send.timeout = std::chrono::milliseconds(500);
    ask<messages::ModelDescription>("serving/router", std::move(message), send, std::move(responder),
                                    [ready, config = path.verb == "config"](messages::ModelDescription::Reader d) {
                                      if (ready) return HttpResponse::json(200, {});
                                      return HttpResponse::json(200, config ? encode_config(d) : encode_metadata(d));
                                    });
  }

  [[nodiscard]] bool all_ready() const {
    const auto view = options.view->get();
    if (!view) return false;
    for (const auto resource : view->view().getResources()) {
      if (!resource.isDeployment()) continue;
      if (view->ready_with_prefix("serving/replica/" + std::string(text(resource.getDeployment().getName())) + "/").empty()) return false;
    }
    return true;
  }

  HttpResponse server_metadata() const {
    net::JsonWriter w;
    w.begin_object().key("name").string("falaj").key("version").string("0.1.0").key("extensions").begin_array();
    for (const auto extension : kExtensions) w.string(extension);
    w.end_array().end_object();
    return HttpResponse::json(200, w.text());
  }

  HttpResponse repository_index() const {
    net::JsonWriter w;
    w.begin_array();
    if (const auto view = options.view->get()) {
      for (const auto resource : view->view().getResources()) {
        if (!resource.isDeployment()) continue;
        const std::string name(text(resource.getDeployment().getName()));
        const bool ready = !view->ready_with_prefix("serving/replica/" + name + "/").empty();
        w.begin_object()
            .key("name")
            .string(name)
            .key("state")
            .string(ready ? "READY" : "UNAVAILABLE")
            .key("reason")
            .string(ready ? "" : "no replica is ready")
            .end_object();
      }
    }
    w.end_array();
    return HttpResponse::json(200, w.text());
  }

  HttpResponse statistics(std::string_view only) const {
    net::JsonWriter w;
    w.begin_object().key("model_stats").begin_array();
    auto& registry = options.host->metrics();
    if (const auto view = options.view->get()) {
      for (const auto resource : view->view().getResources()) {
        if (!resource.isDeployment()) continue;
        const std::string name(text(resource.getDeployment().getName()));
        if (!only.empty() && only != name) continue;
        const metrics::Labels labels = {{"deployment", name}};
        const auto requests = registry.counter("falaj_serving_requests_total", "", labels).value();
        const auto bad = registry.counter("falaj_serving_failed_total", "", labels).value();
        const auto ns = static_cast<std::uint64_t>(registry.histogram("falaj_serving_request_seconds", "", labels).sum_seconds() * 1e9);
        const auto duration = [&w](std::string_view key, std::uint64_t count, std::uint64_t total) {
          w.key(key).begin_object().key("count").number(count).key("ns").number(total).end_object();
        };
        w.begin_object()
            .key("name")
            .string(name)
            .key("version")
            .string("1")
            .key("last_inference")
            .number(0)
            .key("inference_count")
            .number(requests - bad)
            .key("execution_count")
            .number(requests - bad);
        w.key("inference_stats").begin_object();
        duration("success", requests - bad, ns);
        duration("fail", bad, 0);
        for (const auto key : {"queue", "compute_input", "compute_output"}) duration(key, requests - bad, 0);
        duration("compute_infer", requests - bad, ns);
        for (const auto key : {"cache_hit", "cache_miss"}) duration(key, 0, 0);
        w.end_object().key("batch_stats").begin_array().end_array().end_object();
      }
    }
    w.end_array().end_object();
    return HttpResponse::json(200, w.text());
  }

  // The token is the right: the message goes to the authority as this node's own.
  void join(const HttpRequest& request, HttpResponder responder) {
    if (request.is_loopback && options.https.empty()) return responder.respond(not_found());
    Status read;
    auto message =
        Message::build<messages::Join>([&](messages::Join::Builder b) { read = from_json<messages::Join>(as_text(request.body), b); });
    if (!read) return responder.respond(error_response(read.error()));
    ask<messages::Joined>("control/authority", std::move(message), {}, std::move(responder),
                          [](messages::Joined::Reader joined) { return HttpResponse::json(200, to_json(joined)); });
  }

  void oip(const HttpRequest& request, HttpResponder responder) {
    const auto segments = segments_after(request.path, "v2");
    const bool get = request.method == "GET";
    const auto is = [&](std::initializer_list<std::string_view> wanted) { return std::ranges::equal(segments, wanted); };
    if (segments.empty()) return responder.respond(get ? server_metadata() : wrong_method());
    if (is({"health", "live"})) return responder.respond(get ? HttpResponse::json(200, {}) : wrong_method());
    if (is({"health", "ready"})) return responder.respond(!get ? wrong_method() : HttpResponse::json(all_ready() ? 200 : 400, {}));
    if (is({"repository", "index"})) return responder.respond(get ? wrong_method() : repository_index());
    if (is({"models", "stats"})) return responder.respond(get ? statistics({}) : wrong_method());
    const auto path = parse_model_path(segments);
    if (!path) return responder.respond(not_found());
    if (path->verb == "infer") {
      if (request.method != "POST") return responder.respond(wrong_method());
      return infer(request, std::move(responder), *path);
    }
    if (!get) return responder.respond(wrong_method());
    if (path->verb == "stats") return responder.respond(statistics(path->model));
    if (path->verb.empty() || path->verb == "ready" || path->verb == "config") return describe(request, std::move(responder), *path);
    responder.respond(not_found());
  }

  void handle(const HttpRequest& request, HttpResponder responder) {
    const std::string_view path = request.path;
    if (path == "/metrics") {
      auto response = HttpResponse::text(200, options.host->metrics().prometheus());
      response.content_type = "text/plain; version=0.0.4";
      return responder.respond(std::move(response));
    }
    constexpr std::string_view kPredict = "/v1/predict/";
    if (path.starts_with(kPredict) && path.size() > kPredict.size()) {
      if (request.method != "POST") return responder.respond(wrong_method());
      return predict(request, std::move(responder), path.substr(kPredict.size()));
    }
    if (path == "/v1/join" && request.method == "POST") return join(request, std::move(responder));
    oip(request, std::move(responder));
  }

  Status serve(const std::string& where, bool with_tls) {
    FALAJ_ASSIGN(const auto address, net::parse_peer_address("http", where));
    net::HttpOptions http;
    http.host = address.host;
    http.port = address.port;
    http.name = with_tls ? "https" : "http";
    if (with_tls) http.identity = options.identity;
    auto server =
        net::HttpServer::create(std::move(http), options.host->clock(), options.host->metrics(),
                                [this](const HttpRequest& request, HttpResponder responder) { handle(request, std::move(responder)); });
    if (!server) return within(where, server.error());
    (with_tls ? tls : clear) = std::move(server).value();
    return {};
  }
};

Gateway::Gateway(std::unique_ptr<State> state) : state_(std::move(state)) {}
Gateway::~Gateway() { stop(); }

Result<std::unique_ptr<Gateway>> Gateway::start(GatewayOptions options) {
  std::unique_ptr<Gateway> gateway(new Gateway(std::make_unique<State>(std::move(options))));
  auto& state = *gateway->state_;
  if (!state.options.http.empty()) FALAJ_TRY(state.serve(state.options.http, false));
  if (!state.options.https.empty()) FALAJ_TRY(state.serve(state.options.https, true));
  return gateway;
}

void Gateway::stop() {
  if (state_->clear) state_->clear->stop();
  if (state_->tls) state_->tls->stop();
}

std::uint16_t Gateway::http_port() const { return state_->clear ? state_->clear->port() : 0; }

void Gateway::fill_stats(messages::NodeStats::Builder into) const {
  const auto view = state_->options.view->get();
  if (!view) return;
  std::vector<std::string> names;
  for (const auto resource : view->view().getResources()) {
    if (resource.isDeployment()) names.emplace_back(text(resource.getDeployment().getName()));
  }
  auto list = into.initRequests(static_cast<unsigned>(names.size()));
  auto& registry = state_->options.host->metrics();
  for (unsigned i = 0; i < names.size(); ++i) {
    const metrics::Labels labels = {{"deployment", names[i]}};
    const auto& latency = registry.histogram("falaj_serving_request_seconds", "", labels);
    list[i].setDeployment(names[i]);
    list[i].setRequests(registry.counter("falaj_serving_requests_total", "", labels).value());
    list[i].setFailed(registry.counter("falaj_serving_failed_total", "", labels).value());
    list[i].setP50Us(latency.quantile_seconds(0.5) * 1e6);
    list[i].setP99Us(latency.quantile_seconds(0.99) * 1e6);
  }
}

}  // namespace falaj::serving
